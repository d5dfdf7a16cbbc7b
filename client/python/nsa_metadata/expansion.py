"""An answer: the arrays of one request, as views of the bytes that came."""

from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from nsa_metadata.enums import BACKENDS, MODES, OUTPUTS, Output, name_of
from nsa_metadata.errors import Error
from nsa_metadata.wire import Message

Int32Array = NDArray[np.int32]

# The field of the first output; the others follow in the order of the enum.
_FIRST_OUTPUT_FIELD = 16


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went in the server: stages that follow each other, in nanoseconds, 0 where not passed.

    parse_ns: decoding and validating the request.
    admit_ns: reserving room for its output.
    queue_ns: waiting for a lane.
    pack_ns: putting the batch's requests together.
    device_ns: the backend's work on the whole batch, copies included.
    frame_ns: from the backend's end to the reply's bytes being ready to send.
    batch_requests, batch_tokens: what the batch held that this request was computed in.
    backend: what computed it, "cuda", "cpu" or "reference".
    """

    parse_ns: int
    admit_ns: int
    queue_ns: int
    pack_ns: int
    device_ns: int
    frame_ns: int
    batch_requests: int
    batch_tokens: int
    backend: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Expansion:
    """The arrays of one request, int32; an array that was not asked for is None.

    The arrays are read-only views of the one received message, which lives as long as any of them. They may be
    unaligned (`array.flags.aligned` says it): numpy takes that everywhere, other libraries may not. `array.copy()` is
    aligned and writable.

    request_id: the request's.
    total_tokens: the sum of extend_seq_lens.
    mode: the one that was used, "repeat" or "causal".
    timing: None unless it was asked for.
    seqlens_expanded: [total_tokens], tokens. repeat: seq_lens[b]; causal, for the i-th token of sequence b, from 0:
        max(seq_lens[b] - extend_seq_lens[b] + i + 1, 0).
    nsa_cache_seqlens: [total_tokens], tokens: min(seqlens_expanded, nsa_index_topk).
    token_to_batch_idx: [total_tokens]: b.
    positions: [total_tokens]: seq_lens[b] - extend_seq_lens[b] + i.
    cu_seqlens_q, cu_seqlens_k: [num_sequences + 1]: running sums, from 0, of extend_seq_lens and of seq_lens.
    nsa_cu_seqlens_k: [total_tokens + 1]: running sum, from 0, of nsa_cache_seqlens.
    ks: [total_tokens]: the sum of the seq_lens before sequence b.
    ke: [total_tokens]: ks + seqlens_expanded.
    """

    request_id: int
    total_tokens: int
    mode: str
    timing: Timing | None
    seqlens_expanded: Int32Array | None = None
    nsa_cache_seqlens: Int32Array | None = None
    token_to_batch_idx: Int32Array | None = None
    positions: Int32Array | None = None
    cu_seqlens_q: Int32Array | None = None
    cu_seqlens_k: Int32Array | None = None
    nsa_cu_seqlens_k: Int32Array | None = None
    ks: Int32Array | None = None
    ke: Int32Array | None = None

    def torch(self, device: Any = "cpu") -> dict[Output, Any]:
        """The arrays by name as tensors of torch's on `device`: copies of their own, aligned and writable."""
        import torch  # type: ignore[import-not-found, unused-ignore]

        arrays: dict[Output, Any] = {name: getattr(self, name) for name in OUTPUTS}
        return {
            name: (array if isinstance(array, torch.Tensor) else torch.from_numpy(array.copy())).to(device)
            for name, array in arrays.items()
            if array is not None
        }


def decode(reply: bytes | memoryview, asked: tuple[Output, ...]) -> Expansion:
    """Reads an ExpandResponse. Error (INTERNAL) where the bytes are none, as gRPC's own decoding would say."""
    try:
        message = Message(reply)
        timing = message.message(4)
        return Expansion(
            request_id=message.uint64(1),
            total_tokens=message.int64(2),
            mode=name_of(message.uint64(3), MODES),
            timing=None if timing is None else _timing(timing),
            # proto3 leaves an empty array out: the request says which are there.
            **{name: _int32_view(message.chunks(_FIRST_OUTPUT_FIELD + OUTPUTS.index(name))) for name in asked},
        )
    except ValueError as error:
        raise Error(grpc.StatusCode.INTERNAL, f"the reply is no ExpandResponse: {error}") from error


def _timing(message: Message) -> Timing:
    return Timing(
        parse_ns=message.uint64(1),
        admit_ns=message.uint64(2),
        queue_ns=message.uint64(3),
        pack_ns=message.uint64(4),
        device_ns=message.uint64(5),
        frame_ns=message.uint64(6),
        batch_requests=message.uint64(7),
        batch_tokens=message.uint64(8),
        backend=name_of(message.uint64(9), BACKENDS),
    )


def _int32_view(chunks: list[memoryview]) -> Int32Array:
    # The server sends an array in one piece; the format allows several, which only a copy brings together.
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    # A copy only where the machine's order of bytes isn't the wire's.
    return np.frombuffer(data, dtype="<i4").astype(np.int32, copy=False)
