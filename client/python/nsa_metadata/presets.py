"""What engines expand, as arguments of Client.expand: which lengths and which mode each of their steps has.

    client.expand(**sglang_target_verify(seq_lens, num_draft_tokens=4), nsa_index_topk=2048)

client/PRESETS.md says which of their arrays is which of ours, with sources.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nsa_metadata.enums import Mode
from nsa_metadata.request import int32, int32_array


class Lengths(TypedDict):
    """Arguments of Client.expand; the lengths are [num_sequences], tokens."""

    extend_seq_lens: ArrayLike
    seq_lens: ArrayLike
    mode: Mode


def _as_many(value: int, seq_lens: ArrayLike) -> NDArray[np.int64]:
    return np.full(np.shape(seq_lens), value, dtype=np.int64)


def _integers(argument: str, values: ArrayLike) -> NDArray[np.int64]:
    """To compute with; what is no integer, or passes int32, raises as it would in Client.expand."""
    return int32_array(argument, values).astype(np.int64)


def sglang_decode(seq_lens: ArrayLike) -> Lengths:
    """SGLang's NSA/DSA backend, decode: a token a sequence, which sees all of it."""
    return {"extend_seq_lens": _as_many(1, seq_lens), "seq_lens": seq_lens, "mode": "causal"}


def sglang_target_verify(seq_lens: ArrayLike, num_draft_tokens: int) -> Lengths:
    """SGLang, target_verify: `num_draft_tokens` drafts after each sequence of seq_lens tokens."""
    num_draft_tokens = int32("num_draft_tokens", num_draft_tokens)
    return {
        "extend_seq_lens": _as_many(num_draft_tokens, seq_lens),
        "seq_lens": _integers("seq_lens", seq_lens) + num_draft_tokens,
        "mode": "causal",
    }


def sglang_extend(extend_seq_lens: ArrayLike, seq_lens: ArrayLike) -> Lengths:
    """SGLang, extend and draft_extend: the last tokens of each sequence; in draft_extend those are the accepted."""
    return {"extend_seq_lens": extend_seq_lens, "seq_lens": seq_lens, "mode": "causal"}


def vllm_ragged_decode(decode_lens: ArrayLike, seq_lens: ArrayLike) -> Lengths:
    """vLLM's sparse MLA indexer, decode with drafts of different numbers."""
    return {"extend_seq_lens": decode_lens, "seq_lens": seq_lens, "mode": "causal"}


def flashinfer_batch_indices_positions(append_indptr: ArrayLike, seq_lens: ArrayLike) -> Lengths:
    """FlashInfer's get_batch_indices_positions: ask for token_to_batch_idx and positions.

    append_indptr: [num_sequences + 1], running sums from 0.
    """
    return {"extend_seq_lens": np.diff(_integers("append_indptr", append_indptr)), "seq_lens": seq_lens, "mode": "causal"}


def tensorrt_llm_kv_lens_expanded(kv_lens: ArrayLike, max_draft_tokens: int) -> Lengths:
    """TensorRT-LLM's kv_lens_expanded: each length once for each of a sequence's 1 + max_draft_tokens tokens."""
    rows = 1 + int32("max_draft_tokens", max_draft_tokens)
    return {"extend_seq_lens": _as_many(rows, kv_lens), "seq_lens": kv_lens, "mode": "repeat"}
