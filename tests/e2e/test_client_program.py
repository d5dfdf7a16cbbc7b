"""The nsa-metadata program against the real server, and against a server that lies."""

import concurrent.futures
import contextlib
import json
import re
import socket

import grpc
import numpy as np
import pytest

from calls import SERVICE
from programs import TRACES, Server, eventually, run
from reference import MODES, OUTPUTS, expand

REQUEST = ["--extend_seq_lens", "3,2", "--seq_lens", "10,4", "--mode", "causal"]
SMALL_TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:46.6905900,0,3
2023-11-16 18:15:47.9951690,396,109
2023-11-16 18:15:48.0000000,8000,1
2023-11-16 18:16:01.3241180,879,55
"""


@pytest.fixture
def nsa_metadata(client_program):
    """Runs the program with these arguments."""

    def call(*arguments, timeout_s=60):
        return run(client_program, *arguments, timeout_s=timeout_s)

    return call


@pytest.fixture
def small_trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(SMALL_TRACE)
    return path


@pytest.fixture
def nobody():
    """An address on which nobody answers: bound, so that nobody else takes it, and not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@contextlib.contextmanager
def lying_server(pb):
    """A server of grpcio's whose answers have one wrong value; yields its address."""

    def lie(request, _):
        mode = next(name for name, number in MODES.items() if number == request.mode)
        right = expand(request.extend_seq_lens, request.seq_lens, request.nsa_index_topk, mode)
        values = {name: right[name].tolist() for name in OUTPUTS[:2]}
        values["nsa_cache_seqlens"][-1] += 1
        return pb.ExpandResponse(
            request_id=request.request_id, total_tokens=sum(request.extend_seq_lens), mode=request.mode, **values
        )

    methods = {
        "Expand": grpc.unary_unary_rpc_method_handler(
            lie, pb.ExpandRequest.FromString, pb.ExpandResponse.SerializeToString
        ),
        "GetServerInfo": grpc.unary_unary_rpc_method_handler(
            lambda *_: pb.GetServerInfoResponse(),
            pb.GetServerInfoRequest.FromString,
            pb.GetServerInfoResponse.SerializeToString,
        ),
    }
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_expand_prints_a_table(nsa_metadata, server):
    asked = ["--outputs", "seqlens_expanded,positions,cu_seqlens_q", "--verify"]
    done = nsa_metadata("expand", "--target", server.address, *REQUEST, *asked)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows == [
        ["t", "batch", "seqlens_expanded", "positions"],
        ["0", "0", "8", "7"],
        ["1", "0", "9", "8"],
        ["2", "0", "10", "9"],
        ["3", "1", "3", "2"],
        ["4", "1", "4", "3"],
        ["cu_seqlens_q:", "0", "3", "5"],
    ]


@pytest.mark.parametrize("mode", MODES)
def test_expand_prints_json(nsa_metadata, server, mode):
    lengths = ["--extend_seq_lens", "3,1,4,0", "--seq_lens", "10,7,12,0", "--nsa_index_topk", "8"]
    asked = ["--outputs", "all", "--timing", "--json", "--verify"]
    done = nsa_metadata("expand", "--target", server.address, *lengths, "--mode", mode.lower(), *asked)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    expected = expand([3, 1, 4, 0], [10, 7, 12, 0], 8, mode)
    assert {name: answer[name] for name in OUTPUTS} == {name: expected[name].tolist() for name in OUTPUTS}
    assert (answer["total_tokens"], answer["mode"]) == (8, f"SEQUENCE_MODE_{mode}")
    assert answer["timing"]["batch_requests"] == 1


def test_wrong_bytes_end_with_one(nsa_metadata, pb, small_trace):
    with lying_server(pb) as address:
        done = nsa_metadata("expand", "--target", address, *REQUEST, "--verify")
        assert done.returncode == 1, done.stderr
        assert "wrong: nsa_cache_seqlens[4]: got 5, want 4" in done.stderr
        unverified = nsa_metadata("expand", "--target", address, *REQUEST)
        assert unverified.returncode == 0, unverified.stderr
        replayed = nsa_metadata("replay", "--target", address, "--trace", small_trace, "--verify", "--json")
        assert replayed.returncode == 1, replayed.stderr
        tally = json.loads(replayed.stdout)
        assert tally["wrong"] == tally["ok"] == tally["requests"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["juggle"],
        ["expand", "--seq_lens", "1", "--mode", "causal"],
        ["expand", "--extend_seq_lens", "1,two", "--seq_lens", "1", "--mode", "causal"],
        ["expand", "--extend_seq_lens", "1", "--seq_lens", "1", "--mode", "sideways"],
        ["expand", *REQUEST, "--outputs", "nothing"],
        ["replay"],
        ["replay", "--trace", "/nowhere/trace.csv"],
        ["health", "--nonsense"],
    ],
    ids=" ".join,
)
def test_a_usage_error_ends_with_two(nsa_metadata, arguments):
    done = nsa_metadata(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr


def test_a_trace_that_is_none_ends_with_two_and_names_the_line(nsa_metadata, server, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(SMALL_TRACE + "2023-11-16 18:16:02.0000000,many,1\n")
    done = nsa_metadata("replay", "--target", server.address, "--trace", path)
    assert done.returncode == 2, done.stderr
    assert re.search(rf"{path}.*\b7\b", done.stderr), done.stderr


def test_an_unreachable_server_ends_with_three(nsa_metadata, nobody, small_trace):
    for arguments in (["expand", *REQUEST], ["replay", "--trace", small_trace], ["health"]):
        done = nsa_metadata(*arguments, "--target", nobody)
        assert done.returncode == 3, f"{arguments}: {done.stderr}"
        assert "UNAVAILABLE" in done.stderr


def test_a_refusal_ends_with_four_and_tells_reason_field_value_and_limit(nsa_metadata, server):
    refused = ["--extend_seq_lens", "3,2", "--seq_lens", "10,-4", "--mode", "repeat"]
    done = nsa_metadata("expand", "--target", server.address, *refused)
    assert done.returncode == 4, done.stderr
    assert "NEGATIVE_LENGTH" in done.stderr and "seq_lens[1] is -4" in done.stderr
    done = nsa_metadata("expand", "--target", server.address, *refused, "--json")
    assert done.returncode == 4, done.stderr
    error = json.loads(done.stdout)["error"]
    told = {name: error[name] for name in ("code", "reason", "field", "value", "limit")}
    assert told == {
        "code": "INVALID_ARGUMENT",
        "reason": "NEGATIVE_LENGTH",
        "field": "seq_lens[1]",
        "value": -4,
        "limit": 0,
    }


def test_refused_steps_of_a_replay_end_with_four(nsa_metadata, small_trace):
    with Server("--max_tokens=1000") as server:
        done = nsa_metadata("replay", "--target", server.address, "--trace", small_trace, "--json")
        assert done.returncode == 4, done.stderr
        tally = json.loads(done.stdout)
        assert tally["refused"] == {"TOO_MANY_TOKENS": 1}, "the step with the context of 8000"
        assert tally["ok"] == tally["requests"] - 1


def test_a_deadline_ends_with_five(nsa_metadata):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        for arguments in (["expand", *REQUEST], ["health"]):
            done = nsa_metadata(*arguments, "--target", target, "--timeout", "100ms")
            assert done.returncode == 5, f"{arguments}: {done.stderr}"
            assert "DEADLINE_EXCEEDED" in done.stderr


@pytest.mark.parametrize("service", ["", "nsa.metadata.v1.MetadataService"], ids=["whole server", "service"])
@pytest.mark.parametrize("port", ["health_address", "address"])
def test_health_says_serving(nsa_metadata, server, port, service):
    done = nsa_metadata("health", "--target", getattr(server, port), "--service", service)
    assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr


def test_health_of_an_unknown_service_ends_with_four(nsa_metadata, server):
    done = nsa_metadata("health", "--target", server.health_address, "--service", "nsa.Nothing", "--json")
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "NOT_FOUND"


def test_health_of_a_draining_server_ends_with_three(nsa_metadata):
    with Server("--batch_delay=3s") as server:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            call = threads.submit(nsa_metadata, "expand", "--target", server.address, *REQUEST)
            eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 1, "the call is in flight")
            server.terminate()
            server.wait_for_log("draining")
            done = nsa_metadata("health", "--target", server.health_address)
            assert (done.returncode, done.stdout) == (3, "NOT_SERVING\n"), done.stderr
            assert call.result().returncode == 0, call.result().stderr
        assert server.wait() == 0, server.log


def test_doctor_starts_servers_without_the_environments_settings(client_program):
    settings = {"LOG_FORMAT": "json", "TLS_CERTIFICATE": "/nowhere", "TLS_KEY": "/nowhere", "MAX_TOKENS": "1"}
    env = {f"NSA_METADATA_{name}": value for name, value in settings.items()}
    done = run(client_program, "doctor", "--requests=1", "--json", env=env, timeout_s=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [finding["name"] for finding in json.loads(done.stdout)["findings"]][:2] == ["reference", "cpu"]


def test_doctor_names_a_folder_for_temporary_files_that_is_not_there(client_program):
    done = run(client_program, "doctor", "--requests=1", env={"TMPDIR": "/nowhere/at/all"})
    assert done.returncode == 2, done.stderr
    assert "TMPDIR is /nowhere/at/all: " in done.stderr


def test_unix_socket_targets_are_reached(nsa_metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "s"
    if len(str(path)) > 100:
        pytest.skip(f"{path} is too long for a socket")
    with Server(listen=f"unix:{path}") as server:
        done = nsa_metadata("expand", "--target", server.address, *REQUEST, "--verify")
        assert done.returncode == 0, done.stderr


def replay(nsa_metadata, server, trace, *more, timeout_s=60):
    """The tally of a verified replay, which has to end with 0; checked against the server's own counts."""
    before = server.settled_metrics()
    done = nsa_metadata(
        "replay", "--target", server.address, "--trace", trace, "--verify", "--json", *more, timeout_s=timeout_s
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tally = json.loads(done.stdout)
    assert tally["verified"] is True
    assert (tally["wrong"], tally["differences"], tally["refused"], tally["errors"]) == (0, [], {}, {})
    assert tally["ok"] == tally["requests"] >= tally["steps"] > 0
    after = server.settled_metrics()
    for name, counted in (("batch_requests", "requests"), ("batch_tokens", "tokens")):
        served = after.total(f"nsa_metadata_{name}_sum") - before.total(f"nsa_metadata_{name}_sum")
        assert served == tally[counted], f"{counted} that the server computed"
    return tally


def steps_of(trace):
    """How many steps a trace has, by its own reading: in each 20 ms, one that decodes if an invocation is running, and
    one that prefills if one arrives. A token is generated in 30 ms."""
    step, token = 200_000, 300_000  # in the timestamps' 100 ns
    times, _, generated = np.loadtxt(trace, delimiter=",", skiprows=1, dtype=str, unpack=True)
    arrivals = np.array([f"{time}00" for time in times], dtype="datetime64[ns]").astype(np.int64) // 100
    arrivals -= arrivals.min()
    ends = arrivals + generated.astype(np.int64) * token
    prefill = arrivals // step
    last_decode = (ends - 1) // step
    begun = np.zeros(max(prefill.max(), last_decode.max()) + 3, dtype=np.int64)
    runs = last_decode > prefill
    np.add.at(begun, prefill[runs] + 1, 1)
    np.add.at(begun, last_decode[runs] + 1, -1)
    return np.count_nonzero(np.cumsum(begun)) + np.unique(prefill).size


@pytest.mark.parametrize("mode", MODES)
def test_a_small_trace_is_replayed_without_a_wrong_byte(nsa_metadata, server, small_trace, mode):
    tally = replay(nsa_metadata, server, small_trace, "--mode", mode.lower(), "--in_flight", "16")
    again = replay(nsa_metadata, server, small_trace, "--mode", mode.lower(), "--in_flight", "1")
    assert again["steps"] == tally["steps"] and again["tokens"] == tally["tokens"], "the same seed, the same requests"
    assert tally["steps"] == steps_of(small_trace)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["azure_llm_2023_code.csv", "azure_llm_2023_conv.csv"])
def test_a_recorded_trace_is_replayed_without_a_wrong_byte(nsa_metadata, server, name):
    trace = TRACES / name
    if not trace.exists():
        pytest.skip(f"{trace} is not there; NSA_METADATA_TRACES names its folder")
    tally = replay(nsa_metadata, server, trace, "--in_flight", "64", timeout_s=1800)
    assert tally["steps"] == steps_of(trace)
