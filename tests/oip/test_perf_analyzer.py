"""Triton's perf_analyzer, unmodified: its two ways of load, the server's part of its report, and its random data."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from programs import REPOSITORY, Server

pytestmark = [pytest.mark.perf_analyzer, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot")]

PROGRAM = Path(__file__).parent / "perf_analyzer.sh"
ROOT = REPOSITORY / "build" / "trixie-perf-analyzer-2.60.0"
STEADY = ["--measurement-interval=1000", "--stability-percentage=999", "--max-trials=5"]


@pytest.fixture(scope="module")
def server():
    with Server("--backend=cpu") as running:
        yield running


def perf_analyzer(server, *flags):
    command = [PROGRAM, "-m", "nsa_metadata_causal", "-i", "grpc", "-u", server.address, *flags]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def data(server):
    perf_analyzer(server, "--version")  # makes the folder
    # So many that they take more than a microsecond, which is what the columns count in.
    lengths = {"extend_seq_lens": [100] * 200, "seq_lens": [4_000] * 200, "nsa_index_topk": [2048]}
    step = {name: {"content": values, "shape": [len(values)]} for name, values in lengths.items()}
    (ROOT / "tmp").mkdir(exist_ok=True)
    (ROOT / "tmp" / "data.json").write_text(json.dumps({"data": [step]}))
    return "--input-data=/tmp/data.json"


@pytest.mark.parametrize("load", ["--concurrency-range=4", "--request-rate-range=200"])
def test_it_measures_a_load_and_the_servers_part_of_it(server, data, load):
    ran = perf_analyzer(server, data, load, *STEADY)
    assert ran.returncode == 0, ran.stdout + ran.stderr
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
    ran = perf_analyzer(server, "--shape=extend_seq_lens:4", "--shape=seq_lens:4", *STEADY)
    assert ran.returncode != 0
    # Half of all int32s are negative.
    assert re.search(r"error: (extend_seq_lens|seq_lens)\[\d\] is -\d+, less than 0", ran.stdout + ran.stderr), ran.stdout + ran.stderr
    status, _ = server.get("/healthz")
    assert status == 200
