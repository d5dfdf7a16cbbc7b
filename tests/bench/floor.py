"""The service beside the transport's floor: the same requests, the same load side, one after the other."""

import argparse
import tempfile

import harness
from harness import Table, bench, bound, latency, median, ratios, rounds_of, throughput

# A stream cuts what is larger than 1 MiB with what surrounds it.
ONE_MIB = (1 << 20) - (1 << 10)
SIZES = {142: "142 B", 4096: "4 KiB", 65536: "64 KiB", ONE_MIB: "1 MiB"}
THROUGHPUT = {142: 0.95, 4096: 0.95, 65536: 0.90, ONE_MIB: 0.80}
ALONE = {142: 1.10, 4096: 1.10, 65536: 1.10, ONE_MIB: 1.25}
# Half of it is more than any point's replies take: 512 of 1 MiB.
BUDGET = "--output_budget_bytes=1342177280"


def pair(address, run, flags):
    return {name: lambda name=name: run(address[name], **flags) for name in ("floor", "service")}


def closed_loops(table, address, size, rounds, duration_s, unix=False):
    """Returns the floor's calls a second with 64 in flight."""
    where = "Unix socket" if unix else "TCP"
    for in_flight, channels in ((1, 1), (8, 1), (64, 4), (512, 16)):
        flags = {"reply_bytes": size, "in_flight": in_flight, "channels": channels, "duration_s": duration_s}
        got = rounds_of(pair(address, bench, flags), rounds)
        rate, p50 = (median(ratios(got, "service", "floor", value)) for value in (throughput, latency("p50")))
        table.row(
            f"unary, {where}",
            SIZES[size],
            f"{in_flight} over {channels}",
            f"{median(map(throughput, got['floor'])):,.0f}",
            f"{median(map(throughput, got['service'])):,.0f}",
            bound(rate, THROUGHPUT[size], at_most=False) if in_flight == 64 and not unix else rate,
            f"{median(map(latency('p50'), got['floor'])):,.0f}",
            f"{median(map(latency('p50'), got['service'])):,.0f}",
            bound(p50, ALONE[size], at_most=True) if in_flight == 1 and not unix else p50,
            median(ratios(got, "service", "floor", latency("p99"))),
        )
        if in_flight == 64:
            capacity = median(map(throughput, got["floor"]))
    return capacity


def streams(table, address, size, rounds, duration_s):
    flags = {"reply_bytes": size, "in_flight": 64, "channels": 2, "streams": 2, "duration_s": duration_s}
    runs = pair(address, bench, flags)
    unary = {"reply_bytes": size, "in_flight": 64, "channels": 2, "duration_s": duration_s}
    runs["unary"] = lambda: bench(address["service"], **unary)
    got = rounds_of(runs, rounds)
    table.row(
        "stream, TCP",
        SIZES[size],
        "64 over 2 streams",
        f"{median(map(throughput, got['floor'])):,.0f}",
        f"{median(map(throughput, got['service'])):,.0f}",
        bound(median(ratios(got, "service", "floor", throughput)), 0.95, at_most=False),
        f"{median(map(latency('p50'), got['floor'])):,.0f}",
        f"{median(map(latency('p50'), got['service'])):,.0f}",
        median(ratios(got, "service", "floor", latency("p50"))),
        f"{median(ratios(got, 'service', 'unary', throughput)):.2f} of unary's rate",
    )


def open_loop(table, address, size, rounds, duration_s, capacity):
    # A client that keeps the time of its arrivals has more to do; beside it the floor has room at this rate.
    rate = round(0.25 * capacity)
    flags = {"reply_bytes": size, "in_flight": 400, "channels": 4, "rate": rate, "duration_s": 2 * duration_s}
    got = rounds_of(pair(address, bench, flags), rounds)
    ratio = {name: median(ratios(got, "service", "floor", latency(name))) for name in ("p50", "p99", "p99_9")}
    table.row(
        SIZES[size],
        f"{rate:,}",
        f"{median(map(latency('p50'), got['service'])):,.0f}",
        f"{median(map(latency('p99'), got['service'])):,.0f}",
        ratio["p50"],
        bound(ratio["p99"], 1.25, at_most=True),
        bound(ratio["p99_9"], 1.5, at_most=True),
    )


def by_h2load(table, address, size, rounds, duration_s):
    flags = {"reply_bytes": size, "in_flight": 64, "channels": 4, "duration_s": duration_s}
    got = rounds_of(pair(address, harness.h2load, flags), rounds)
    table.row(
        SIZES[size],
        f"{median(map(throughput, got['floor'])):,.0f}",
        f"{median(map(throughput, got['service'])):,.0f}",
        bound(median(ratios(got, "service", "floor", throughput)), THROUGHPUT[size], at_most=False),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=2, help="of a run, seconds")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--parts", nargs="*", default=["tcp", "unix", "streams", "open", "h2load"])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--flags", nargs="*", default=[], help="more flags of the server")
    parser.add_argument("--queues", type=int, help="completion queues of both")
    flags = parser.parse_args()
    run = (flags.rounds, flags.duration)
    queues = [f"--completion_queues={flags.queues}"] if flags.queues else []
    print(f"{harness.machine()}; medians of {flags.rounds} rounds; the service with {BUDGET}\n")
    with tempfile.TemporaryDirectory(prefix="nsa-metadata-bench-") as folder:
        served = harness.service(BUDGET, *queues, *flags.flags, unix=f"{folder}/service", backend=flags.backend)
        floors = {size: harness.floor(size, *queues, unix=f"{folder}/{size}") for size in flags.sizes}
        tcp = {size: {"floor": floors[size].address, "service": served.address} for size in flags.sizes}
        unix = {size: {"floor": floors[size].unix_address, "service": served.unix_address} for size in flags.sizes}
        capacity = dict.fromkeys(flags.sizes, 40_000)
        table = Table(
            *("load", "reply", "in flight", "floor/s", "service/s", "ratio"),
            *("floor p50 us", "service p50 us", "ratio", "p99 ratio"),
        )
        for size in flags.sizes:
            if "tcp" in flags.parts:
                capacity[size] = closed_loops(table, tcp[size], size, *run)
            if "unix" in flags.parts:
                closed_loops(table, unix[size], size, *run, unix=True)
            if "streams" in flags.parts:
                streams(table, tcp[size], size, *run)
        if "open" in flags.parts:
            print("\nThe same arrivals for both, a quarter of what the floor takes in a closed loop:\n")
            table = Table("reply", "requests/s", "p50 us", "p99 us", "p50 ratio", "p99 ratio", "p99.9 ratio")
            for size in flags.sizes:
                open_loop(table, tcp[size], size, *run, capacity[size])
        if "h2load" in flags.parts:
            print("\nBy h2load, 64 in flight over 4 connections:\n")
            table = Table("reply", "floor/s", "service/s", "ratio")
            for size in flags.sizes:
                by_h2load(table, tcp[size], size, *run)
        for server in (served, *floors.values()):
            server.stop()


if __name__ == "__main__":
    main()
