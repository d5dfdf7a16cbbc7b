"""The calls, for asyncio."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

import grpc
import grpc.aio
from numpy.typing import ArrayLike

from nsa_metadata.channel import EXPAND, channel_options
from nsa_metadata.deadlines import GRACE_S
from nsa_metadata.enums import Mode, Output
from nsa_metadata.errors import error_of, no_answer
from nsa_metadata.expansion import Expansion, decode
from nsa_metadata.request import asked_outputs, encode
from nsa_metadata.stream import ExpandStream


class AsyncClient:
    """Calls a server from an event loop; arguments, retries and errors are Client's. Make and use it in one loop.

    async with AsyncClient("127.0.0.1:50051") as client:
        expansion = await client.expand([3, 2], [10, 4], nsa_index_topk=2048, mode="causal")
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
        """Does not block. ValueError names the argument that is out of range."""
        options = channel_options(
            target, timeout, max_attempts, max_receive_message_bytes, server_name, keepalive_time, keepalive_timeout
        )
        self._timeout = timeout
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self._max_attempts = max_attempts
        self._target, self._options, self._credentials = target, options, credentials
        self._streams: grpc.Channel | None = None
        self._closed = threading.Event()
        # Bytes both ways.
        self._expand: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(EXPAND)

    async def expand(
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
        """As Client.expand, without blocking the loop. Cancelling the task cancels the call."""
        asked = asked_outputs(outputs)
        request = encode(extend_seq_lens, seq_lens, nsa_index_topk, mode, asked, request_id, include_timing)
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(None if seconds is None else max(seconds, 0) + GRACE_S) as own:
                reply = await self._expand(request, timeout=seconds)
        except grpc.RpcError as failure:
            raise error_of(failure) from failure
        except TimeoutError:
            if not own.expired():
                raise
            raise no_answer() from None
        return decode(reply, asked)

    def open_stream(self) -> "AsyncExpandStream":
        """A stream of many requests, which has no limit of 4 MiB an answer; over a connection of the streams' own.

        ValueError after close(). Close it before the client.
        """
        if self._closed.is_set():
            raise ValueError("the client is closed")
        if self._streams is None:
            self._streams = (
                grpc.insecure_channel(self._target, self._options)
                if self._credentials is None
                else grpc.secure_channel(self._target, self._credentials, self._options)
            )
        return AsyncExpandStream(ExpandStream(self._streams, self._timeout, self._max_attempts, self._closed))

    async def close(self) -> None:
        """Closes the connections; calls in flight are cancelled. Again: does nothing."""
        self._closed.set()
        await self._channel.close()
        if self._streams is not None:
            await _on_a_thread(self._streams.close)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Room:
    """Waits, in a loop, for another thread to tell."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    def tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._told.set)

    async def wait(self, deadline: float | None) -> bool:
        """Whether it was told before `deadline`, of time.monotonic."""
        try:
            async with asyncio.timeout(None if deadline is None else max(deadline - time.monotonic(), 0)):
                await self._told.wait()
        except TimeoutError:
            return False
        return True


async def _on_a_thread(block: Callable[[], None]) -> None:
    """Runs what blocks on a thread of its own: the loop's executor is for others, and they may have filled it."""
    ended = _Room()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            block()
        except BaseException as error:
            errors.append(error)
        ended.tell()

    threading.Thread(target=run, name="nsa-metadata-close", daemon=True).start()
    await ended.wait(None)
    if errors:
        raise errors[0]


class AsyncExpandStream:
    """ExpandStream for asyncio: items over one call, and again over the next, in any order; see there.

    async with client.open_stream() as stream:
        answers = await asyncio.gather(*(stream.expand(q, s, mode="causal", nsa_index_topk=2048) for q, s in batches))
    """

    def __init__(self, stream: ExpandStream) -> None:
        self._stream = stream

    async def expand(
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
    ) -> Expansion:
        """The arguments and errors are ExpandStream.send's. Cancelling the task asks the server to cancel the request."""
        deadline = self._stream.deadline_of(timeout)
        arguments = (extend_seq_lens, seq_lens, nsa_index_topk, mode, outputs, request_id, include_timing, deadline)
        while True:
            room = _Room()
            tell = room.tell
            future = self._stream.try_send(*arguments, tell)
            if future is not None:
                return await asyncio.wrap_future(future)
            try:
                if not await room.wait(deadline):
                    raise no_answer()
            except BaseException:
                self._stream.stop_waiting(tell)
                raise

    async def close(self, timeout: float | None = None) -> None:
        """As ExpandStream.close, without blocking the loop."""
        await _on_a_thread(lambda: self._stream.close(timeout))

    async def __aenter__(self) -> "AsyncExpandStream":
        return self

    async def __aexit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
