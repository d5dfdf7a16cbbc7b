"""nsa-metadata-server as whoever operates it sees it: flags, exit codes, signals, sockets."""

import os
import re
import socket
import sys
import tempfile
import threading
from pathlib import Path

import grpc
import pytest

import wire
from calls import TIMEOUT_S, channel, refused
from programs import CLIENT, REPOSITORY, SERVER, Server, eventually, run, tool
from reference import assert_right

FREE_PORTS = ["--listen=127.0.0.1:0", "--health_listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0"]


def small(pb):
    return pb.ExpandRequest(extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=2048)


def assert_serves(address, stubs):
    with channel(address) as on:
        request = small(stubs.pb)
        assert_right(stubs.rpc.MetadataServiceStub(on).Expand(request, timeout=TIMEOUT_S), request, "REPEAT")


def max_tokens(server, stubs):
    with channel(server.address) as on:
        info = stubs.rpc.MetadataServiceStub(on).GetServerInfo(stubs.pb.GetServerInfoRequest(), timeout=TIMEOUT_S)
    return info.limits.max_tokens


@pytest.fixture
def folder():
    """A folder whose name is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="nsa-") as made:
        yield Path(made)


def test_version_is_printed():
    done = run(SERVER, "--version")
    assert done.returncode == 0
    assert re.fullmatch(r"nsa-metadata-server \d+\.\d+\.\d+\n", done.stdout)


def test_calls_in_flight_at_sigterm_are_all_answered(stubs, pb):
    # The delay keeps the calls in flight; a drain takes no shorter because of it.
    with Server("--batch_delay=1s") as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        calls = [stub.Expand.future(small(pb), TIMEOUT_S) for _ in range(50)]
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 50, "50 calls are in flight")
        server.terminate()
        server.wait_for_log("draining for up to 30s")
        assert not any(call.done() for call in calls), "they were still in flight"
        for call in calls:
            assert_right(call.result(), small(pb), "REPEAT")
        assert server.wait() == 0, server.log
        assert re.search(r"\bdrained\n", server.log)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_call_that_comes_at_the_end_of_a_drain_may_be_tried_elsewhere(stubs, folder, kind):
    """Calls come one after another, until one isn't answered: UNAVAILABLE is tried again by callers, CANCELLED is not."""
    ends, serving = [], threading.Barrier(17)

    def call_on(address):
        with channel(address) as on:
            stub = stubs.rpc.MetadataServiceStub(on)
            stub.Expand(small(stubs.pb), timeout=TIMEOUT_S)
            serving.wait(TIMEOUT_S)
            try:
                while True:
                    stub.Expand(small(stubs.pb), timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                ends.append(f"{error.code()} {error.details()}")

    for _ in range(3):
        with Server("--backend=cpu", listen=f"127.0.0.1:0,unix:{folder}/socket") as server:
            address = server.address if kind == "tcp" else f"unix:{folder}/socket"
            callers = [threading.Thread(target=call_on, args=(address,)) for _ in range(16)]
            for caller in callers:
                caller.start()
            serving.wait(TIMEOUT_S)
            server.terminate()
            for caller in callers:
                caller.join()
            assert server.wait() == 0, server.log
            assert "some calls take longer" not in server.log
    assert len(ends) == 48
    assert [end for end in ends if not end.startswith("StatusCode.UNAVAILABLE")] == []


def test_a_drain_says_its_steps_in_order(stubs):
    with Server("--lame_duck=2s", "--drain_timeout=7s") as server:
        server.terminate()
        server.wait_for_log("not ready; serving on for 2s")
        assert_serves(server.address, stubs)
        assert server.wait() == 0, server.log
    steps = ["signal 15", "not ready; serving on for 2s", "no new connections; draining for up to 7s", "drained"]
    places = [server.log.find(step) for step in steps]
    assert -1 not in places and places == sorted(places), server.log


def test_sigint_drains_too():
    with Server() as server:
        server.process.send_signal(2)
        assert server.wait() == 0, server.log
        assert "draining" in server.log


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--max_tokens=0", "--max_tokens=0 must be from 1"),
        ("--max_tokens=-1", "--max_tokens=-1 must be from 1"),
        ("--max_sequences=99999999999", "--max_sequences=99999999999 must be from 1 to"),
        ("--max_unary_reply_bytes=67108865", "--max_unary_reply_bytes=67108865 must be from 1024 to 67108864"),
        ("--output_budget_bytes=1000", "--output_budget_bytes=1000 must be from"),
        ("--max_tokens=8388608", "must be from 8388608 to 1073741824: at least --max_tokens"),
        ("--max_queue_requests=0", "--max_queue_requests=0 must be from 1"),
        ("--max_rpc_duration=0", "--max_rpc_duration=0 must be from 1ms"),
        ("--batch_delay=-1s", "--batch_delay=-1s must be from 0"),
        ("--lanes=65", "--lanes=65 must be from 0 to 64"),
        ("--cpu_below_tokens=-1", "--cpu_below_tokens=-1 must be from 0"),
        ("--lame_duck=-1s", "--lame_duck=-1s must be from 0"),
        ("--kernel=quantum", "--kernel=quantum must be adaptive, threshold, linear, binary, rows or tile"),
        ("--listen=nonsense", "--listen.*nonsense"),
        ("--listen=127.0.0.1:70000", "--listen.*127.0.0.1:70000"),
        ("--listen=0.0.0.0:0", "--listen=0.0.0.0:0 is not loopback.*--allow_plaintext"),
        ("--listen=127.0.0.1:0,[::]:0", r"--listen=\[::\]:0 is not loopback"),
        ("--health_listen=nonsense", "--health_listen.*nonsense"),
        ("--metrics_listen=unix:/tmp/metrics", "--metrics_listen=unix:/tmp/metrics"),
        ("--backend=foo", "--backend=foo must be auto, cuda, cpu or reference"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(flag, told):
    done = run(SERVER, *FREE_PORTS, flag)
    assert done.returncode == 1, done.stderr
    assert re.search(told, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--max_tokens=many", ["max_tokens", "many"]),
        ("--batch_delay=soon", ["batch_delay", "soon"]),
        ("--reflection=perhaps", ["reflection", "perhaps"]),
        ("--nonsense=1", ["nonsense"]),
        ("stray", ["stray"]),
    ],
)
def test_an_argument_that_cannot_be_read_is_refused_by_name(flag, told):
    done = run(SERVER, *FREE_PORTS, flag)
    assert all(part in done.stderr for part in told), done.stderr
    assert done.returncode == 1, done.stderr


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a CUDA device")
def test_without_a_device_cuda_is_refused_and_auto_serves_from_the_cpu_and_says_why(stubs):
    done = run(SERVER, *FREE_PORTS, "--backend=cuda")
    assert done.returncode == 1, done.stderr
    reasons = ["this build has no CUDA", "cudaErrorInsufficientDriver", "cudaErrorNoDevice"]
    told = [reason for reason in reasons if reason in done.stderr]
    assert "--backend=cuda: " in done.stderr and told, done.stderr
    with Server() as server:
        assert_serves(server.address, stubs)
        assert "computing on the CPU" in server.log and told[0] in server.log, server.log


def test_plaintext_on_every_address_needs_only_to_be_allowed(stubs):
    with Server("--allow_plaintext", listen="0.0.0.0:0") as server:
        assert server.address.startswith("0.0.0.0:")
        assert_serves(server.address.replace("0.0.0.0", "127.0.0.1"), stubs)


def test_a_setting_in_the_environment_is_honoured(stubs, pb):
    with Server(env={"NSA_METADATA_MAX_TOKENS": "4"}) as server, channel(server.address) as on:
        assert max_tokens(server, stubs) == 4
        refusal = refused(stubs.rpc.MetadataServiceStub(on).Expand, small(pb))
        assert (refusal.reason, refusal.value, refusal.limit) == ("TOO_MANY_TOKENS", 5, 4)


def test_the_command_line_beats_the_environment(stubs):
    with Server("--max_tokens=9", env={"NSA_METADATA_MAX_TOKENS": "4"}) as server:
        assert max_tokens(server, stubs) == 9


@pytest.mark.parametrize("value", ["many", "0"])
def test_a_bad_setting_in_the_environment_is_refused_by_name(value):
    done = run(SERVER, *FREE_PORTS, env={"NSA_METADATA_MAX_TOKENS": value})
    assert done.returncode == 1, done.stderr
    assert re.search(f"max_tokens={value}", done.stderr, re.IGNORECASE), done.stderr


def test_a_flag_file_is_read(stubs, tmp_path):
    flags = tmp_path / "flags"
    flags.write_text("# Small.\n--max_tokens=7\n--reflection\n")
    with Server(f"--flagfile={flags}") as server:
        assert max_tokens(server, stubs) == 7


@pytest.mark.parametrize("said", [["--flagfile={}"], ["-flagfile={}"], ["--flagfile", "{}"], []], ids=["=", "-", "apart", "environment"])
def test_a_flag_file_that_includes_itself_is_named(tmp_path, said):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(f"--max_tokens=7\n -flagfile={second}\n")
    second.write_text(f"--flagfile={first}\n")
    environment = {} if said else {"NSA_METADATA_FLAGFILE": str(first)}
    done = run(SERVER, *(word.format(first) for word in said), "--version", env=environment)
    assert (done.returncode, done.stderr) == (1, f"--flagfile={first} includes itself\n")


@pytest.mark.parametrize("line", ["-", " --", "--=7", "-="])
def test_a_flag_file_with_a_flag_without_a_name_is_refused(tmp_path, line):
    flags = tmp_path / "flags"
    flags.write_text(f"--max_tokens=7\n{line}\n")
    done = run(SERVER, f"--flagfile={flags}", "--version")
    assert (done.returncode, done.stderr) == (1, f"--flagfile={flags} has a line without a flag's name\n")


def test_flags_may_come_from_a_pipe():
    done = run("bash", "-c", f"{SERVER} --flagfile=<(echo --max_tokens=7x) --version")
    assert done.returncode == 1
    assert "max_tokens" in done.stderr


def test_spoilt_flag_files_are_read_or_refused():
    done = run(sys.executable, REPOSITORY / "tests" / "fuzz" / "flag_file.py", "--files=200", timeout_s=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("flag", ["listen", "health_listen", "metrics_listen"])
def test_a_port_in_use_is_named(flag):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        done = run(SERVER, *FREE_PORTS, f"--{flag}={address}")
    assert done.returncode == 1, done.stderr
    assert re.search(rf"error cannot listen on {address}\b", done.stderr), done.stderr


@pytest.mark.parametrize("attribute", ["address", "health_address", "metrics_address"])
def test_a_second_server_can_not_share_a_port(attribute):
    with Server() as server:
        flag = attribute.replace("address", "listen")
        done = run(SERVER, *FREE_PORTS, f"--{flag}={getattr(server, attribute)}")
        assert done.returncode == 1, done.stderr
        assert getattr(server, attribute) in done.stderr


def test_it_listens_wherever_a_listen_flag_says(tmp_path, stubs, pb):
    sockets = [f"unix:{tmp_path}/{name}" for name in ("first", "second")]
    request = pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[1], nsa_index_topk=1)
    with Server(*(f"--listen={address}" for address in sockets)) as server:
        for address in sockets:
            with channel(address) as on:
                assert stubs.rpc.MetadataServiceStub(on).Expand(request, timeout=TIMEOUT_S).seqlens_expanded == [1], server.log



def test_a_tcp_and_a_unix_listener_both_serve(stubs, folder):
    path = folder / "socket"
    with Server(listen=f"127.0.0.1:0,unix:{path}") as server:
        tcp, unix = server.addresses
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", tcp)
        assert unix == f"unix:{path}"
        assert_serves(tcp, stubs)
        assert_serves(unix, stubs)
    assert not path.exists(), "the socket's file is still there after a clean exit"


def test_two_tcp_listeners_both_serve(stubs):
    with Server(listen="127.0.0.1:0,127.0.0.2:0") as server:
        assert len(server.addresses) == 2
        for address in server.addresses:
            assert_serves(address, stubs)


def test_an_ipv6_listener_serves(stubs):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with Server(listen="[::1]:0") as server:
        assert re.fullmatch(r"\[::1\]:[1-9]\d*", server.address)
        assert_serves(server.address, stubs)


def test_a_stale_socket_file_is_replaced(stubs, folder):
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as earlier:
        earlier.bind(str(path))
    assert path.is_socket(), "the file outlives its socket"
    with Server(listen=f"unix:{path}") as server:
        assert_serves(server.address, stubs)


def test_a_socket_in_use_is_left_alone(stubs, folder):
    path = folder / "socket"
    with Server(listen=f"unix:{path}") as server:
        done = run(SERVER, *FREE_PORTS, f"--listen=unix:{path}")
        assert done.returncode == 1, done.stderr
        assert f"cannot listen on unix:{path}" in done.stderr
        assert_serves(server.address, stubs)


def test_a_file_that_is_no_socket_is_left_alone(folder):
    path = folder / "precious"
    path.write_text("keep")
    done = run(SERVER, *FREE_PORTS, f"--listen=unix:{path}")
    assert done.returncode == 1, done.stderr
    assert f"cannot listen on unix:{path}" in done.stderr
    assert path.read_text() == "keep"


@pytest.mark.parametrize("program", [SERVER, CLIENT], ids=lambda path: path.name)
def test_programs_are_hardened(program):
    headers = run(tool("readelf"), "--file-header", "--program-headers", "--dynamic", "--wide", program).stdout
    assert re.search(r"Type:\s+DYN \(Position-Independent Executable file\)", headers)
    assert "GNU_RELRO" in headers
    assert re.search(r"\(FLAGS_1\)\s+Flags: NOW PIE", headers)
    assert re.search(r"GNU_STACK .* RW +0x", headers), "the stack can't be executed"
    assert not re.search(r" LOAD .* RWE ", headers), "nothing is both written and executed"
    assert re.findall(r"\(R(?:UN)?PATH\) .*\[(.*)\]", headers) == ["$ORIGIN/../lib"], "an empty entry is the folder that it is called in"
    symbols = run(tool("readelf"), "--dyn-syms", "--wide", program).stdout
    assert "__stack_chk_fail" in symbols
    assert "__fprintf_chk" in symbols, "calls that write to buffers know their sizes"


def test_a_strangers_bytes_reach_the_log_as_text_on_one_line_and_not_too_often():
    spoilt = wire.headers_block(wire.SERVICE + "/Expand", [("te", b"x\xe3\n\x1b[31mred")])
    with Server() as server:
        with wire.connect(server.address) as peer:
            peer.sendall(wire.PREFACE + wire.settings())
            peer.sendall(b"".join(wire.call(1 + 2 * i, b"", spoilt) for i in range(90)))
            server.wait_for_log(r"gRPC: .*x\\xe3\\n\\x1b\[31mred")
        server.stop()
        lines = server.log.splitlines()
        assert all(line.isascii() and line.isprintable() for line in lines), lines
        assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in lines), lines
        assert sum("gRPC: " in line for line in lines) <= 30, "ten a second"
