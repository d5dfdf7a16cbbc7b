"""The same expansions in this process, without a server: on the host, or on the CUDA device where the arrays are.

    from nsa_metadata import local

    local.expand([3, 2], [10, 4], nsa_index_topk=2048, mode="causal").seqlens_expanded  # [8, 9, 10, 3, 4]

    # In place, on the current stream of torch's; any arrays with DLPack, all of one place.
    total = local.fill_draft_extend_metadata_adaptive(
        extend_seq_lens, seq_lens, 2048, seqlens_expanded, nsa_cache_seqlens, mode="causal"
    )

What computes: for arrays on a CUDA device the kernels there, from machine code or from PTX that the driver compiles;
where they can't run, the host's code, with copies there and back, which is logged once; for arrays of the host's that
code. Arrays on a device need an extension that was built where nvcc is. The environment, read when this module is imported, may say otherwise:

    NSA_METADATA_BACKEND            auto, cuda, cpu or reference, the plain path; with cuda what can't be done there fails
    SGLANG_NSA_USE_TRITON_METADATA  0 forces the plain path, as in SGLang, whatever NSA_METADATA_BACKEND is
"""

import functools
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from nsa_metadata.enums import OUTPUTS, Mode, Output
from nsa_metadata.expansion import Expansion
from nsa_metadata.request import asked_outputs, int32_array

try:
    from nsa_metadata import _local
    from nsa_metadata._local import fill_draft_extend_metadata, fill_draft_extend_metadata_adaptive
except ImportError as why:
    raise ImportError(f"this installation of nsa_metadata has no extension for nsa_metadata.local: {why}") from why

__all__ = ["Backend", "Kernel", "backend_of", "expand", "fill_draft_extend_metadata", "fill_draft_extend_metadata_adaptive"]

Backend = Literal["auto", "cuda", "cpu", "reference"]
Kernel = Literal["linear", "binary", "rows", "tile"]

_BACKENDS = ("auto", "cuda", "cpu", "reference")
_BY_SEQUENCE = ("cu_seqlens_q", "cu_seqlens_k")
_NOT_ASKED: dict[str, Any] = dict.fromkeys(OUTPUTS)
_INT32_MAX = 2**31 - 1

_log = logging.getLogger(__name__)


def _backend_of_environment() -> Backend:
    if os.environ.get("SGLANG_NSA_USE_TRITON_METADATA", "1").lower() in ("0", "false", "no", "n"):
        return "reference"
    said = os.environ.get("NSA_METADATA_BACKEND") or "auto"
    if said not in _BACKENDS:
        raise ImportError(f"NSA_METADATA_BACKEND is {said!r}, want one of {', '.join(_BACKENDS)}")
    return said  # type: ignore[return-value]


_BACKEND: Backend = _backend_of_environment()


def expand(
    extend_seq_lens: ArrayLike,
    seq_lens: ArrayLike,
    *,
    nsa_index_topk: int = 0,
    mode: Mode,
    outputs: Iterable[Output] | None = None,
) -> Expansion:
    """Expands one request; the arguments are Client.expand's, and so are the arrays of the answer.

    The answer's arrays are numpy's, the caller's own and writable; where extend_seq_lens is a tensor of torch's on a CUDA
    device they are tensors there, computed on the current stream, which this waits for a few times. Arrays of others on a device:
    fill_draft_extend_metadata. A ValueError names argument, index, value and limit of what is wrong, as a server would.
    """
    asked = asked_outputs(outputs)
    if _is_cuda_tensor(extend_seq_lens):
        return _expand_tensors(extend_seq_lens, seq_lens, nsa_index_topk, mode, asked)
    q, s = int32_array("extend_seq_lens", extend_seq_lens), int32_array("seq_lens", seq_lens)
    total = int(q.sum(dtype=np.int64))
    if total > _INT32_MAX:
        raise ValueError(f"the sum of extend_seq_lens is {total}, want at most {_INT32_MAX}")
    # A negative sum is refused below, by the length that is negative.
    lengths = {name: _length(name, len(q), max(total, 0)) for name in asked}
    arrays: dict[str, Any] = {name: np.empty(length, np.int32) for name, length in lengths.items()}
    fill_draft_extend_metadata_adaptive(q, s, nsa_index_topk, mode=mode, **{**_NOT_ASKED, **arrays})
    return Expansion(request_id=0, total_tokens=total, mode=mode, timing=None, **arrays)


@functools.cache
def backend_of(device: int | None = None) -> tuple[Backend, str]:
    """What computes for arrays of a CUDA device, or of the host's (None), and what is to be said of it.

    RuntimeError where NSA_METADATA_BACKEND asks for what can't be done.
    """
    if device is None:
        if _BACKEND == "cuda":
            raise RuntimeError("NSA_METADATA_BACKEND is cuda, and the arrays are the host's")
        return ("reference" if _BACKEND == "reference" else "cpu"), "the host's arrays"
    if _BACKEND in ("cpu", "reference"):
        return _BACKEND, "as the environment says"
    unusable, tier, name = _local.look_at_device(device)
    if not unusable:
        return "cuda", f"{name}, {tier}"
    if _BACKEND == "cuda":
        raise RuntimeError(f"NSA_METADATA_BACKEND is cuda, and {name} can't run the kernels: {unusable}")
    _log.warning("%s can't run the kernels: %s; its arrays are computed by the host, with copies", name, unusable)
    return "cpu", f"{name} can't run the kernels: {unusable}"


def _length(output: str, num_sequences: int, total_tokens: int) -> int:
    if output in _BY_SEQUENCE:
        return num_sequences + 1
    return total_tokens + 1 if output == "nsa_cu_seqlens_k" else total_tokens


def _is_cuda_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor) and bool(array.is_cuda)


def _expand_tensors(extend_seq_lens: Any, seq_lens: Any, nsa_index_topk: int, mode: Mode, asked: tuple[Output, ...]) -> Expansion:
    torch = sys.modules["torch"]
    device = extend_seq_lens.device
    q = _int32_tensor("extend_seq_lens", extend_seq_lens, device)
    s = _int32_tensor("seq_lens", torch.as_tensor(seq_lens, device=device), device)
    total = int(q.sum())
    arrays: dict[str, Any] = {
        name: torch.empty(_length(name, q.numel(), total), dtype=torch.int32, device=device) for name in asked
    }
    fill_draft_extend_metadata_adaptive(q, s, nsa_index_topk, mode=mode, **{**_NOT_ASKED, **arrays})
    return Expansion(request_id=0, total_tokens=total, mode=mode, timing=None, **arrays)


def _int32_tensor(name: str, lengths: Any, device: Any) -> Any:
    """The lengths as a contiguous int32 tensor on the device. ValueError where one is negative, or passes int32."""
    torch = sys.modules["torch"]
    if lengths.dim() != 1:
        raise ValueError(f"{name} has the shape {list(lengths.shape)}, want [num_sequences]")
    if lengths.numel() == 0:
        return torch.empty(0, dtype=torch.int32, device=device)
    if lengths.is_floating_point() or lengths.dtype is torch.bool:
        raise TypeError(f"{name} is of {lengths.dtype}, want integers")
    least, most = (int(bound) for bound in torch.aminmax(lengths))
    if least < 0:
        raise ValueError(f"the least of {name} is {least}, want at least 0")
    if most > _INT32_MAX:
        raise ValueError(f"the largest of {name} is {most}, want at most {_INT32_MAX}")
    return lengths.to(device=device, dtype=torch.int32).contiguous()
