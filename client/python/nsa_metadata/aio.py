"""The calls, for asyncio."""

import asyncio
from collections.abc import Iterable
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

    async def close(self) -> None:
        """Closes the connections; calls in flight are cancelled. Again: does nothing."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
