"""The expansion for Triton's Python backend: the default outputs in both modes, computed with numpy."""

import numpy as np
import triton_python_backend_utils as triton

CAUSAL = 2


def expand(extend_seq_lens, seq_lens, nsa_index_topk, mode):
    """seqlens_expanded and nsa_cache_seqlens, int32 [total_tokens], of int32 arrays [num_sequences]."""
    if mode == CAUSAL:
        # s_b - q_b + i + 1 is s_b - (q_0 + … + q_b) + t + 1: one gather and a ramp.
        offsets = seq_lens - np.cumsum(extend_seq_lens, dtype=np.int32) + 1
        seqlens_expanded = np.repeat(offsets, extend_seq_lens)
        seqlens_expanded += np.arange(seqlens_expanded.size, dtype=np.int32)
        np.maximum(seqlens_expanded, 0, out=seqlens_expanded)
    else:
        seqlens_expanded = np.repeat(seq_lens, extend_seq_lens)
    return seqlens_expanded, np.minimum(seqlens_expanded, nsa_index_topk)


def respond(request):
    extend_seq_lens, seq_lens = triton.get_input_tensor_by_name(request, "lengths").as_numpy()[0]
    nsa_index_topk, mode = triton.get_input_tensor_by_name(request, "settings").as_numpy()[0]
    if extend_seq_lens.size and min(extend_seq_lens.min(), seq_lens.min()) < 0:
        return triton.InferenceResponse(error=triton.TritonError("a length is negative"))
    seqlens_expanded, nsa_cache_seqlens = expand(extend_seq_lens, seq_lens, nsa_index_topk, mode)
    return triton.InferenceResponse(
        [
            triton.Tensor("seqlens_expanded", seqlens_expanded[np.newaxis]),
            triton.Tensor("nsa_cache_seqlens", nsa_cache_seqlens[np.newaxis]),
        ]
    )


class TritonPythonModel:
    def execute(self, requests):
        # To compute a batch's requests together gained nothing: the tensors cost more than the arithmetic.
        return [respond(request) for request in requests]
