"""What an expansion has to hold, computed with numpy from the specification's formulas, apart from any code of ours."""

import numpy as np

# In the order of the Output enum from 1, and of ExpandResponse's fields from 16.
OUTPUTS = (
    "seqlens_expanded",
    "nsa_cache_seqlens",
    "token_to_batch_idx",
    "positions",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "nsa_cu_seqlens_k",
    "ks",
    "ke",
)
OUTPUT_NUMBERS = {name: number for number, name in enumerate(OUTPUTS, start=1)}
DEFAULT_OUTPUTS = OUTPUTS[:2]
MODES = {"REPEAT": 1, "CAUSAL": 2}
INT32_MAX = 2**31 - 1


def _running_sum(values):
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])


def expand(extend_seq_lens, seq_lens, nsa_index_topk, mode):
    """{output: int64 values} of all outputs; a value may pass int32."""
    q = np.asarray(extend_seq_lens, dtype=np.int64)
    s = np.asarray(seq_lens, dtype=np.int64)
    b = np.repeat(np.arange(q.size), q)
    cu_seqlens_q, cu_seqlens_k = _running_sum(q), _running_sum(s)
    i = np.arange(b.size) - cu_seqlens_q[b]
    positions = s[b] - q[b] + i
    seqlens_expanded = s[b] if mode == "REPEAT" else np.maximum(positions + 1, 0)
    nsa_cache_seqlens = np.minimum(seqlens_expanded, nsa_index_topk)
    ks = cu_seqlens_k[b]
    return {
        "seqlens_expanded": seqlens_expanded,
        "nsa_cache_seqlens": nsa_cache_seqlens,
        "token_to_batch_idx": b,
        "positions": positions,
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "nsa_cu_seqlens_k": _running_sum(nsa_cache_seqlens),
        "ks": ks,
        "ke": ks + seqlens_expanded,
    }


def assert_right(response, request, mode, outputs=DEFAULT_OUTPUTS):
    """Fails with the first difference between a response and what its request asked for."""
    expected = expand(request.extend_seq_lens, request.seq_lens, request.nsa_index_topk, mode)
    assert response.request_id == request.request_id
    assert response.total_tokens == sum(request.extend_seq_lens)
    assert response.mode == MODES[mode]
    for name in OUTPUTS:
        wanted = expected[name] if name in outputs else []
        got = np.asarray(getattr(response, name), dtype=np.int64)
        assert np.array_equal(got, wanted), f"{name} of request {request.request_id}: got {got}, want {wanted}"
