"""Readers that don't read, and streams that nothing comes on."""

import contextlib
import socket
import threading
import time

import grpc
import pytest

import wire
from calls import TIMEOUT_S, channel, refusal_of
from programs import Server, eventually
from raw_http2 import RawConnection, frame
from reference import assert_right

# Far over what a window of 0 lets out.
REPLY = {"extend_seq_lens": [100_000], "seq_lens": [100_000], "nsa_index_topk": 2048}
SMALL = {"extend_seq_lens": [3, 2], "seq_lens": [10, 4], "nsa_index_topk": 2048}


def blocks_in_use(server):
    return server.metrics().total("nsa_metadata_output_blocks_in_use")


def test_a_reply_that_nobody_reads_is_given_up(stubs, pb):
    with Server("--write_stall_timeout=1s") as server, RawConnection(server.address, window=0) as reader:
        stream = reader.call(frame(pb.ExpandRequest(**REPLY).SerializeToString()))
        reader.wait_for_headers(stream)
        assert blocks_in_use(server) > 0
        reader.answer(stream)  # its end: a reset
        eventually(lambda: blocks_in_use(server) == 0, "the blocks are back")
        eventually(
            lambda: server.metrics().by("stage", "nsa_metadata_cancelled_total") == {"send": 1}, "it is counted"
        )


def test_a_streams_answer_that_nobody_reads_ends_the_stream(stubs, pb):
    with Server("--write_stall_timeout=1s") as server, RawConnection(server.address, window=0) as reader:
        message = pb.ExpandStreamRequest(expand=pb.ExpandRequest(**REPLY))
        stream = reader.call(
            frame(message.SerializeToString()), path="/nsa.metadata.v1.MetadataService/ExpandStream"
        )
        reader.answer(stream)
        eventually(lambda: blocks_in_use(server) == 0, "the blocks are back")
        assert server.metrics().by("grpc_code", "grpc_server_handled_total") == {"Canceled": 1}
        assert server.metrics().by("stage", "nsa_metadata_cancelled_total") == {"send": 1}
        assert server.metrics().total("nsa_metadata_item_seconds_count") == 1


@pytest.mark.parametrize("room", [64, 9], ids=["room for others", "no room for others"])
def test_an_answer_that_is_taken_chunk_by_chunk_in_time_is_given_up_only_where_others_need_its_room(pb, room):
    flags = ["--write_stall_timeout=2s", "--max_reply_bytes=8388608", f"--output_budget_bytes={room << 20}", "--caller_share=1"]
    with Server("--backend=cpu", *flags) as server, RawConnection(server.address, window=0) as reader:
        # 7.6 MB in eight chunks, of which 1.3 MB a second are taken.
        item = pb.ExpandRequest(extend_seq_lens=[950_000], seq_lens=[1], nsa_index_topk=2048)
        message = pb.ExpandStreamRequest(expand=item).SerializeToString()
        stream = reader.call(frame(message), path="/nsa.metadata.v1.MetadataService/ExpandStream")
        begin = time.monotonic()
        while not (answer := reader.take(stream, 1 << 18)).ended:
            time.sleep(0.2)
        took = time.monotonic() - begin
        if room == 64:
            assert len(answer.data) > 7_600_000 and answer.status == 0
            assert took > 4, "it took no longer than a reply may wait for its reader"
        else:
            assert len(answer.data) < 7_600_000, "it was sent to its end"
        eventually(lambda: blocks_in_use(server) == 0, "the blocks are back")
        ended = {} if room == 64 else {"send": 1}
        assert server.metrics().by("stage", "nsa_metadata_cancelled_total") == ended


def open_wide(peer, pb):
    """Asks for a reply of 800 KB with a window that takes all of it at once."""
    most = (1 << 31) - 1
    opened = wire.PREFACE + wire.settings(most) + wire.window_update(0, most - 65_535)
    peer.sendall(opened + wire.call(1, pb.ExpandRequest(**REPLY).SerializeToString()))


def test_a_connection_whose_peer_reads_a_few_bytes_a_second_is_ended(pb):
    with Server("--write_stall_timeout=1s") as server:
        with contextlib.closing(wire.connect(server.address, receive_buffer=4096)) as reader:
            open_wide(reader, pb)
            reader.settimeout(TIMEOUT_S)
            eventually(lambda: blocks_in_use(server) > 0, "the reply is under way")
            with contextlib.suppress(ConnectionResetError):
                while reader.recv(256):
                    time.sleep(0.05)
        eventually(lambda: blocks_in_use(server) == 0, "the blocks are back")
        assert server.metrics().total("nsa_metadata_connections_ended_total", reason="stalled") == 1


def test_a_unix_connection_whose_peer_stops_reading_is_ended(pb, tmp_path):
    path = tmp_path / "socket"
    with Server("--write_stall_timeout=1s", listen=f"127.0.0.1:0,unix:{path}") as server:
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(path))
            open_wide(reader, pb)
            eventually(lambda: server.metrics().total("nsa_metadata_connections_ended_total", reason="stalled") == 1, "it is ended")
            eventually(lambda: blocks_in_use(server) == 0, "the blocks are back")


def test_a_connection_that_is_read_slowly_but_steadily_is_not_ended(stubs, pb):
    with Server("--write_stall_timeout=500ms") as server:
        with contextlib.closing(wire.connect(server.address, receive_buffer=65_536)) as reader:
            open_wide(reader, pb)
            reader.settimeout(TIMEOUT_S)
            taken, begin = 0, time.monotonic()
            # Some 300 KB a second, so that bytes are on their way all the time and for longer than the timeout.
            while taken < 800_000:
                got = len(reader.recv(15_000))
                assert got, f"it was ended after {taken} bytes"
                taken += got
                time.sleep(0.05)
            assert time.monotonic() - begin > 1
        assert server.metrics().total("nsa_metadata_connections_ended_total", reason="stalled") == 0


class Feed:
    """Messages for a stream, one at a time, until it is closed."""

    def __init__(self):
        self._messages, self._ready = [], threading.Condition()

    def put(self, message):
        with self._ready:
            self._messages.append(message)
            self._ready.notify()

    def __iter__(self):
        return self

    def __next__(self):
        with self._ready:
            while not self._messages:
                self._ready.wait()
            message = self._messages.pop(0)
        if message is None:
            raise StopIteration
        return message


def test_a_stream_that_nothing_comes_on_is_ended_and_says_why(stubs, pb):
    with Server("--stream_idle_timeout=300ms") as server, channel(server.address) as on:
        feed = Feed()
        answers = stubs.rpc.MetadataServiceStub(on).ExpandStream(feed, timeout=TIMEOUT_S)
        request = pb.ExpandRequest(**SMALL)
        feed.put(pb.ExpandStreamRequest(expand=request))
        assert_right(next(answers).expansion, request, "REPEAT")
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        feed.put(None)
        refusal = refusal_of(ended.value)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DEADLINE")
        assert "stream_idle_timeout, 300ms" in refusal.message
        assert server.metrics().by("grpc_code", "grpc_server_handled_total") == {"Unavailable": 1}


def test_a_stream_whose_item_is_in_flight_is_not_idle(stubs, pb):
    with Server("--stream_idle_timeout=300ms", "--batch_delay=1s") as server, channel(server.address) as on:
        feed = Feed()
        answers = stubs.rpc.MetadataServiceStub(on).ExpandStream(feed, timeout=TIMEOUT_S)
        request = pb.ExpandRequest(**SMALL)
        for _ in range(2):
            feed.put(pb.ExpandStreamRequest(expand=request))
            assert_right(next(answers).expansion, request, "REPEAT")
        feed.put(None)


def test_a_reply_that_is_read_late_arrives_whole_though_the_server_drains_meanwhile(stubs, pb):
    # The kernel takes all of it, and the reader less: the rest waits in the server's socket.
    request = pb.ExpandRequest(extend_seq_lens=[50_000], seq_lens=[50_000], nsa_index_topk=2048)
    with Server() as server, contextlib.closing(wire.Connection(server.address, keep=True)) as reader:
        stream = reader.start(request.SerializeToString())
        eventually(lambda: server.metrics().total("grpc_server_handled_total") == 1, "the reply is the kernel's")
        server.terminate()
        server.wait_for_log("no new connections")
        time.sleep(0.5)  # what a drain that didn't wait for the reader would take
        assert wire.run_until([reader], lambda: reader.statuses, timeout_s=10)
        assert reader.statuses == {stream: 0}
        assert_right(pb.ExpandResponse.FromString(bytes(reader.bodies[stream][5:])), request, "REPEAT")
        assert server.wait() == 0, server.log


def test_a_watch_that_takes_nothing_does_not_hold_up_the_drain():
    with Server("--backend=cpu", "--drain_timeout=5m", "--lame_duck=0") as server, RawConnection(server.address, window=0) as stuck:
        stuck.wait_for_headers(stuck.call(frame(b""), path="/grpc.health.v1.Health/Watch"))
        server.terminate()
        assert server.wait() == 0, server.log
