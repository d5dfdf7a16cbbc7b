"""nsa-metadata bench against the real server and against the transport's floor."""

import contextlib
import json
import re
import subprocess

import pytest

from programs import BUILD, CLIENT, Server, run

FLOOR = BUILD / "tests" / "bench" / "transport_floor"
BRIEF = ["--duration", "300ms", "--warm_up", "0s", "--json"]


def bench(target, *flags, timeout_s=60):
    """The measurement, which has to have ended well."""
    done = run(CLIENT, "bench", "--target", target, *BRIEF, *flags, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def floor(*flags):
    """The address of a transport_floor."""
    process = subprocess.Popen([FLOOR, *flags], stderr=subprocess.PIPE, text=True)
    try:
        yield re.search(r"grpc=(\S+)", process.stderr.readline())[1]
    finally:
        process.terminate()
        assert process.wait(10) == 0


def computed(server):
    """The requests that the server has computed; a batch is counted before its answers are sent."""
    return server.metrics().total("nsa_metadata_batch_requests_sum")


@pytest.mark.parametrize(
    "load",
    [
        ["--in_flight=1"],
        ["--in_flight=64", "--channels=4"],
        ["--in_flight=64", "--channels=4", "--streams=4"],
        ["--in_flight=16", "--rate=500"],
        ["--in_flight=16", "--rate=500", "--streams=1"],
        ["--in_flight=8", "--timing"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("reply_bytes", [142, 65536, 1 << 20])
def test_every_reply_is_right_and_counted_as_the_server_counts(server, load, reply_bytes):
    before = computed(server)
    measured = bench(server.address, f"--reply_bytes={reply_bytes}", *load)
    after = computed(server)
    assert measured["wrong"] == 0 and measured["requests"] == measured["ok"] > 0
    assert 0.9 * reply_bytes < measured["reply_bytes"] <= reply_bytes
    if "--timing" in load:
        assert measured["stages_us"]["device"] > 0
    # A closed loop's last requests end after the measured time.
    beyond = 0 if "--rate=500" in load else 64
    assert 0 <= after - before - measured["requests"] <= beyond


def test_replies_in_chunks_are_put_together_and_verified(server):
    measured = bench(server.address, "--reply_bytes=5000000", "--streams=1", "--in_flight=2")
    assert measured["wrong"] == 0 and measured["ok"] > 0
    assert measured["reply_bytes"] > 4_900_000


def test_it_measures_over_a_unix_socket(tmp_path):
    with Server(listen=f"unix:{tmp_path}/socket") as server:
        assert bench(server.address, "--in_flight=8")["ok"] > 0


@pytest.mark.parametrize("streams", [0, 2])
@pytest.mark.parametrize("reply_bytes", [142, 4096, 1 << 20])
def test_the_floor_answers_what_the_service_would(streams, reply_bytes):
    with floor(f"--reply_bytes={reply_bytes}") as address:
        measured = bench(
            address, f"--reply_bytes={reply_bytes}", "--in_flight=16", "--channels=2", f"--streams={streams}"
        )
    assert measured["wrong"] == 0 and measured["ok"] > 0


def test_it_says_when_the_replies_take_more_than_half_of_the_servers_memory(server):
    flags = ["--reply_bytes=1048576", "--in_flight=192", "--channels=2"]
    done = run(CLIENT, "bench", "--target", server.address, *BRIEF, *flags, timeout_s=60)
    assert "more than half of the server's output_budget_bytes 268435456" in done.stderr
