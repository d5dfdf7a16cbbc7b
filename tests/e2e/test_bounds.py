"""What a hostile or careless peer can't take from the server: memory by compression, descriptors by connecting."""

import contextlib
import itertools
import resource
import socket
import threading
import time
import zlib

import grpc
import numpy as np
import pytest

import wire
from calls import TIMEOUT_S, channel
from programs import CLIENT, Server, eventually, run
from raw_http2 import RawConnection, frame
from nsa_metadata import Client
from reference import assert_right

MEBIBYTE = 1 << 20


def varint(value):
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low if value <= 0x7F else low + varint(value >> 7)


def gzip_bomb(inflated):
    """gzip of that many zeros, a thousandth of it long."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(MEBIBYTE)
    parts = [packer.compress(zeros) for _ in range(inflated // MEBIBYTE)]
    return b"".join(parts) + packer.flush()


def test_a_compression_bomb_is_refused_without_being_inflated(server, stubs, pb):
    bomb = frame(gzip_bomb(600 * MEBIBYTE), compressed=True)
    assert 550_000 < len(bomb) < MEBIBYTE, "it passes max_receive_message"
    # What the server needs for any message of that size is there before the measurement.
    lengths = [0] * 60_000
    with channel(server.address) as on:
        large = pb.ExpandRequest(extend_seq_lens=lengths, seq_lens=lengths, nsa_index_topk=1)
        for _ in range(10):
            stubs.rpc.MetadataServiceStub(on).Expand(large, timeout=TIMEOUT_S)

    for attempt in range(5):
        server.reset_peak_memory()
        before = server.memory("VmRSS")
        with RawConnection(server.address) as peer:
            answer = peer.answer(peer.call(bomb, headers=[("grpc-encoding", "gzip")]))
        assert answer.status == grpc.StatusCode.UNIMPLEMENTED.value[0], answer.headers
        grown = server.memory("VmHWM") - before
        assert grown <= 4 * MEBIBYTE, f"attempt {attempt} raised the server's memory by {grown / MEBIBYTE:.1f} MiB"


def test_messages_that_are_refused_are_not_held_against_their_connection(stubs, pb):
    # Of each kind twice as much as all connections together may send without asking anything.
    sent = 8 * MEBIBYTE
    too_large = pb.ExpandRequest(extend_seq_lens=range(250_000), seq_lens=range(250_000))
    compressed = pb.ExpandRequest(extend_seq_lens=np.random.default_rng(1).integers(0, 1 << 30, 100_000))
    with Server("--backend=cpu", "--max_undelivered_bytes=4194304") as server, channel(server.address) as on:
        stub = stubs.rpc.MetadataServiceStub(on)
        for request, compression, code in (
            (too_large, None, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (compressed, grpc.Compression.Gzip, grpc.StatusCode.UNIMPLEMENTED),
        ):
            for _ in range(0, sent, request.ByteSize()):
                with pytest.raises(grpc.RpcError) as unary:
                    stub.Expand(request, timeout=TIMEOUT_S, compression=compression)
                items = iter([pb.ExpandStreamRequest(expand=request)])
                with pytest.raises(grpc.RpcError) as stream:
                    list(stub.ExpandStream(items, timeout=TIMEOUT_S, compression=compression))
                assert [unary.value.code(), stream.value.code()] == [code, code], (unary.value, stream.value)
        assert server.metrics().total("nsa_metadata_connections_ended_total", reason="undelivered") == 0


@pytest.mark.parametrize("headers", [[], [("grpc-encoding", "identity")]], ids=["no encoding", "identity"])
def test_a_compressed_message_without_its_encoding_is_refused(server, headers):
    with RawConnection(server.address) as peer:
        answer = peer.answer(peer.call(frame(gzip_bomb(MEBIBYTE), compressed=True), headers))
    assert answer.status != 0, "it was taken as if it were plain"


def test_many_connections_to_the_health_port_keep_no_probe_and_no_caller_waiting(stubs, pb):
    most, flood = 100, 1_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    try:
        with Server("--backend=cpu") as server, contextlib.ExitStack() as stack:
            descriptors = server.descriptors()
            for _ in range(flood):
                stack.enter_context(wire.connect(server.health_address))
            assert run(CLIENT, "health", f"--target={server.health_address}").returncode == 0
            with channel(server.address) as on:
                stubs.rpc.MetadataServiceStub(on).Expand(pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[1], nsa_index_topk=1), timeout=TIMEOUT_S)
            eventually(lambda: server.descriptors() <= descriptors + most + 20, "the others' descriptors are closed")
            crowded = server.metrics().total("nsa_metadata_connections_ended_total", reason="crowded")
            assert flood - most <= crowded <= flood - most + 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_metadata_that_are_named_again_do_not_pay_for_what_is_sent_beside_them():
    # In HPACK's table after the first call: each of them takes a byte from there on.
    named_again = [("x-filler", "f" * 900)] * 60
    unfinished = frame(bytes(MEBIBYTE))[:-1]
    with Server("--backend=cpu", "--max_undelivered_bytes=4194304") as server, RawConnection(server.address) as attacker:
        with pytest.raises((OSError, AssertionError), match="reset|pipe|the server (closed|ended) the connection"):
            end = time.monotonic() + TIMEOUT_S
            for i in itertools.count():
                assert time.monotonic() < end, "it holds what it likes"
                if i < 64:
                    attacker.call(unfinished, end=False)
                for _ in range(20):
                    attacker.answer(attacker.call(b"", headers=named_again, path="/no.such/Method"))
        ended = "nsa_metadata_connections_ended_total"
        eventually(lambda: server.metrics().total(ended, reason="undelivered") == 1, "the end is counted")


@pytest.mark.parametrize("path", ["/nsa.metadata.v1.MetadataService/GetServerInfo", "/inference.GRPCInferenceService/ServerLive"])
def test_a_question_whose_answer_nobody_takes_holds_no_request(path):
    # A field that the server does not know.
    value = bytes(MEBIBYTE - 100)
    body = frame(b"\x7a" + varint(len(value)) + value)
    with Server("--backend=cpu") as server, RawConnection(server.address, window=0) as peer:

        def ask(times):
            for _ in range(times):
                peer.wait_for_headers(peer.call(body, path=path))

        ask(5)
        server.reset_peak_memory()
        before = server.memory("VmRSS")
        ask(40)
        grown = server.memory("VmHWM") - before
        assert grown <= 16 * MEBIBYTE, f"40 calls raised the server's memory by {grown / MEBIBYTE:.1f} MiB"


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_health_call_with_too_much_metadata_is_refused(server, method):
    with RawConnection(server.address) as peer:
        answer = peer.answer(peer.call(frame(b""), headers=[("x-filler", "f" * 9_000)], path=f"/grpc.health.v1.Health/{method}"))
    assert answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0], answer.headers
    assert "max_metadata_bytes" in answer.headers["grpc-message"]


def test_a_stream_whose_refusals_nobody_reads_is_read_no_further(stubs, pb):
    items, most = 64, 8
    with Server("--backend=cpu") as server, RawConnection(server.address, window=0) as peer, channel(server.address) as on:

        def refused():
            return server.metrics().total("nsa_metadata_refused_total")

        stream = peer.call(frame(b"") * items, path=f"{wire.SERVICE}/ExpandStream")
        eventually(lambda: refused() >= most, "some are refused")
        request = pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[1], nsa_index_topk=1)
        for _ in range(20):
            stubs.rpc.MetadataServiceStub(on).Expand(request, timeout=TIMEOUT_S)
        assert refused() == most

        peer.open_window(stream, MEBIBYTE)
        assert peer.answer(stream).status == 0
        eventually(lambda: refused() == items, "the others are refused when these are read")


def test_a_connection_that_sends_much_and_asks_nothing_is_ended_and_another_serves_on(stubs, pb):
    most = 4 * MEBIBYTE
    continuation, small_fields = 9, b"\x00\x01a\x01b" * 3_000
    with Server(f"--max_undelivered_bytes={most}") as server, SteadyClient(server.address, stubs) as client:

        def ended():
            return server.metrics().total("nsa_metadata_connections_ended_total", reason="undelivered")

        with wire.connect(server.address) as attacker:
            # A header list without end.
            attacker.sendall(wire.PREFACE + wire.settings() + wire.frame(wire.HEADERS, 0, 1, wire.EXPAND))
            sent = 0
            with pytest.raises(OSError):  # a reset
                while sent < 64 * most:
                    attacker.sendall(wire.frame(continuation, 0, 1, small_fields))
                    sent += len(small_fields)
        eventually(lambda: ended() == 1, "the end is counted")
        calls = client.calls
        eventually(lambda: client.calls > calls + 100, "the other connection is served")
        assert client.failure is None
        eventually(lambda: server.metrics().total("nsa_metadata_undelivered_bytes") < most / 4, "nothing is held against those left")
        # Much that is requests is not held against its connection.
        lengths = [1 << 20] * 100_000  # 300 KB each way of it
        with channel(server.address) as on:
            stub = stubs.rpc.MetadataServiceStub(on)
            for _ in range(40):
                with pytest.raises(grpc.RpcError) as refused:
                    stub.Expand(pb.ExpandRequest(extend_seq_lens=lengths, seq_lens=lengths, nsa_index_topk=1), timeout=TIMEOUT_S)
                assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, refused.value
        assert ended() == 1


def test_a_stream_that_waits_is_not_held_to_send_much_and_ask_nothing():
    # Twice as much as max_undelivered_bytes, of which the service reads 128 KiB every 50 ms.
    lengths = np.ones(1 << 14, np.int32)
    with Server("--backend=cpu", "--max_stream_inflight=1", "--batch_delay=50ms", "--max_undelivered_bytes=4194304") as server:
        with Client(server.address, max_attempts=1) as client, client.open_stream() as stream:
            sent = [stream.send(lengths, lengths, nsa_index_topk=1, mode="causal", timeout=TIMEOUT_S) for _ in range(64)]
            assert [future.result().total_tokens for future in sent] == [len(lengths)] * len(sent)
        assert server.metrics().total("nsa_metadata_connections_ended_total", reason="undelivered") == 0


@pytest.fixture
def many_descriptors():
    """Lets this process open two thousand sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 2000)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may open {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class SteadyClient:
    """Makes one call after another on a connection of its own, in a thread, and keeps the first that fails."""

    def __init__(self, address, stubs):
        self._channel = channel(address)
        self._stub = stubs.rpc.MetadataServiceStub(self._channel)
        self._request = stubs.pb.ExpandRequest(extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=2048)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0
        self.failure = None

    def __enter__(self):
        self._thread.start()
        self.serve_more()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._channel.close()

    def serve_more(self):
        """Waits until it has been answered ten times more."""
        wanted = self.calls + 10
        eventually(lambda: self.calls >= wanted or self.failure, "the client connected before is served")
        assert self.failure is None, f"call {self.calls} of the client connected before failed: {self.failure!r}"

    def _run(self):
        try:
            while not self._stop.is_set():
                response = self._stub.Expand(self._request, timeout=5)
                assert_right(response, self._request, "REPEAT")
                self.calls += 1
        except Exception as failure:  # for the test to tell
            self.failure = failure


def is_closed(peer):
    """Whether the server has closed a connection on which it has nothing to answer."""
    try:
        # An accepted connection gets HTTP/2 settings, a refused one nothing.
        return peer.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def is_closed_or_welcome(peer):
    """Whether the server has closed a connection, or has said its settings."""
    try:
        peer.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_a_thousand_connections_over_few_descriptors_are_outlived(stubs, pb, many_descriptors):
    with Server(nofile=128) as server, SteadyClient(server.address, stubs) as before:
        limit = server.metrics().total("nsa_metadata_limit", name="max_connections")
        assert limit < 128
        host, port = server.address.split(":")
        peers = [socket.create_connection((host, int(port)), timeout=10) for _ in range(1000)]
        try:
            least = 1000 - (limit - 1)
            eventually(lambda: sum(map(is_closed, peers)) >= least, f"{least:.0f} of the connections are refused")
            before.serve_more()
            refused = sum(map(is_closed, peers))
            counted = server.metrics().total("nsa_metadata_connections_refused_total")
            assert counted == refused, "connections refused are counted"
            assert server.metrics().total("nsa_metadata_connections") <= limit
        finally:
            for peer in peers:
                peer.close()

        start = time.monotonic()
        with channel(server.address) as on:
            request = pb.ExpandRequest(extend_seq_lens=[4], seq_lens=[9], nsa_index_topk=5)
            response = stubs.rpc.MetadataServiceStub(on).Expand(request, timeout=5, wait_for_ready=True)
        took = time.monotonic() - start
        assert_right(response, request, "REPEAT")
        assert took < 1, f"a new client had to wait {took:.2f} s"
        before.serve_more()


def test_a_server_without_descriptors_refuses_and_serves_those_connected(stubs, pb, many_descriptors):
    # More connections are allowed than there are descriptors for: nothing is left to accept, or to look at the metrics, with.
    with Server("--max_connections=1000", nofile=128) as server, SteadyClient(server.address, stubs) as before:
        host, port = server.address.split(":")
        peers = [socket.create_connection((host, int(port)), timeout=10) for _ in range(1000)]
        try:
            eventually(lambda: all(map(is_closed_or_welcome, peers)), "each connection is taken or refused")
            before.serve_more()
            refused = sum(map(is_closed, peers))
            assert refused >= 1000 - 128
        finally:
            for peer in peers:
                peer.close()
        eventually(lambda: server.descriptors() < 64, "the descriptors are back")
        begin = time.monotonic()
        with channel(server.address) as on:
            request = pb.ExpandRequest(extend_seq_lens=[4], seq_lens=[9], nsa_index_topk=5)
            assert_right(stubs.rpc.MetadataServiceStub(on).Expand(request, timeout=5, wait_for_ready=True), request, "REPEAT")
        took = time.monotonic() - begin
        assert took < 1, f"a new client had to wait {took:.2f} s"
        assert server.metrics().total("nsa_metadata_connections_refused_total") == refused, "connections refused are counted"


def test_connections_over_max_connections_are_refused_and_counted(stubs):
    with Server("--max_connections=3") as server, SteadyClient(server.address, stubs) as before:
        host, port = server.address.split(":")
        peers = [socket.create_connection((host, int(port)), timeout=10) for _ in range(10)]
        try:
            eventually(lambda: sum(map(is_closed, peers)) == 8, "8 of 10 are refused beside the 3 that fit")
            assert server.metrics().total("nsa_metadata_connections_refused_total") == 8
            assert server.metrics().total("nsa_metadata_connections") == 3
            before.serve_more()
        finally:
            for peer in peers:
                peer.close()
        eventually(lambda: server.metrics().total("nsa_metadata_connections") == 1, "closed connections are forgotten")


@pytest.mark.parametrize("timeout", ["99999999H", "2562048H", "99999999n"])
def test_a_timeout_beyond_any_clock_is_as_good_as_none(server, pb, timeout):
    """A caller's largest timeouts are more nanoseconds than 64 bits hold."""
    with RawConnection(server.address) as connection:
        request = pb.ExpandRequest(extend_seq_lens=[1], seq_lens=[1], nsa_index_topk=1)
        stream = connection.call(frame(request.SerializeToString()), headers=[("grpc-timeout", timeout)])
        status = connection.answer(stream).status
    assert status == 0
    assert server.process.poll() is None, server.log
