"""What ends a connection: age, idleness, silence; and what it may carry at once."""

import socket
import time

import hyperframe.frame as h2
import pytest
from hpack import Encoder

from programs import Server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2.SettingsFrame(0).serialize()


def connect(server):
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=15)


def frames_until_closed(peer):
    """All frames that come, answering pings, until the server closes."""
    received, frames = b"", []
    while True:
        data = peer.recv(65_536)
        if not data:
            return frames
        received += data
        while len(received) >= 9:
            new, size = h2.Frame.parse_frame_header(memoryview(received[:9]))
            if len(received) < 9 + size:
                break
            new.parse_body(memoryview(received[9 : 9 + size]))
            received = received[9 + size :]
            frames.append(new)
            if isinstance(new, h2.PingFrame) and "ACK" not in new.flags:
                peer.sendall(h2.PingFrame(0, new.opaque_data, flags=["ACK"]).serialize())


def test_a_connection_that_says_nothing_is_closed():
    with Server("--handshake_timeout=300ms") as server, connect(server) as peer:
        assert peer.recv(65_536) != b"", "the server's settings"
        while peer.recv(65_536):
            pass


@pytest.mark.parametrize("flag", ["--max_connection_age=300ms", "--max_connection_idle=300ms"])
def test_an_old_or_idle_connection_is_told_to_go_and_closed(flag):
    with Server(flag) as server, connect(server) as peer:
        peer.sendall(PREFACE)
        frames = frames_until_closed(peer)
        assert any(isinstance(f, h2.GoAwayFrame) for f in frames), frames


def test_a_call_on_an_old_connection_has_the_grace_to_end(pb):
    flags = ["--max_connection_age=200ms", "--max_connection_age_grace=300ms"]
    with Server(*flags) as server, connect(server) as peer:
        # A stream that nothing comes on: it would last for longer.
        path = "/nsa.metadata.v1.MetadataService/ExpandStream"
        fields = [(":method", "POST"), (":scheme", "http"), (":authority", "test"), (":path", path)]
        fields += [("te", "trailers"), ("content-type", "application/grpc")]
        headers = h2.HeadersFrame(1, Encoder().encode(fields), flags=["END_HEADERS"])
        begin = time.monotonic()
        peer.sendall(PREFACE + headers.serialize())
        frames_until_closed(peer)
        lasted = time.monotonic() - begin
        assert lasted >= 0.3, f"closed after {lasted:.2f} s: the call had no grace"


def test_a_connection_is_told_how_many_calls_it_may_carry():
    with Server("--max_streams_per_connection=7", "--handshake_timeout=300ms") as server, connect(server) as peer:
        peer.sendall(PREFACE)
        received = b""
        while len(received) < 9 or len(received) < 9 + int.from_bytes(received[:3], "big"):
            received += peer.recv(65_536)
        settings, size = h2.Frame.parse_frame_header(memoryview(received[:9]))
        settings.parse_body(memoryview(received[9 : 9 + size]))
        assert settings.settings[h2.SettingsFrame.MAX_CONCURRENT_STREAMS] == 7
