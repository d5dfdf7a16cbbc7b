"""What a call costs the server in processor time, memory and instructions."""

import argparse
import re
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import harness
from harness import bench, bound, h2load, median, ratios, rounds_of

MIB = 1 << 20


def refusals(rounds):
    server = harness.service()
    load = {"in_flight": 64, "channels": 4}

    def cost(**flags):
        before, started = server.cpu_s(), started_calls(server)
        h2load(server.address, **load, **flags)
        return {"us": 1e6 * (server.cpu_s() - before) / (started_calls(server) - started)}

    got = rounds_of({"served": cost, "refused": lambda: cost(bad=True)}, rounds)
    server.stop()
    served, refused = (median(result["us"] for result in got[name]) for name in ("served", "refused"))
    ratio = median(ratios(got, "refused", "served", lambda result: result["us"]))
    print(f"processor time: served {served:.1f} us, refused {refused:.1f} us, ratio {bound(ratio, 0.7, at_most=True)}")


def started_calls(server):
    """The server's own count: h2load's leaves out its warm-up."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        lines = page.read().decode()
    return sum(float(value) for value in re.findall(r"^grpc_server_started_total\{.*\} (\S+)$", lines, re.MULTILINE))


def memory():
    """Resident memory over a million calls, after the first hundred thousand."""
    server = harness.service()
    resident, calls = [], 0
    while calls < 1_100_000:
        calls += bench(server.address, in_flight=64, channels=4, duration_s=1.5)["requests"]
        resident.append((calls, server.resident_bytes()))
    server.stop()
    first = next(size for count, size in resident if count >= 100_000)
    print(f"memory: {first / MIB:.1f} MiB after {resident[0][0]:,} calls, {resident[-1][1] / MIB:.1f} MiB after {calls:,}")


def instructions():
    """Instructions a 142-byte call, alone, by callgrind."""
    counts = {}
    for name in ("floor", "service"):
        with tempfile.TemporaryDirectory(prefix="nsa-metadata-callgrind-") as folder:
            counts[name] = under_callgrind(name, folder)
    ratio = counts["service"] / counts["floor"]
    print(
        f"instructions: floor {counts['floor']:,.0f}, service {counts['service']:,.0f}, "
        f"ratio {bound(ratio, 1.3, at_most=True)}"
    )


def under_callgrind(name, folder):
    command = {
        "floor": [harness.program("tests/bench", "transport_floor")],
        "service": [
            harness.program("server", "nsa-metadata-server"),
            "--backend=cpu",
            "--listen=127.0.0.1:0",
            *harness.FREE_PORTS,
        ],
    }[name]
    out = Path(folder, "out")
    server = harness.Server("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}", *command)
    bench(server.address, duration_s=2)
    switch(server, "on")
    calls = bench(server.address, duration_s=5)
    switch(server, "off")
    server.stop()
    total = int(re.search(r"^totals: (\d+)$", out.read_text(), re.MULTILINE)[1])
    # The warm-up's calls are counted too, at the same rate.
    return total / (calls["requests"] * (5 + 0.3) / 5)


def switch(server, how):
    subprocess.run(["callgrind_control", "-i", how, str(server.process.pid)], check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="*", default=["refusals", "memory", "instructions"])
    flags = parser.parse_args()
    print(harness.machine())
    if "refusals" in flags.parts:
        refusals(flags.rounds)
    if "memory" in flags.parts:
        memory()
    if "instructions" in flags.parts:
        instructions()


if __name__ == "__main__":
    main()
