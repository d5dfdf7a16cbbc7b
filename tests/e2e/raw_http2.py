"""HTTP/2 spoken frame by frame, for what no gRPC library would send or leave unread."""

import socket
import struct

import h2.config
import h2.connection
import h2.events
import h2.settings

from calls import EXPAND


def frame(message, compressed=False):
    """A gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(message)) + message


class Answer:
    """What a call's stream has brought so far."""

    def __init__(self):
        self.headers = {}
        self.data = bytearray()
        self.ended = False

    @property
    def status(self):
        return int(self.headers["grpc-status"])


class RawConnection:
    """One connection, used by one thread. window: how many bytes a stream may send us before we open it further."""

    def __init__(self, address, window=65_535, timeout_s=20):
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self._h2.initiate_connection()
        self._answers = {}
        self._host = address
        self._flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def call(self, body, headers=(), path=EXPAND, content_type="application/grpc", method="POST", end=True):
        """Sends a request, unless its stream is answered before, and that it ends there; returns the stream's number."""
        stream = self._h2.get_next_available_stream_id()
        self._answers[stream] = Answer()
        fixed = [(":method", method), (":scheme", "http"), (":path", path), (":authority", self._host)]
        grpc_headers = [("content-type", content_type), ("te", "trailers")]
        self._h2.send_headers(stream, [*fixed, *grpc_headers, *headers])
        self._flush()
        rest = memoryview(body)
        while rest and not self._answers[stream].ended:
            size = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(rest))
            if size == 0:
                self._receive()
                continue
            self._h2.send_data(stream, rest[:size].tobytes())
            rest = rest[size:]
            self._flush()
        if end and not self._answers[stream].ended:
            self._h2.end_stream(stream)
            self._flush()
        return stream

    def open_window(self, stream, size):
        """Lets the stream send `size` bytes more."""
        self._h2.increment_flow_control_window(size)
        self._h2.increment_flow_control_window(size, stream)
        self._flush()

    def take(self, stream, size):
        """Lets the stream send `size` bytes more and waits for them, or for its end."""
        answer = self._answers[stream]
        wanted = len(answer.data) + size
        self.open_window(stream, size)
        while len(answer.data) < wanted and not answer.ended:
            self._receive()
        return answer

    def answer(self, stream):
        """Waits for the end of the stream."""
        while not self._answers[stream].ended:
            self._receive()
        return self._answers[stream]

    def wait_for_headers(self, stream):
        while not self._answers[stream].headers:
            self._receive()

    def _flush(self):
        self._socket.sendall(self._h2.data_to_send())

    def _receive(self):
        received = self._socket.recv(65_536)
        assert received, "the server closed the connection"
        for event in self._h2.receive_data(received):
            assert not isinstance(event, h2.events.ConnectionTerminated), f"the server ended the connection: {event}"
            answer = self._answers.get(getattr(event, "stream_id", None))
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                answer.headers.update((_text(name), _text(value)) for name, value in event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.data += event.data
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                answer.ended = True
        self._flush()


def _text(value):
    return value.decode() if isinstance(value, bytes) else value
