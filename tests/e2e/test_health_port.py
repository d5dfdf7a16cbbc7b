"""grpc.health.v1 on its own port: what it answers to whom, and what no peer of it can take from the others."""

import itertools
import os
import resource
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import wire
from calls import TIMEOUT_S, channel
from programs import CLIENT, Server, eventually, run
from raw_http2 import RawConnection, frame

MEBIBYTE = 1 << 20
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING = frame(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString())


def status_of(code):
    return code.value[0]


def asked(service):
    return frame(health_pb2.HealthCheckRequest(service=service).SerializeToString())


def answer_of(server, body, **call):
    with RawConnection(server.health_address) as peer:
        return peer.answer(peer.call(body, **{"path": CHECK, **call}))


def test_an_answer_is_one_message_with_its_trailers(server):
    answer = answer_of(server, asked(""))
    assert (bytes(answer.data), answer.status) == (SERVING, 0), answer.headers


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        (asked("nsa.Nothing"), grpc.StatusCode.NOT_FOUND, "no service 'nsa.Nothing' here"),
        (asked("100%\n"), grpc.StatusCode.NOT_FOUND, "no service '100%25%0a' here"),
        (asked("a" * 5_000), grpc.StatusCode.RESOURCE_EXHAUSTED, "more than 4096 bytes"),
        (bytes(8 * MEBIBYTE), grpc.StatusCode.RESOURCE_EXHAUSTED, "more than 4096 bytes"),
        (b"", grpc.StatusCode.INTERNAL, "no message"),
        (asked("")[:3], grpc.StatusCode.INTERNAL, "no message"),
        (asked("") + b"more", grpc.StatusCode.INTERNAL, "not one HealthCheckRequest"),
        (frame(b"\x0a\xff"), grpc.StatusCode.INTERNAL, "not one HealthCheckRequest"),
        (frame(b"", compressed=True), grpc.StatusCode.UNIMPLEMENTED, "compressed"),
    ],
    ids=["unknown service", "a name to be escaped", "a name too long", "8 MiB", "no body", "half a prefix", "more than a message", "no request", "compressed"],
)
def test_what_is_no_request_for_a_known_service_is_refused(server, body, code, says):
    answer = answer_of(server, body)
    assert answer.status == status_of(code), answer.headers
    assert says in answer.headers["grpc-message"]
    assert answer_of(server, asked("")).status == 0, "the next one is answered"


@pytest.mark.parametrize("path", ["/nsa.metadata.v1.MetadataService/Expand", "/", "/" + "a" * 5_000], ids=["Expand", "/", "5,000 characters"])
def test_other_methods_are_unimplemented_on_the_health_port(server, path):
    answer = answer_of(server, asked(""), path=path)
    assert answer.status == status_of(grpc.StatusCode.UNIMPLEMENTED), answer.headers


@pytest.mark.parametrize("content_type", ["application/json", "application/grpc-web"])
def test_what_is_not_grpc_is_an_unsupported_media_type(server, content_type):
    answer = answer_of(server, asked(""), content_type=content_type)
    assert answer.headers[":status"] == "415"


def test_what_is_no_post_is_a_method_not_allowed(server):
    assert answer_of(server, asked(""), method="PUT").headers[":status"] == "405"


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;charset=utf-8"])
def test_grpc_of_any_message_format_is_answered(server, content_type):
    assert answer_of(server, asked(""), content_type=content_type).status == 0


def test_a_long_name_of_what_can_not_be_printed_is_not_found(server):
    with channel(server.health_address) as on:
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(on).Check(health_pb2.HealthCheckRequest(service="\u00fc" * 2_000), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND, caught.value.details()


def test_a_peer_that_speaks_http_1_is_hung_up_on(server):
    with socket.create_connection(server.health_address.rsplit(":", 1), timeout=TIMEOUT_S) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n" * 10)
        while peer.recv(65_536):
            pass
    assert answer_of(server, asked("")).status == 0


def test_watches_and_checks_share_a_connection(server):
    with channel(server.health_address) as on:
        stub = health_pb2_grpc.HealthStub(on)
        names = ["", "nsa.metadata.v1.MetadataService", "nsa.Nothing"]
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S) for name in names]
        serving, unknown = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert [next(watch).status for watch in watches] == [serving, serving, unknown]
        for _ in range(100):
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == serving
        for watch in watches:
            watch.cancel()


def test_more_checks_at_once_than_a_connection_may_have_are_all_answered(server):
    with channel(server.health_address) as on:
        stub = health_pb2_grpc.HealthStub(on)
        checks = [stub.Check.future(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S) for _ in range(500)]
        assert {check.result().status for check in checks} == {health_pb2.HealthCheckResponse.SERVING}


def test_a_probe_is_answered_where_the_process_has_no_descriptor_left():
    with Server("--backend=cpu") as server, RawConnection(server.health_address) as kept:
        assert kept.answer(kept.call(asked(""), path=CHECK)).status == 0
        pid = server.process.pid
        taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(set(range(len(taken) + 1)) - taken), hard))
        assert answer_of(server, asked("")).status == 0, "the one that was there makes room"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert server.metrics().total("nsa_metadata_connections_ended_total", reason="crowded") == 1


def continuations():
    """A header list without end."""
    yield wire.frame(wire.HEADERS, 0, 1, wire.EXPAND)
    yield from itertools.repeat(wire.frame(9, 0, 1, b"\x00\x01a\x01b" * 3_000))


def long_fields():
    """A byte each: references to one of 4,000 bytes in the connection's table."""
    added = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4_000
    for stream in itertools.count(1, 2):
        references = b"\xbe" * 12_000
        yield wire.frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, stream, wire.headers_block(CHECK) + (added if stream == 1 else b"") + references)


def pings():
    """Whose answers are not read."""
    yield from itertools.repeat(wire.frame(wire.PING, 0, 0, bytes(8)) * 1_000)


def resets():
    for stream in itertools.count(1, 2):
        yield wire.call(stream, b"", wire.headers_block(CHECK), end=False) + wire.rst(stream)


def streams():
    """Opened, and left so."""
    block = wire.headers_block(WATCH)
    for first in itertools.count(1, 2_000):
        yield b"".join(wire.frame(wire.HEADERS, wire.END_HEADERS, first + 2 * i, block) for i in range(1_000))


@pytest.mark.parametrize("flood", [continuations, long_fields, pings, resets, streams], ids=lambda flood: flood.__name__)
def test_a_flood_of_the_health_port_is_ended_or_read_no_further_and_probes_are_answered(flood):
    with Server("--backend=cpu") as server, wire.connect(server.health_address) as attacker:
        assert run(CLIENT, "health", f"--target={server.health_address}").returncode == 0
        before = server.memory("VmRSS")
        attacker.settimeout(1)
        attacker.sendall(wire.PREFACE + wire.settings())
        sent = 0
        with pytest.raises(OSError):  # a reset, or a time-out: nothing more is taken
            for piece in flood():
                attacker.sendall(piece)
                sent += len(piece)
                assert sent < 32 * MEBIBYTE, "it was taken without end"
        assert run(CLIENT, "health", f"--target={server.health_address}").returncode == 0
        assert server.memory("VmHWM") - before < 64 * MEBIBYTE


def test_a_readiness_that_changes_is_told_while_another_watch_takes_nothing(stubs, pb):
    with Server("--batch_delay=1s") as server, wire.connect(server.health_address) as stuck:
        # Its window has no room for an answer.
        stuck.sendall(wire.PREFACE + wire.settings(window=0) + wire.call(1, b"", wire.headers_block(WATCH)))
        with channel(server.address) as caller, channel(server.health_address) as on:
            watch = health_pb2_grpc.HealthStub(on).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            request = pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[1], nsa_index_topk=1)
            call = stubs.rpc.MetadataServiceStub(caller).Expand.future(request, TIMEOUT_S)
            eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 1, "the call is in flight")
            server.terminate()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert list(call.result().seqlens_expanded) == [1]
            assert server.wait() == 0, server.log
