"""The calls."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import grpc
from numpy.typing import ArrayLike

from nsa_metadata.channel import EXPAND, channel_options
from nsa_metadata.deadlines import DEADLINES, GRACE_S
from nsa_metadata.enums import Mode, Output
from nsa_metadata.errors import error_of, no_answer
from nsa_metadata.expansion import Expansion, decode
from nsa_metadata.request import asked_outputs, encode
from nsa_metadata.stream import ExpandStream

# A request of so many bytes finds room in a socket that has just been opened (Linux's tcp_wmem): gRPC has written it
# and ends the call at its deadline. Larger ones have a deadline here too, which costs each a change of threads.
_FITS_A_SOCKET = 16 << 10


class Client:
    """Calls a server. Thread-safe: threads share one client and its connections.

    Calls that end UNAVAILABLE are sent again, up to `max_attempts` times in all, and no others: the server was not
    reached, or may take the same request later. The wait before the second attempt is about 50 ms at most; it doubles
    with each further one, up to about 1 s; the server's own hint of when to come back goes before it.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
        max_attempts: int = 4,
        max_receive_message_bytes: int = 4 << 20,
        server_name: str | None = None,
        keepalive_time: float = 30.0,
        keepalive_timeout: float = 10.0,
    ) -> None:
        """Does not block: connections are made by the first calls.

        target: a gRPC name, as "host:port", "dns:///host:port" or "unix:/path"; calls go round the addresses it
            resolves to.
        timeout: seconds a call may take, all attempts together; None: only the server's own limit.
        credentials: None: plain text; see tls_credentials.
        max_attempts: attempts a call, the first included, 1 to 5; 1: no retries.
        max_receive_message_bytes: the largest reply accepted, 1 or more.
        server_name: the name that the server's certificate has to have; None: the target's.
        keepalive_time: while calls are in flight, a connection on which nothing has come for so many seconds is asked
            for a sign of life, 10 or more, as the server allows.
        keepalive_timeout: seconds until one without it is given up, and its calls end UNAVAILABLE; more than 0.

        ValueError names the argument that is out of range.
        """
        options = channel_options(
            target, timeout, max_attempts, max_receive_message_bytes, server_name, keepalive_time, keepalive_timeout
        )
        self._timeout = timeout
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        # Bytes both ways.
        self._expand: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(EXPAND)
        self._max_attempts = max_attempts
        self._closed = threading.Event()

    def expand(
        self,
        extend_seq_lens: ArrayLike,
        seq_lens: ArrayLike,
        *,
        nsa_index_topk: int = 0,
        mode: Mode,
        outputs: Iterable[Output] | None = None,
        request_id: int = 0,
        include_timing: bool = False,
        timeout: float | None = None,
    ) -> Expansion:
        """Expands one request. Blocks until the answer or the deadline.

        extend_seq_lens: [num_sequences], tokens: how many tokens sequence b extends by. Any integers; a contiguous
            int32 array is taken as it is.
        seq_lens: [num_sequences], tokens: how long sequence b is.
        nsa_index_topk: the bound in nsa_cache_seqlens = min(seqlens_expanded, nsa_index_topk); at least 1 when an
            output that needs it is asked.
        mode: has no default: engines differ in it, and the wrong one gives wrong lengths without an error.
        outputs: the arrays to compute, of OUTPUTS. None or empty: seqlens_expanded and nsa_cache_seqlens.
        request_id: any uint64, returned in the answer.
        include_timing: whether the answer says where its time went.
        timeout: seconds, all attempts together; goes before the client's. Negative: already passed.

        Raises Refused, Unreachable, DeadlineExceeded, or Error for what else can happen to a call. What the wire can't
        hold is not sent: ValueError names the argument, index, value and limit of what does not fit int32, a wrong
        shape or an unknown name, TypeError what is no integer. ValueError also after close().
        """
        asked = asked_outputs(outputs)
        request = encode(extend_seq_lens, seq_lens, nsa_index_topk, mode, asked, request_id, include_timing)
        seconds = self._seconds(timeout)
        if seconds is None or len(request) <= _FITS_A_SOCKET:
            return _expansion(lambda: self._expand(request, timeout=seconds), asked)
        call = self._expand.future(request, timeout=seconds)
        try:
            return _expansion(lambda: call.result(max(seconds, 0) + GRACE_S), asked)
        except grpc.FutureTimeoutError:
            raise no_answer() from None  # gRPC has given the call up, and waits for its last write

    def expand_async(
        self,
        extend_seq_lens: ArrayLike,
        seq_lens: ArrayLike,
        *,
        nsa_index_topk: int = 0,
        mode: Mode,
        outputs: Iterable[Output] | None = None,
        request_id: int = 0,
        include_timing: bool = False,
        timeout: float | None = None,
    ) -> Future[Expansion]:
        """The same without blocking; asyncio.wrap_future makes the result awaitable.

        The arrays may change as soon as this returns. ValueError and TypeError come at once, the other errors from the
        future. Its callbacks run on a thread of gRPC's and must not block. Cancelling it cancels the call.
        """
        asked = asked_outputs(outputs)
        request = encode(extend_seq_lens, seq_lens, nsa_index_topk, mode, asked, request_id, include_timing)
        seconds = self._seconds(timeout)
        call = self._expand.future(request, timeout=seconds)
        future: Future[Expansion] = Future()
        ended = threading.Lock()  # taken by what ends it first

        def finish(call: Any) -> None:
            if not ended.acquire(blocking=False) or not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(_expansion(call.result, asked))
            except Exception as error:
                future.set_exception(error)

        def give_up() -> None:
            if ended.acquire(blocking=False) and future.set_running_or_notify_cancel():
                future.set_exception(no_answer())  # gRPC has given the call up, and waits for its last write

        if seconds is not None:
            deadline = DEADLINES.add(time.monotonic() + seconds, give_up)
            future.add_done_callback(lambda _: DEADLINES.remove(deadline))
        future.add_done_callback(lambda done: call.cancel() if done.cancelled() else None)
        call.add_done_callback(finish)
        return future

    def open_stream(self) -> ExpandStream:
        """A stream of many requests, which has no limit of 4 MiB an answer. Does not block; close it before the client."""
        return ExpandStream(self._channel, self._timeout, self._max_attempts, self._closed)

    def close(self) -> None:
        """Closes the connections; calls in flight end with Error, code CANCELLED. Again: does nothing.

        A peer that takes nothing may hold it up until its connection is given up (keepalive_timeout).
        """
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout


def _expansion(reply: Callable[[], bytes], asked: tuple[Output, ...]) -> Expansion:
    try:
        return decode(reply(), asked)
    except grpc.RpcError as failure:
        raise error_of(failure) from failure
