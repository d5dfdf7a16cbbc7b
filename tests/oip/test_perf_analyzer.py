"""Triton's perf_analyzer, unmodified: the two ways of load of client/README.md, the server's part of its report, and its random data."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from programs import REPOSITORY, Server

pytestmark = [pytest.mark.perf_analyzer, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot")]

PROGRAM = Path(__file__).parent / "perf_analyzer.sh"
ROOT = REPOSITORY / "build" / "trixie-perf-analyzer-2.60.0"
STEADY = ["--measurement-interval=1000", "--stability-percentage=999", "--max-trials=5"]
README = (REPOSITORY / "client" / "README.md").read_text()
(DATA,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
LOADS = re.findall(r"^perf_analyzer .*$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def server():
    with Server("--backend=cpu") as running:
        yield running


def perf_analyzer(*flags):
    return subprocess.run([PROGRAM, *flags], capture_output=True, text=True, timeout=300)


def readmes(load, server, data):
    """Runs a command of the README's with `data` in the file that it names, to an end that comes soon."""
    name, *flags = shlex.split(load.replace("127.0.0.1:50051", server.address))
    assert name == "perf_analyzer" and "--input-data=lengths.json" in flags
    perf_analyzer("--version")  # makes the folder, which is where it runs
    (ROOT / "lengths.json").write_text(data)
    ran = perf_analyzer(*flags, *STEADY)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


def test_the_readme_has_both_ways_of_load():
    assert [load.split()[-1].split("=")[0] for load in LOADS] == ["--concurrency-range", "--request-rate-range"]


@pytest.mark.parametrize("load", LOADS)
def test_the_quick_start_works(load):
    with Server("--backend=cpu") as fresh:
        readmes(load, fresh, DATA)
        handled = fresh.metrics().by("grpc_code", "grpc_server_handled_total", grpc_method="ModelInfer")
    assert handled["OK"] > 100 and set(handled) == {"OK"}


@pytest.mark.parametrize("load", LOADS)
def test_it_measures_a_load_and_the_servers_part_of_it(server, load):
    # So many that they take more than a microsecond, which is what the columns count in.
    lengths = {"extend_seq_lens": [100] * 200, "seq_lens": [4_000] * 200, "nsa_index_topk": [2048]}
    step = {name: {"content": values, "shape": [len(values)]} for name, values in lengths.items()}
    ran = readmes(load, server, json.dumps({"data": [step]}))
    counts = {name: int(re.search(rf"{name} count: (\d+)", ran.stdout)[1]) for name in ("Request", "Inference", "Execution", "Successful request")}
    assert all(count > 100 for count in counts.values()), ran.stdout
    # The server's are asked for while calls are on their way.
    assert abs(counts["Inference"] - counts["Request"]) <= 0.05 * counts["Request"]
    assert counts["Execution"] <= counts["Inference"] == counts["Successful request"]
    columns = re.search(r"Avg request latency: (\d+) usec \(overhead (\d+) usec \+ queue (\d+) usec \+ compute input (\d+) usec \+ compute infer (\d+) usec \+ compute output (\d+) usec", ran.stdout)
    assert columns, ran.stdout
    total, overhead, *servers = map(int, columns.groups())
    assert 0 < sum(servers) < total and overhead < total, ran.stdout


def test_its_random_data_is_refused_with_the_reason(server):
    model = ["-m", "nsa_metadata_causal", "-i", "grpc", "-u", server.address]
    ran = perf_analyzer(*model, "--shape=extend_seq_lens:4", "--shape=seq_lens:4", *STEADY)
    assert ran.returncode != 0
    # Half of all int32s are negative.
    assert re.search(r"error: (extend_seq_lens|seq_lens)\[\d\] is -\d+, less than 0", ran.stdout + ran.stderr), ran.stdout + ran.stderr
    status, _ = server.get("/healthz")
    assert status == 200
