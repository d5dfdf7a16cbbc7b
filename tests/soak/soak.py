"""Memory, descriptors and threads of a server under many calls: of log-uniform sizes, 1 % cancelled, 1 % with deadlines
of 1 ms, over connections that are made anew every 10,000 calls. Ends non-zero when they grow, or a reply was wrong."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from programs import BUILD, SERVER, TEST_SERVER, Server, eventually  # noqa: E402

MEBIBYTE = 1 << 20
# The exit code when nothing is wrong but that.
GROWS = 3
LOAD = BUILD / "tests" / "nsa-metadata-soak-load"


def sample(server):
    process = Path(f"/proc/{server.process.pid}")
    return server.memory("VmRSS") / MEBIBYTE, len(os.listdir(process / "fd")), len(os.listdir(process / "task"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="100,000,000 calls instead of 1,000,000")
    parser.add_argument("--leak", type=int, default=0, help="bytes that the server leaks a batch")
    flags = parser.parse_args()
    calls = 100_000_000 if flags.long else 1_000_000
    # A load takes a core, and the server one and a half for it.
    loads = max(1, (os.cpu_count() or 1) // 3) if flags.long else 1
    program, more = (TEST_SERVER, [f"--leak={flags.leak}"]) if flags.leak else (SERVER, ["--backend=cpu"])
    with Server(*more, program=program) as server:
        command = [str(LOAD), f"--target={server.address}", f"--calls={calls // loads}"]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(loads)]
        # What the first has done, the others have too, more or less.
        samples, rest = [], []
        for line in running[0].stdout:
            if line.startswith("done "):
                samples.append((loads * int(line.split()[1]), *sample(server)))
            else:
                rest.append(line.strip())
        for other in running[1:]:
            rest.append(other.communicate()[0].strip().splitlines()[-1])
        ended = sum(load.wait() for load in running)

        def balance():
            metrics = server.metrics()
            lost = [metrics.total(f"nsa_metadata_{name}_total", stage="queue") for name in ("expired", "cancelled")]
            return metrics.total("nsa_metadata_admitted_total") == metrics.total("nsa_metadata_batch_requests_sum") + sum(lost)

        eventually(balance, "admitted = launched + expired + cancelled")
        eventually(lambda: server.metrics().total("nsa_metadata_output_blocks_in_use") == 0, "the blocks are back")

    # Until then the allocator's arenas and gRPC's own pools fill: in the first tenth, or in half of a short run.
    settled = len(samples) // (10 if flags.long else 2)
    done, memory, descriptors, threads = np.array(samples)[settled:].T
    slope = np.polyfit(done, memory, 1)[0] * 10_000_000
    # In short a leak of 5 bytes a call is seen: beside other work the arenas fill later, by up to a MiB.
    grown, bound = (slope, 1.0) if flags.long else (np.median(memory[-10:]) - np.median(memory[:10]), 2.0)
    what = "MiB per 10,000,000 calls" if flags.long else f"MiB over {done[-1] - done[0]:,.0f} calls"
    print(f"{calls:,} calls: {', '.join(rest)}")
    print(f"memory {memory[0]:.1f} to {memory[-1]:.1f} MiB: {grown:+.2f} {what}, {bound:.0f} allowed")
    print(f"descriptors {descriptors.min():.0f} to {descriptors.max():.0f}, threads {threads.min():.0f} to {threads.max():.0f}")
    flat = np.ptp(descriptors) <= 16 and np.ptp(threads) <= 4  # some connections are on their way out
    if ended != 0 or not flat:
        sys.exit("missed")
    if grown > bound:
        print("missed: memory grows", file=sys.stderr)
        sys.exit(GROWS)


if __name__ == "__main__":
    main()
