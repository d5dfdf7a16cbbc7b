"""What Nsight Compute counts of the kernel that the plan takes, beside a write of as many bytes: on a machine with a GPU and ncu,
NSA_METADATA_BUILD=INSTALLED tests/bench/gpu_counters.py [SEQUENCES MEAN OUTPUTS …]. Prints a table."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

# Those whose figures are missed, see results/2026-11-25-2-cores-profile.md.
SHAPES = "256 16384 2 1024 4096 2 4096 1024 2 16384 256 2 65536 64 2 65536 64 9 65536 16 2 65536 4 2".split()
STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
COLUMNS = {
    "us": "gpu__time_duration.sum",
    "instructions of warps": "smsp__inst_executed.sum",
    "of the issue slots %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "a warp's cycles an instruction: a load": STALLED.format("long_scoreboard"),
    "a dependency": STALLED.format("wait"),
    "shared memory, shuffles": STALLED.format("short_scoreboard"),
    "stores in flight": STALLED.format("mio_throttle"),
    "MB/s to DRAM": "dram__bytes_write.sum.per_second",
    "registers": "launch__registers_per_thread",
    "blocks": "launch__grid_size",
}


def counted(shapes):
    metrics = ",".join(COLUMNS.values())
    lines = "\n".join(" ".join(shapes[i : i + 3]) for i in range(0, len(shapes), 3))
    program = Path(os.environ["NSA_METADATA_BUILD"]) / "bin/gpu_step"
    ncu = ["ncu", "--clock-control=none", "--cache-control=none", "--csv", "--page=raw", "--print-units=base", f"--metrics={metrics}"]
    done = subprocess.run([*ncu, program, "once"], input=lines, capture_output=True, text=True, check=True)
    table = [line for line in done.stdout.splitlines() if line.startswith('"')]
    return [row for row in csv.DictReader(table) if row["Kernel Name"]]


def value(row, metric):
    number = float(row[metric].replace(",", ""))
    if metric.startswith("gpu__time"):
        number /= 1e3
    if metric.endswith("per_second"):
        number /= 1e6
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def main():
    shapes = sys.argv[1:] or SHAPES
    print("| sequences | mean | outputs | kernel |", " | ".join(COLUMNS), "|")
    print("| --- " * (4 + len(COLUMNS)) + "|")
    for i, row in enumerate(counted(shapes)):
        shape = shapes[i // 2 * 3 : i // 2 * 3 + 3]
        name = re.search(r"Fill|Tile|Binary|Rows|Linear", row["Kernel Name"])[0]
        print("|", " | ".join([*shape, "write" if name == "Fill" else name.lower(), *(value(row, m) for m in COLUMNS.values())]), "|")


if __name__ == "__main__":
    main()
