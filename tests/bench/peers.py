"""The service beside what one would write or run instead: the same requests, in one run."""

import argparse
import functools
import sys

import harness
from harness import Table, bench, bound, h2load, latency, median, ratios, rounds_of, throughput

PEERS = harness.REPOSITORY / "tests" / "bench" / "peers"
ALONE = {"in_flight": 1, "channels": 1}
BUSY = {"in_flight": 64, "channels": 4}


def report(table, title, got, name, faster, quicker):
    """A row; `faster` and `quicker` are the bounds on throughput and latency, or None."""
    rate = median(ratios(got["busy"], "service", name, throughput))
    p50 = median(ratios(got["alone"], "service", name, latency("p50")))
    table.row(
        title,
        f"{median(map(throughput, got['busy'][name])):,.0f}",
        f"{median(map(throughput, got['busy']['service'])):,.0f}",
        bound(rate, faster, at_most=False) if faster else f"{rate:.2f}",
        f"{median(map(latency('p50'), got['alone'][name])):,.0f}",
        f"{median(map(latency('p50'), got['alone']['service'])):,.0f}",
        bound(p50, quicker, at_most=True) if quicker else f"{p50:.2f}",
    )


def measured(addresses, run, rounds, duration_s):
    """{busy, alone: {name: results}} of `run(name, address, ...)`."""

    def under(load):
        calls = {}
        for name, address in addresses.items():
            calls[name] = functools.partial(run, name, address, duration_s=duration_s, **load)
        return rounds_of(calls, rounds)

    return {"busy": under(BUSY), "alone": under(ALONE)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=2, help="of a run, seconds")
    parser.add_argument("--triton", help="the Python of an environment with peers/requirements-triton.txt; else left out")
    flags = parser.parse_args()
    callback = harness.program("tests/bench", "callback_server")
    servers = {
        "service": harness.service(),
        "grpcio": harness.Server(sys.executable, PEERS / "grpcio_server.py", "--processes=1"),
        "grpcio-2": harness.Server(sys.executable, PEERS / "grpcio_server.py"),
        "callback": harness.Server(callback),
        "callback-0": harness.Server(callback, "--batch_window=0"),
    }
    print(f"{harness.machine()}; 142-byte replies; medians of {flags.rounds} rounds\n")
    columns = ("peer", "peer/s", "service/s", "ratio", "peer p50 us", "service p50 us", "p50 ratio")
    table = Table(*columns)
    addresses = {name: server.address for name, server in servers.items()}
    got = measured(addresses, lambda _, address, **load: bench(address, **load), flags.rounds, flags.duration)
    report(table, "Python grpcio and numpy, one process", got, "grpcio", 10, 0.55)
    report(table, "the same, a process a core", got, "grpcio-2", None, None)
    report(table, "C++ callback API, 1 ms batch window", got, "callback", 1.5, None)
    report(table, "the same without a window", got, "callback-0", None, None)
    if flags.triton:
        servers["triton"] = harness.Server(flags.triton, PEERS / "triton_server.py")
        addresses = {name: servers[name].address for name in ("service", "triton")}

        def run(name, address, **load):
            return h2load(address, service="triton" if name == "triton" else "expand", **load)

        print("\nBoth by h2load, since Triton speaks a protocol of its own:\n")
        table = Table(*columns)
        got = measured(addresses, run, flags.rounds, flags.duration)
        report(table, "Triton Inference Server, Python model, dynamic batcher", got, "triton", 10, 0.33)
    for server in servers.values():
        server.stop()


if __name__ == "__main__":
    main()
