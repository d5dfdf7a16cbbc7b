"""What a call costs the server in processor time, memory and instructions."""

import argparse
import functools
import re
import signal
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


def inference(rounds):
    """ModelInfer beside Expand, the same sequences, one call at a time."""
    server = harness.service()
    for reply_bytes in (142, 65_536):
        load = {"in_flight": 1, "channels": 1, "reply_bytes": reply_bytes}
        runs = {name: functools.partial(h2load, server.address, service=name, **load) for name in ("expand", "inference")}
        got = rounds_of(runs, rounds)
        p50 = harness.latency("p50")
        expand, infer = (median(map(p50, got[name])) for name in ("expand", "inference"))
        ratio = median(ratios(got, "inference", "expand", p50))
        print(f"Open Inference Protocol, {reply_bytes} B: Expand {expand:.0f} us, ModelInfer {infer:.0f} us, ratio {bound(ratio, 1.15, at_most=True)}")
    server.stop()


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
    counts, shares = {}, {}
    for name in ("floor", "service"):
        with tempfile.TemporaryDirectory(prefix="nsa-metadata-callgrind-") as folder:
            counts[name], shares[name] = under_callgrind(name, folder)
    ratio = counts["service"] / counts["floor"]
    print(
        f"instructions: floor {counts['floor']:,.0f}, service {counts['service']:,.0f}, "
        f"ratio {bound(ratio, 1.3, at_most=True)}; of the service's {bound(100 * shares['service'], 2, at_most=True)} % are the metrics'"
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
    return total / (calls["requests"] * (5 + 0.3) / 5), share_of_metrics(out)


def share_of_metrics(out):
    """The part of the instructions in the metrics' own functions and what they call."""
    table = subprocess.run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", out], check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"^ *([\d,]+) \([ \d.]+%\) .*?:nsa::metadata::server::Metrics::(\w+)", table, re.MULTILINE)
    total = re.search(r"^ *([\d,]+) .*PROGRAM TOTALS", table, re.MULTILINE)[1]
    return sum(int(count.replace(",", "")) for count, _ in lines) / int(total.replace(",", ""))


def contention():
    """Two threads under load, looked at 2,000 times a second: how often in the metrics, and there in a lock."""
    server = harness.service("--completion_queues=2")
    with tempfile.TemporaryDirectory(prefix="nsa-metadata-perf-") as folder:
        data = Path(folder, "data")
        what = ["--event=cpu-clock", "--freq=2000", "--call-graph=dwarf,4096", f"--pid={server.process.pid}", f"--output={data}"]
        recording = subprocess.Popen(["perf", "record", "--quiet", *what], stderr=subprocess.DEVNULL)
        bench(server.address, in_flight=64, channels=2, duration_s=5)
        recording.send_signal(signal.SIGINT)
        recording.wait()
        stacks = subprocess.run(["perf", "script", "--input", data, "--fields=ip,sym"], check=True, capture_output=True, text=True).stdout.split("\n\n")
    server.stop()
    # Each stack from its innermost function outwards.
    inner = [re.split(r"nsa::metadata::server::Metrics::", stack)[0] for stack in stacks if "nsa::metadata::server::Metrics::" in stack]
    locked = sum(re.search(r"futex|lll_lock|[Mm]utex|spin", functions) is not None for functions in inner)
    print(f"contention: of {len(stacks):,} looks at two threads {len(inner)} found them in the metrics ({100 * len(inner) / len(stacks):.2f} %), {locked} of these in a lock")


def switch(server, how):
    subprocess.run(["callgrind_control", "-i", how, str(server.process.pid)], check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="*", default=["refusals", "inference", "memory", "instructions", "contention"])
    flags = parser.parse_args()
    print(harness.machine())
    if "refusals" in flags.parts:
        refusals(flags.rounds)
    if "inference" in flags.parts:
        inference(flags.rounds)
    if "memory" in flags.parts:
        memory()
    if "instructions" in flags.parts:
        instructions()
    if "contention" in flags.parts:
        contention()


if __name__ == "__main__":
    main()
