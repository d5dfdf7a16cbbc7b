"""The Python clients' own deadlines, where gRPC's don't come: a peer that takes nothing of what is being written to it."""

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
import weakref

import numpy as np
import pytest

import wire
from programs import REPOSITORY, eventually, run

from nsa_metadata import AsyncClient, Client, DeadlineExceeded
from nsa_metadata.deadlines import GRACE_S, Deadlines

# More than the kernels hold of it between them.
LENGTHS = np.ones(1 << 20, np.int32)
LARGE = {"extend_seq_lens": LENGTHS, "seq_lens": LENGTHS, "mode": "causal", "nsa_index_topk": 1}
# gRPC itself ends such a call when the connection is given up.
GIVEN_UP_S = 10.0
TIMEOUT_S = 0.3


@contextlib.contextmanager
def deaf_server():
    """The address of a server that lets its callers send all they like, and reads nothing."""
    taken = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                taken.append(peer)
                peer.sendall(wire.settings(1 << 30) + wire.window_update(0, 1 << 30))

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in taken:
                peer.close()


@contextlib.contextmanager
def in_time():
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        yield
    took = time.monotonic() - begin
    assert took < GIVEN_UP_S / 2, f"ended after {took:.1f} s"


def a_call(client):
    with in_time():
        client.expand(**LARGE, timeout=TIMEOUT_S)


def a_future(client):
    with in_time():
        client.expand_async(**LARGE, timeout=TIMEOUT_S).result()


def a_stream(client):
    with in_time(), client.open_stream() as stream:
        sent = [stream.send(**LARGE, timeout=TIMEOUT_S) for _ in range(5)]
        assert all(isinstance(future.exception(), DeadlineExceeded) for future in sent)
        # gRPC has one, and the next in its hands; the others the server can't know of.
        assert len(stream._items) <= 2
        sent[0].result()


def a_task(client):
    async def call():
        with in_time():
            await AsyncClient(client.address, keepalive_timeout=GIVEN_UP_S).expand(**LARGE, timeout=TIMEOUT_S)

    asyncio.run(call())


def closing_while_a_sender_waits(client):
    lengths = np.ones(1 << 15, np.int32)
    stream, refused = client.open_stream(), []

    def send():
        with pytest.raises(ValueError, match="the stream is closed"):
            while True:
                stream.send(lengths, lengths, mode="causal", nsa_index_topk=1, timeout=60)
        refused.append(True)

    thread = threading.Thread(target=send)
    thread.start()
    eventually(lambda: stream._waiting_for_room, "it waits for room")
    begin = time.monotonic()
    threading.Thread(target=stream.close, args=(0.2,), daemon=True).start()
    thread.join(GIVEN_UP_S / 2)
    assert refused and time.monotonic() - begin < GIVEN_UP_S / 2


def room_that_cancelled_items_leave(client):
    lengths = np.ones(1 << 15, np.int32)
    stream, sent = client.open_stream(), []

    def send():
        sent.append(stream.send(lengths, lengths, mode="causal", nsa_index_topk=1, timeout=60))

    while True:
        sender = threading.Thread(target=send)
        sender.start()
        sender.join(0.5)
        if sender.is_alive():
            break
    waited = list(sent)
    for future in waited:
        assert future.cancel()
    sender.join(20)
    assert not sender.is_alive(), "it still waits for room"
    _, others = concurrent.futures.wait(waited, timeout=1)
    assert not others, "who waits for what was cancelled is not told"


SCENARIOS = [a_call, a_future, a_stream, a_task, closing_while_a_sender_waits, room_that_cancelled_items_leave]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_peer_that_takes_nothing_costs_no_more_than_the_timeout(scenario):
    # In a process that then ends at once: closing such a client waits for gRPC's own end of its calls, and grpcio 1.76
    # was seen to spoil its memory after them.
    done = run(sys.executable, __file__, scenario.__name__, env={"PYTHONPATH": str(REPOSITORY / "client" / "python")}, timeout_s=60)
    assert done.returncode == 0, done.stderr


def test_what_is_late_runs_in_the_order_of_its_deadlines_and_what_is_removed_does_not():
    deadlines, ran, done = Deadlines(), [], threading.Event()
    now = time.monotonic()
    deadlines.add(now + 0.02, lambda: (ran.append("last"), done.set()))
    removed = deadlines.add(now + 0.01, lambda: ran.append("removed"))
    deadlines.add(now - 1, lambda: ran.append("first"))
    deadlines.remove(removed)
    assert done.wait(20)
    assert ran == ["first", "last"]


def test_what_is_removed_takes_no_memory_for_long():
    deadlines = Deadlines()
    never = time.monotonic() + 3600
    kept = deadlines.add(never, lambda: None)
    for _ in range(10_000):
        deadlines.remove(deadlines.add(never, lambda: None))
    assert len(deadlines._heap) < 3_000
    assert kept in deadlines._heap


def test_what_is_removed_or_has_run_is_let_go_of():
    class Held:
        pass

    deadlines, ran = Deadlines(), threading.Event()
    held, also_held = Held(), Held()
    deadlines.remove(deadlines.add(time.monotonic() + 3600, lambda held=held: None))
    deadlines.add(time.monotonic(), lambda held=also_held: ran.set())
    assert ran.wait(20)
    references = [weakref.ref(held), weakref.ref(also_held)]
    del held, also_held
    eventually(lambda: all(reference() is None for reference in references), "nothing holds them")


def test_a_deadline_may_be_never():
    deadlines, ran = Deadlines(), threading.Event()
    deadlines.add(float("inf"), lambda: None)
    deadlines.add(time.monotonic(), ran.set)
    assert ran.wait(20)
    later = threading.Event()
    deadlines.add(time.monotonic() + 0.01, later.set)
    assert later.wait(20), "the thread has ended"


def test_it_waits_a_while_for_grpcs_own_end():
    deadlines, done = Deadlines(), threading.Event()
    begin = time.monotonic()
    deadlines.add(begin, done.set)
    assert done.wait(20)
    assert time.monotonic() - begin >= GRACE_S


if __name__ == "__main__":
    with deaf_server() as address:
        made = Client(address, keepalive_timeout=GIVEN_UP_S)
        made.address = address
        try:
            globals()[sys.argv[1]](made)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
