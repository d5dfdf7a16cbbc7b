"""The CPU backend beside memset: one core, the same, touched memory."""

import json
import subprocess

import harness
from harness import Table, bound


def main():
    command = [harness.program("tests/bench", "cpu_backend"), "--benchmark_format=json", "--benchmark_repetitions=9",
               "--benchmark_enable_random_interleaving=true", "--benchmark_report_aggregates_only=true",
               "--benchmark_min_time=0.05"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    medians = {run["run_name"]: run["cpu_time"] / 1e3 for run in json.loads(done.stdout)["benchmarks"]
               if run["aggregate_name"] == "median"}
    print(f"{harness.machine()}, one of them; two outputs; medians of 9 interleaved runs\n")
    table = Table("tokens", "mean length", "expand us", "memset us", "ratio")
    for name, us in medians.items():
        function, mean, tokens = name.split("/")
        if function == "Expand":
            floor = medians[f"Memset/{mean}/{tokens}"]
            ratio = us / floor
            table.row(f"{int(tokens):,}", f"{int(mean):,}", us, floor, bound(ratio, 1.25, at_most=True) if int(mean) >= 64 else ratio)


if __name__ == "__main__":
    main()
