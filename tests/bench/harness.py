"""Starts servers, puts them under load, and keeps the medians: a figure is a ratio within one round of runs that follow
each other, the median over the rounds, because machines are shared and drift."""

import atexit
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("NSA_METADATA_BUILD", REPOSITORY / "build" / "release"))
# An installed tree (tests/gpu/package.sh) has all programs in bin/.
INSTALLED = (BUILD / "bin").is_dir()
SERVING = re.compile(r"serving: grpc=([^,\s]+)(?:,(\S+))?(?:.* metrics=(\S+))?")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
FREE_PORTS = ["--health_listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0"]


def program(folder, name):
    return BUILD / "bin" / name if INSTALLED else BUILD / folder / name


CLIENT = program("client", "nsa-metadata")


class Server:
    """A program that prints where it serves; from construction to stop(). Its addresses: TCP, and a Unix socket's."""

    def __init__(self, *command, cores=None):
        pinned = ["taskset", "--cpu-list", cores] if cores else []
        command = [*pinned, *map(str, command)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := SERVING.search(line):
                self.address, self.unix_address, self.metrics_address = found.groups()
                break
        else:
            sys.exit(f"did not start: {' '.join(command)}")
        # What it says later goes nowhere, and must not fill the pipe.
        subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)
        atexit.register(self.process.kill)

    def cpu_s(self):
        """Processor seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def resident_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def service(*flags, unix=None, cores=None, backend="cpu"):
    listen = "127.0.0.1:0" + (f",unix:{unix}" if unix else "")
    return Server(
        program("server", "nsa-metadata-server"),
        f"--listen={listen}",
        *FREE_PORTS,
        f"--backend={backend}",
        *flags,
        cores=cores,
    )


def floor(reply_bytes, *flags, unix=None, cores=None):
    listen = "127.0.0.1:0" + (f",unix:{unix}" if unix else "")
    flags = [f"--listen={listen}", f"--reply_bytes={reply_bytes}", *flags]
    return Server(program("tests/bench", "transport_floor"), *flags, cores=cores)


def _json_of(command, timeout_s=300):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    result = json.loads(done.stdout)
    assert result["wrong"] == 0 and result["ok"] > 0, result
    return result


def bench(address, duration_s=2, **flags):
    """What `nsa-metadata bench` measured; every reply was right."""
    more = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    timing = [f"--duration={duration_s}s", "--warm_up=300ms", "--json"]
    return _json_of([CLIENT, "bench", f"--target={address}", *timing, *more])


def h2load(address, duration_s=2, **flags):
    """The same by h2load."""
    more = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    script = Path(__file__).with_name("h2load.py")
    return _json_of([sys.executable, script, f"--target={address}", f"--duration={duration_s}", *more])


def rounds_of(runs, rounds):
    """{name: [result a round]} of {name: function}, one after another in each round."""
    results = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            results[name].append(run())
    return results


def ratios(results, of, to, value):
    """`value` of a round's `of` over that of its `to`, for each round."""
    return [value(mine) / value(theirs) for mine, theirs in zip(results[of], results[to])]


def median(values):
    return statistics.median(values)


def throughput(result):
    return result["calls_per_s"]


def latency(name):
    return lambda result: result["latency_us"][name]


def machine():
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}"


class Table:
    """Lines of Markdown, printed as they come and kept."""

    def __init__(self, *columns):
        self.lines = []
        self.row(*columns)
        self.row(*["---"] * len(columns))

    def row(self, *cells):
        line = "| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.3g}" for cell in cells) + " |"
        print(line, flush=True)
        self.lines.append(line)

    def __str__(self):
        return "\n".join(self.lines) + "\n"


def bound(value, limit, at_most):
    """"0.98 (≥ 0.95)", with "missed" where it does not hold."""
    holds = value <= limit if at_most else value >= limit
    return f"{value:.2f} ({'≤' if at_most else '≥'} {limit}{'' if holds else ', missed'})"
