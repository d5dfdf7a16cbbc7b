"""Many requests over one call."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike

from nsa_metadata.channel import EXPAND_STREAM
from nsa_metadata.deadlines import DEADLINES
from nsa_metadata.enums import OUTPUTS, Mode, Output
from nsa_metadata.errors import Error, error_of, no_answer, refusal_of
from nsa_metadata.expansion import Expansion, decode
from nsa_metadata.request import asked_outputs, encode
from nsa_metadata.wire import Message, bytes_head, integer_field

# Messages that may wait to be written; send blocks while there are as many. Who waits for room is told at half of it.
_MOST_WAITING = 64
# The longest wait before a call's unanswered items are sent again; it doubles up to the second.
_BACKOFF_S, _MOST_BACKOFF_S = 0.05, 1.0


@dataclass(eq=False)
class _Item:
    future: Future[Expansion]
    request_id: int
    request: bytes
    asked: tuple[Output, ...]
    deadline: float | None  # of time.monotonic
    attempts: int = 0
    cancel_sent: bool = False
    # Its future has ended; the server's answer, if one comes, is for nobody.
    expired: bool = False
    chunks: list[Expansion] = field(default_factory=list)

    def message(self) -> bytes:
        timeout = b""
        if self.deadline is not None:
            nanoseconds = round((self.deadline - time.monotonic()) * 1e9)
            # Both parts of a Duration have one sign.
            seconds, rest = divmod(abs(nanoseconds), 10**9)
            sign = 1 if nanoseconds >= 0 else -1
            timeout = integer_field(1, sign * seconds) + integer_field(2, sign * rest)
            timeout = bytes_head(3, len(timeout)) + timeout
        return bytes_head(1, len(self.request)) + self.request + timeout


@dataclass(eq=False)
class _Cancel:
    request_id: int

    def message(self) -> bytes:
        return integer_field(2, self.request_id)


class ExpandStream:
    """Items over an ExpandStream call, and over the next one where a call ends early. Thread-safe; see Client.open_stream.

    Answers come as the server finishes them, in any order. There is no limit of 4 MiB an answer: larger ones come in
    chunks, which are put together in one copy. Where the server is full an item waits; it is refused only
    where lengths that were read at the same time fill lengths_budget_bytes. A call that
    ends UNAVAILABLE, or CANCELLED by nobody, as when its server drains, has its items without an answer sent again over a new one, up to the
    client's max_attempts times in all and while their timeouts last.
    """

    def __init__(
        self, channel: grpc.Channel, timeout: float | None, max_attempts: int, client_closed: threading.Event
    ) -> None:
        """timeout, max_attempts: an item's. client_closed: set before the channel is closed."""
        self._channel, self._timeout, self._max_attempts = channel, timeout, max_attempts
        self._client_closed = client_closed
        self._start: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(EXPAND_STREAM)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # In flight, by request_id.
        self._items: dict[int, _Item] = {}
        self._next_id = 1
        # To be written to the call under way, or the next.
        self._outbox: deque[_Item | _Cancel] = deque()
        # Called, once each, when there is room again; they must not block.
        self._waiting_for_room: deque[Callable[[], None]] = deque()
        self._call: Any = None
        self._calls = 0  # so far
        self._call_ended = True
        self._closed = False
        self._cut = False
        self._thread = threading.Thread(target=self._run, name="nsa-metadata-stream", daemon=True)
        self._thread.start()

    def send(
        self,
        extend_seq_lens: ArrayLike,
        seq_lens: ArrayLike,
        *,
        nsa_index_topk: int = 0,
        mode: Mode,
        outputs: Iterable[Output] | None = None,
        request_id: int | None = None,
        include_timing: bool = False,
        timeout: float | None = None,
    ) -> Future[Expansion]:
        """Sends one request; the arguments are Client.expand's.

        The future has the answer, or raises what expand would; asyncio.wrap_future makes it awaitable. Its callbacks
        run on a thread of this package's and must not block. Cancelling it asks the server to cancel the request.
        request_id: of no other request in flight on this stream; None: the stream's own numbers.
        timeout: seconds, from here on; goes before the client's.

        Blocks while 64 messages wait to be written, which they do while the server reads no further, for `timeout` at
        most. ValueError for what expand has it for, a request_id that is in flight, and after close().
        """
        deadline = self.deadline_of(timeout)
        arguments = (extend_seq_lens, seq_lens, nsa_index_topk, mode, outputs, request_id, include_timing, deadline)
        while True:
            room = threading.Event()
            future = self.try_send(*arguments, room.set)
            if future is not None:
                return future
            if not room.wait(None if deadline is None else max(deadline - time.monotonic(), 0)):
                self.stop_waiting(room.set)
                late: Future[Expansion] = Future()
                late.set_exception(no_answer())
                return late

    def deadline_of(self, timeout: float | None) -> float | None:
        """Of an item that is sent now."""
        seconds = self._timeout if timeout is None else timeout
        return None if seconds is None else time.monotonic() + seconds

    def try_send(
        self,
        extend_seq_lens: ArrayLike,
        seq_lens: ArrayLike,
        nsa_index_topk: int,
        mode: Mode,
        outputs: Iterable[Output] | None,
        request_id: int | None,
        include_timing: bool,
        deadline: float | None,
        when_room: Callable[[], None],
    ) -> Future[Expansion] | None:
        """send without blocking: None where there is no room; then `when_room` is called once, when to try again.

        Who does not, then or before, has to stop_waiting.
        """
        asked = asked_outputs(outputs)
        with self._lock:
            if self._closed:
                raise ValueError("the stream is closed")
            if len(self._outbox) >= _MOST_WAITING:
                self._waiting_for_room.append(when_room)
                return None
            if request_id is None:
                while self._next_id in self._items:
                    self._next_id += 1
                request_id = self._next_id
                self._next_id += 1
            request = encode(extend_seq_lens, seq_lens, nsa_index_topk, mode, asked, request_id, include_timing)
            if request_id in self._items:
                raise ValueError(f"request_id is {request_id}, which is in flight on this stream")
            item = self._items[request_id] = _Item(Future(), request_id, request, asked, deadline)
            self._outbox.append(item)
            self._changed.notify_all()
        if deadline is not None:
            due = DEADLINES.add(deadline, lambda: self._expire(item))
            item.future.add_done_callback(lambda _: DEADLINES.remove(due))
        item.future.add_done_callback(lambda done: self._give_up(item) if done.cancelled() else None)
        return item.future

    def stop_waiting(self, when_room: Callable[[], None]) -> None:
        """Passes on the room that `when_room` was told of, or will be."""
        with self._lock:
            if when_room in self._waiting_for_room:
                self._waiting_for_room.remove(when_room)
            waiting = self._take_waiting()
        _tell(waiting)

    def cancel(self, request_id: int) -> None:
        """Asks the server to cancel a request in flight; others are ignored. If the cancel wins, it ends CANCELLED."""
        with self._lock:
            item = self._items.get(request_id)
            unsent = item is not None and self._take_back(item)
            waiting = self._take_waiting()
        _tell(waiting)
        if item is not None and unsent:
            _finish(item.future, Error(grpc.StatusCode.CANCELLED, "cancelled before it was sent"))

    def close(self, timeout: float | None = None) -> None:
        """Takes no more requests, and blocks until all are answered.

        timeout: seconds, after which what is unanswered ends with DeadlineExceeded; None: the client's. Again: waits again.
        """
        with self._lock:
            self._closed = True
            for_nobody = self._is_for_nobody()
            self._changed.notify_all()
            waiting = self._take_waiting()
        _tell(waiting)
        if threading.current_thread() is self._thread:
            return
        if not for_nobody:
            self._thread.join(self._timeout if timeout is None else timeout)
        if self._thread.is_alive():
            self._end_call()
            self._thread.join()

    def __enter__(self) -> "ExpandStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_waiting(self) -> list[Callable[[], None]]:
        """Those to be told, without the lock, that there is room; self._lock is held."""
        if self._closed:
            count = len(self._waiting_for_room)
        elif len(self._outbox) > _MOST_WAITING // 2:
            return []
        else:
            count = _MOST_WAITING - len(self._outbox)
        return [self._waiting_for_room.popleft() for _ in range(min(count, len(self._waiting_for_room)))]

    def _take_back(self, item: _Item) -> bool:
        """Whether the server can't know of an item, which is forgotten then; else it is asked to cancel it. self._lock is held."""
        if item in self._outbox:
            self._outbox.remove(item)
            self._items.pop(item.request_id, None)
            self._changed.notify_all()
            return True
        if not item.cancel_sent and not self._call_ended:
            item.cancel_sent = True
            self._outbox.append(_Cancel(item.request_id))
            self._changed.notify_all()
        return False

    def _give_up(self, item: _Item) -> None:
        """Its future was cancelled."""
        self._let_go(item)
        item.future.set_running_or_notify_cancel()  # so that whoever waits for it is told

    def _expire(self, item: _Item) -> None:
        if self._let_go(item):
            _finish(item.future, no_answer())

    def _let_go(self, item: _Item) -> bool:
        """Nobody waits for its answer any more. False where it has one already."""
        with self._lock:
            if self._items.get(item.request_id) is not item or item.expired:
                return False
            item.expired = not self._take_back(item)
            for_nobody = self._is_for_nobody()
            waiting = self._take_waiting()
        _tell(waiting)
        if for_nobody:
            self._end_call()
        return True

    def _is_for_nobody(self) -> bool:
        """Whether all that can come is answers that nobody waits for any more; self._lock is held."""
        return self._closed and bool(self._items) and all(item.expired for item in self._items.values())

    def _end_call(self) -> None:
        with self._lock:
            self._cut = True
            call = self._call
            self._changed.notify_all()
        if call is not None:
            call.cancel()

    def _run(self) -> None:
        failures_in_a_row = 0
        while True:
            with self._lock:
                while not self._items and not self._closed:
                    self._changed.wait()
                if not self._items:
                    return
                self._outbox = deque(self._items.values())
                for item in self._items.values():
                    item.attempts += 1
                    item.chunks.clear()
                self._calls += 1
                self._call_ended = False
                number = self._calls
            failure, answered = self._one_call(self._messages(number))
            failures_in_a_row = 1 if answered else failures_in_a_row + 1
            # So that not all callers of a server that went come to the next one at once.
            backoff = min(_BACKOFF_S * 2 ** min(failures_in_a_row - 1, 20), _MOST_BACKOFF_S) * random.uniform(0.5, 1)
            with self._lock:
                self._call = None
                self._call_ended = True
                ended = self._ended(failure)
                self._outbox = deque(self._items.values())
                self._changed.notify_all()
                waiting = self._take_waiting()
            _tell(waiting)
            for item, error in ended:
                _finish(item.future, error)
            self._wait(backoff)

    def _messages(self, number: int) -> Iterator[bytes]:
        """What is written to the call of that number, until it or the stream ends."""
        while True:
            with self._lock:
                while not self._outbox and not self._closed and self._calls == number and not self._call_ended:
                    self._changed.wait()
                if self._calls != number or self._call_ended or not self._outbox:
                    return
                next_one = self._outbox.popleft()
                waiting = self._take_waiting()
            _tell(waiting)
            yield next_one.message()

    def _wait(self, backoff: float) -> None:
        with self._lock:
            if not self._items or self._cut:
                return
            # Without a call gRPC gets no further with a connection, unless somebody watches it.
            self._channel.subscribe(_ignore, try_to_connect=True)
            self._changed.wait_for(lambda: self._cut, backoff)
            self._channel.unsubscribe(_ignore)

    def _one_call(self, messages: Iterator[bytes]) -> tuple[Error, bool]:
        try:
            call = self._start(messages)
        except ValueError as closed:  # the client is
            return Error(grpc.StatusCode.CANCELLED, str(closed)), False
        with self._lock:
            self._call = call
            cut = self._cut
        if cut:
            call.cancel()
        return self._read(call)

    def _read(self, call: Any) -> tuple[Error, bool]:
        """Answers items until the call ends; how it ended, and whether there was an answer."""
        answered = False
        try:
            for data in call:
                answered = self._take(Message(data)) or answered
        except grpc.RpcError as failure:
            return error_of(failure), answered
        except ValueError as wrong:
            call.cancel()
            return Error(grpc.StatusCode.INTERNAL, f"the server's answer is none: {wrong}"), answered
        return Error(grpc.StatusCode.INTERNAL, "the server ended the stream before it had answered"), answered

    def _take(self, message: Message) -> bool:
        """Whether an item was answered."""
        refusal, expansion = message.message(2), message.message(1)
        if refusal is not None:
            item = self._pop(refusal.uint64(1))
            if not item.expired:
                _finish(item.future, refusal_of(refusal))
            return True
        if expansion is None:
            raise ValueError("a message has neither an expansion nor a refusal")
        request_id = expansion.uint64(1)
        with self._lock:
            found = self._items.get(request_id)
        if found is None:
            raise ValueError(f"request_id {request_id} is not in flight")
        found.chunks.append(decode(message.chunks(1)[-1], found.asked))
        if not message.uint64(4):
            return False
        if not self._pop(request_id).expired:
            _finish(found.future, _joined(found.chunks))
        return True

    def _pop(self, request_id: int) -> _Item:
        with self._lock:
            item = self._items.pop(request_id, None)
        if item is None:
            raise ValueError(f"request_id {request_id} is not in flight")
        return item

    def _ended(self, failure: Error) -> list[tuple[_Item, Error]]:
        """Takes out the items that are not to be sent again; self._lock is held."""
        now = time.monotonic()
        # A server that is shut down while a call is on its way to it may say CANCELLED, though nobody did.
        worth_it = failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        again = worth_it and not self._cut and not self._client_closed.is_set()
        ended = []
        for request_id, item in list(self._items.items()):
            late = item.expired or (item.deadline is not None and item.deadline <= now)
            if again and not late and not item.cancel_sent and item.attempts < self._max_attempts:
                continue
            del self._items[request_id]
            if item.expired:
                continue
            if again and item.cancel_sent:
                ended.append((item, Error(grpc.StatusCode.CANCELLED, "cancelled")))
            else:
                ended.append((item, no_answer() if self._cut or (again and late) else failure))
        return ended


def _tell(waiting: list[Callable[[], None]]) -> None:
    for tell in waiting:
        tell()


def _ignore(_: grpc.ChannelConnectivity) -> None:
    pass


def _finish(future: Future[Expansion], outcome: Expansion | Error) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Error):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _joined(chunks: list[Expansion]) -> Expansion:
    if len(chunks) == 1:
        return chunks[0]
    first = chunks[0]
    arrays = {}
    for name in OUTPUTS:
        parts = [part for chunk in chunks if (part := getattr(chunk, name)) is not None]
        arrays[name] = np.concatenate(parts) if parts else None
    return Expansion(
        request_id=first.request_id, total_tokens=first.total_tokens, mode=first.mode, timing=first.timing, **arrays
    )
