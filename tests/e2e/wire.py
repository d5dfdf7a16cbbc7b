"""HTTP/2 as prepared bytes over plain sockets: thousands of connections, and floods, from one thread."""

import selectors
import socket
import struct
import time

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
SERVICE = "/nsa.metadata.v1.MetadataService"
INITIAL_WINDOW_SIZE = 4
CANCEL = 8


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(window=65_535):
    return frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))


def window_update(stream, size):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def rst(stream):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def headers_block(path, more=()):
    """The same bytes every time: nothing of it goes into the connection's table."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"), *more]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields], huffman=False)


EXPAND = headers_block(f"{SERVICE}/Expand")
EXPAND_STREAM = headers_block(f"{SERVICE}/ExpandStream")


def message(body):
    """A gRPC message with its prefix."""
    return struct.pack(">BI", 0, len(body)) + body


def call(stream, body, block=EXPAND, end=True):
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM if end else 0, stream, message(body))


def connect(address, source=None, receive_buffer=None):
    host, port = address.rsplit(":", 1)
    peer = socket.socket()
    if receive_buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source:
        peer.bind((source, 0))
    peer.connect((host, int(port)))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


class Connection:
    """A connection whose answers are looked at: counts each stream's end by its grpc-status, and keeps messages.

    keep: whether to keep the messages' bytes.
    """

    def __init__(self, address, source=None, window=(1 << 31) - 1, keep=False):
        self.peer = connect(address, source)
        self.peer.sendall(PREFACE + settings(window) + window_update(0, (1 << 31) - 1 - 65_535))
        self.peer.setblocking(False)
        self.next_stream = 1
        self.statuses = {}  # of ended streams: grpc-status, or "reset"
        self.started = {}  # when each open stream was started
        self.latencies = []  # (seconds, status)
        self.bodies = {}
        self.closed = False
        self._keep = keep
        self._decoder = hpack.Decoder()
        self._received = bytearray()
        self._unsent = bytearray()

    def start(self, body, **more):
        """Sends a call; returns its stream."""
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.started[stream] = time.monotonic()
        self.send(call(stream, body, **more))
        return stream

    def send(self, data):
        self._unsent += data
        self.flush()

    def flush(self):
        try:
            while self._unsent:
                del self._unsent[: self.peer.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    def receive(self):
        """Takes what is there, without waiting."""
        try:
            while data := self.peer.recv(1 << 16):
                self._received += data
                if len(data) < 1 << 16:
                    break
            else:
                self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        at = 0
        while len(self._received) - at >= 9:
            size = int.from_bytes(self._received[at : at + 3], "big")
            if len(self._received) - at < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._received, at + 3)
            self._take(kind, flags, stream & 0x7FFF_FFFF, bytes(self._received[at + 9 : at + 9 + size]))
            at += 9 + size
        del self._received[:at]

    def _take(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == HEADERS:
            fields = dict(self._decoder.decode(payload, raw=True))
            if flags & END_STREAM:
                self._end(stream, int(fields.get(b"grpc-status", b"-1")))
        elif kind == DATA and self._keep:
            self.bodies.setdefault(stream, bytearray()).extend(payload)
        elif kind == RST_STREAM:
            self._end(stream, "reset")

    def _end(self, stream, status):
        if stream in self.started:
            self.latencies.append((time.monotonic() - self.started.pop(stream), status))
            self.statuses[stream] = status

    def close(self):
        self.peer.close()
        self.closed = True


def run_until(connections, condition, timeout_s):
    """Takes what comes on the connections until `condition()`; whether it came true in time."""
    end = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            if not connection.closed:
                selector.register(connection.peer, selectors.EVENT_READ, connection)
        while not condition():
            if time.monotonic() > end:
                return False
            for key, _ in selector.select(0.01):
                key.data.receive()
                if key.data.closed:
                    selector.unregister(key.fileobj)
    return True
