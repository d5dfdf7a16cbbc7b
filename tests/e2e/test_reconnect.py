"""Our clients when a connection can't be made: the attempts of one call outlast it."""

import contextlib
import socket
import struct
import threading

import pytest

from calls import TIMEOUT_S
from programs import CLIENT, run

from nsa_metadata import Client

REQUEST = {"extend_seq_lens": [3, 2], "seq_lens": [10, 4], "nsa_index_topk": 2048, "mode": "causal"}
ANSWER = [8, 9, 10, 3, 4]


def pass_on(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def resets_the_first_connection(address):
    """Stands before a server: the first connection is reset before a byte has come back, later ones are passed on."""
    host, port = address.rsplit(":", 1)
    taken = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                taken.append(near)
                if len(taken) == 1:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    near.close()
                    continue
                far = socket.create_connection((host, int(port)))
                taken.append(far)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()

    with socket.create_server((host, 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"{host}:{listener.getsockname()[1]}", taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in taken:
                each.close()


def by_the_program(target):
    lengths = [f"--{name}={','.join(map(str, REQUEST[name]))}" for name in ("extend_seq_lens", "seq_lens")]
    done = run(CLIENT, "expand", f"--target={target}", *lengths, "--mode=causal", "--outputs=seqlens_expanded")
    assert done.returncode == 0, done.stderr


def by_a_call(target):
    # One attempt more than usual, for a machine that has other work to do.
    with Client(target, max_attempts=5) as client:
        assert client.expand(**REQUEST, timeout=TIMEOUT_S).seqlens_expanded.tolist() == ANSWER


def by_a_stream(target):
    with Client(target, max_attempts=5) as client, client.open_stream() as stream:
        assert stream.send(**REQUEST, timeout=TIMEOUT_S).result().seqlens_expanded.tolist() == ANSWER


@pytest.mark.parametrize("expand", [by_the_program, by_a_call, by_a_stream], ids=["program", "Python", "Python stream"])
def test_a_connection_that_is_reset_fails_no_call(server, expand):
    with resets_the_first_connection(server.address) as (target, taken):
        expand(target)
        assert len(taken) > 2, "no second connection was made"
