"""How the service's throughput grows with cores, callers, sequences and tokens; with --plot, the picture of it."""

import argparse
import json
import os
from pathlib import Path

import harness
from harness import bench, median, throughput

BUDGET = "--output_budget_bytes=1342177280"


def series(address, rounds, name, values, flags_of):
    """[[value, median of calls a second, median p50 in us], ...]"""
    points = []
    for value in values:
        got = [bench(address, duration_s=1, **flags_of(value)) for _ in range(rounds)]
        points.append([value, median(map(throughput, got)), median(result["latency_us"]["p50"] for result in got)])
        print(f"{name} {value}: {points[-1][1]:,.0f} calls/s, p50 {points[-1][2]:,.0f} us", flush=True)
    return points


def by_cores(rounds, backend):
    points = []
    available = sorted(os.sched_getaffinity(0))
    for count in [n for n in (1, 2, 4, 8, 16) if n <= len(available)]:
        cores = ",".join(map(str, available[:count]))
        queues = f"--completion_queues={max(1, count // 2)}"
        server = harness.service(BUDGET, queues, f"--lanes={max(count, 8)}", cores=cores, backend=backend)
        load = {"in_flight": 256, "channels": 16}
        points += [[count, *point[1:]] for point in series(server.address, rounds, "cores", [count], lambda _: load)]
        server.stop()
    return points


def measured(rounds, backend):
    found = {"machine": harness.machine(), "backend": backend, "cores": by_cores(rounds, backend)}
    server = harness.service(BUDGET, backend=backend)
    over = {"in_flight": 64, "channels": 4}
    found["callers"] = series(
        server.address,
        rounds,
        "callers",
        [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
        lambda n: {"in_flight": n, "channels": max(1, min(16, n // 8))},
    )
    found["sequences"] = series(
        server.address,
        rounds,
        "sequences",
        [1, 4, 16, 64, 256, 1024, 4096],
        lambda n: {"num_sequences": n, "total_tokens": 4096, **over},
    )
    found["tokens"] = series(
        server.address,
        rounds,
        "tokens",
        [16, 64, 256, 1024, 4096, 16384, 65536, 131072],
        lambda n: {"total_tokens": n, **over},
    )
    server.stop()
    return found


def plot(found, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    labels = {"cores": "cores of the server", "callers": "requests in flight", "sequences": "sequences a request",
              "tokens": "tokens a request"}
    for axis, (name, label) in zip(axes, labels.items()):
        values, rates, _ = zip(*found[name])
        axis.plot(values, rates, marker="o")
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("calls/s")
    figure.suptitle(f"{found['backend']} backend, {found['machine']}")
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write, or with --plot to read")
    parser.add_argument("--plot", type=Path, help="the PNG to draw of it; needs matplotlib (requirements.txt)")
    flags = parser.parse_args()
    if flags.plot:
        plot(json.loads(flags.out.read_text()), flags.plot)
    else:
        flags.out.write_text(json.dumps(measured(flags.rounds, flags.backend)) + "\n")


if __name__ == "__main__":
    main()
