# The extension module, client/python/local.cc.
from typing import Any

from nsa_metadata.enums import Mode
from nsa_metadata.local import Kernel

def look_at_device(device: int) -> tuple[str, str, str]: ...
def fill_draft_extend_metadata(
    extend_seq_lens: Any,
    seq_lens: Any,
    nsa_index_topk: int,
    seqlens_expanded: Any,
    nsa_cache_seqlens: Any,
    *,
    mode: Mode,
    kernel: Kernel = "binary",
    token_to_batch_idx: Any = None,
    positions: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    nsa_cu_seqlens_k: Any = None,
    ks: Any = None,
    ke: Any = None,
    stream: Any = None,
    synchronize: bool = True,
) -> int | None: ...
def fill_draft_extend_metadata_adaptive(
    extend_seq_lens: Any,
    seq_lens: Any,
    nsa_index_topk: int,
    seqlens_expanded: Any,
    nsa_cache_seqlens: Any,
    *,
    mode: Mode,
    token_to_batch_idx: Any = None,
    positions: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    nsa_cu_seqlens_k: Any = None,
    ks: Any = None,
    ke: Any = None,
    stream: Any = None,
    synchronize: bool = True,
) -> int | None: ...
