"""nsa_metadata.local on a CUDA device, by torch's tensors; tests/gpu/run.sh runs it. Without a device all of it is skipped."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))

from nsa_metadata import local  # noqa: E402
from nsa_metadata.request import int32_array  # noqa: E402
from reference import OUTPUTS, expand  # noqa: E402

MARKER = -77
MODES = ("repeat", "causal")
KERNELS = ("linear", "binary", "rows", "tile", None)


def on_device(values):
    return torch.tensor(np.asarray(values), dtype=torch.int32, device="cuda")


def length_of(name, num_sequences, total_tokens):
    if name in ("cu_seqlens_q", "cu_seqlens_k"):
        return num_sequences + 1
    return total_tokens + (name == "nsa_cu_seqlens_k")


def marked(num_sequences, capacity, names=OUTPUTS):
    return {
        name: torch.full((length_of(name, num_sequences, capacity),), MARKER, dtype=torch.int32, device="cuda") for name in names
    }


def fill(q, s, out, mode, kernel=None, **more):
    named = {"seqlens_expanded": None, "nsa_cache_seqlens": None, **out}
    if kernel is None:
        return local.fill_draft_extend_metadata_adaptive(q, s, 64, **named, mode=mode, **more)
    return local.fill_draft_extend_metadata(q, s, 64, **named, mode=mode, kernel=kernel, **more)


def lengths(num_sequences, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 30, num_sequences), random.integers(0, 5_000, num_sequences)


def assert_right(out, q, s, mode, top_k=64):
    expected = expand(np.asarray(q), np.asarray(s), top_k, mode.upper())
    for name, tensor in out.items():
        array = tensor.cpu().numpy()
        want = expected[name][: len(array)]
        assert np.array_equal(array[: len(want)], want), name
        assert (array[len(want) :] == MARKER).all(), f"{name} past its tokens"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_sequences", [0, 1, 5, 33, 1_024, 1_025, 70_000])
def test_every_kernel_gives_what_the_definitions_say(num_sequences, kernel, mode):
    q, s = lengths(num_sequences)
    out = marked(num_sequences, int(q.sum()) + 100)
    assert fill(on_device(q), on_device(s), out, mode, kernel) == q.sum()
    assert_right(out, q, s, mode)


def test_it_gives_what_torch_does():
    q, s = lengths(200, seed=3)
    q = np.minimum(q, s)
    want = torch.cat([torch.arange(int(b - a) + 1, int(b) + 1, dtype=torch.int32, device="cuda") for a, b in zip(q, s, strict=True)])
    answer = local.expand(on_device(q), on_device(s), nsa_index_topk=2048, mode="causal")
    assert answer.seqlens_expanded.is_cuda
    assert torch.equal(answer.seqlens_expanded, want)
    assert torch.equal(answer.nsa_cache_seqlens, want.clamp(max=2048))


def test_lengths_that_are_negative_are_refused_where_they_are_looked_at():
    with pytest.raises(ValueError, match="the least of seq_lens is -4, want at least 0"):
        local.expand(on_device([3, 2]), on_device([10, -4]), nsa_index_topk=8, mode="causal")


def test_it_comes_after_what_its_stream_has_to_do_before():
    q, s = lengths(300, seed=4)
    stream = torch.cuda.Stream()
    for said in (None, stream, stream.cuda_stream):
        late_q, late_s = (torch.zeros(300, dtype=torch.int32, device="cuda") for _ in range(2))
        out = marked(300, int(q.sum()))
        on_q, on_s = on_device(q), on_device(s)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late_q.copy_(on_q)
            late_s.copy_(on_s)
            if said is None:
                total = fill(late_q, late_s, out, "causal")
        if said is not None:
            total = fill(late_q, late_s, out, "causal", stream=said)
        assert total == q.sum()
        assert_right(out, q, s, "causal")


@pytest.mark.parametrize("num_sequences", [4, 300, 5_000])
def test_it_can_be_captured_in_a_graph(num_sequences):
    q, s = lengths(num_sequences, seed=5)
    on_q, on_s = on_device(q), on_device(s)
    out = marked(num_sequences, 30 * num_sequences)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert fill(on_q, on_s, out, "causal", synchronize=False) is None
    for seed in (6, 7):
        q, s = lengths(num_sequences, seed)
        on_q.copy_(on_device(q))
        on_s.copy_(on_device(s))
        for tensor in out.values():
            tensor.fill_(MARKER)
        graph.replay()
        torch.cuda.synchronize()
        assert_right(out, q, s, "causal")


def test_what_waits_cant_be_captured_and_says_so():
    on_q, on_s, out = on_device([3, 2]), on_device([10, 4]), marked(2, 5)
    fill(on_q, on_s, out, "causal")
    with pytest.raises(RuntimeError, match="want synchronize=False"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            fill(on_q, on_s, out, "causal")


def test_tokens_that_find_no_room_are_not_written_and_it_says_so():
    q, s = lengths(100, seed=8)
    out = marked(100, int(q.sum()) - 7, names=["seqlens_expanded", "positions"])
    with pytest.raises(ValueError, match=f"the sum of extend_seq_lens is {q.sum()}, want at most {q.sum() - 7}"):
        fill(on_device(q), on_device(s), out, "causal")
    assert_right(out, q, s, "causal")


def test_arrays_in_different_places_are_refused():
    with pytest.raises(ValueError, match="seq_lens is not where extend_seq_lens is"):
        fill(on_device([3]), np.array([5], np.int32), {}, "causal")


class OnlyDlpack:
    def __init__(self, tensor):
        self._tensor = tensor

    def __dlpack__(self, **more):
        return self._tensor.__dlpack__(**more)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


def test_any_array_with_dlpack_is_taken():
    out = marked(2, 5, names=["seqlens_expanded"])
    torch.cuda.synchronize()
    wrapped = {name: OnlyDlpack(tensor) for name, tensor in out.items()}
    assert fill(OnlyDlpack(on_device([3, 2])), OnlyDlpack(on_device([10, 4])), wrapped, "causal") == 5
    assert out["seqlens_expanded"].tolist() == [8, 9, 10, 3, 4]


class ByItsTable(torch.Tensor):
    """Has nothing to be known by but its type's functions in C."""

    def refuse(self, *_, **__):
        raise AssertionError("looked at by attribute")

    dtype = device = property(refuse)
    data_ptr = dim = numel = is_contiguous = __dlpack__ = __dlpack_device__ = refuse


class OfOlderTorch(torch.Tensor):
    """Has no such functions, and no DLPack either: its attributes are what there is."""

    __dlpack_c_exchange_api__ = None
    __dlpack__ = __dlpack_device__ = None


@pytest.mark.parametrize("kind", [torch.Tensor, ByItsTable, OfOlderTorch])
def test_tensors_are_taken_with_and_without_functions_in_c(kind):
    stream = torch.cuda.Stream()
    on_q, on_s = on_device([3, 2]), on_device([10, 4])
    late_q, late_s, out = on_device([0, 0]), on_device([0, 0]), on_device([MARKER] * 6)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late_q.copy_(on_q)
        late_s.copy_(on_s)
        named = {"seqlens_expanded": out.as_subclass(kind)}
        assert fill(late_q.as_subclass(kind), late_s.as_subclass(kind), named, "causal") == 5
    assert out.tolist() == [8, 9, 10, 3, 4, MARKER]
    for wrong in (on_q.to(torch.int64), on_q[:1].expand(2), on_q.reshape(1, 2)):
        with pytest.raises(ValueError, match="extend_seq_lens is no contiguous int32 array of one dimension"):
            fill(wrong.as_subclass(kind), on_s.as_subclass(kind), {"seqlens_expanded": out}, "causal")
    assert fill(on_q[1:].as_subclass(kind), on_s[1:].as_subclass(kind), {"seqlens_expanded": out[3:].as_subclass(kind)}, "causal") == 2
    assert out.tolist() == [8, 9, 10, 3, 4, MARKER]


@pytest.mark.parametrize("kind", [torch.Tensor, ByItsTable, OfOlderTorch])
@pytest.mark.parametrize("pinned", [False, True])
def test_tensors_of_the_hosts_are_taken(kind, pinned):
    q, s, out = (torch.tensor(x, dtype=torch.int32, pin_memory=pinned) for x in ([3, 2], [10, 4], [MARKER] * 6))
    assert fill(q.as_subclass(kind), s.as_subclass(kind), {"seqlens_expanded": out.as_subclass(kind)}, "causal") == 5
    assert out.tolist() == [8, 9, 10, 3, 4, MARKER]


def test_room_for_more_tokens_than_blocks_have_flags():
    q, s = lengths(16, seed=11)
    out = marked(16, 40_000_000, names=["seqlens_expanded"])
    for kernel in KERNELS:
        assert fill(on_device(q), on_device(s), out, "causal", kernel) == q.sum()
        assert_right(out, q, s, "causal")
        out["seqlens_expanded"].fill_(MARKER)


def test_calls_on_different_streams_follow_each_other():
    streams = [torch.cuda.Stream() for _ in range(2)]
    requests = [lengths(n, seed=n) for n in (7, 500)]
    on = [tuple(map(on_device, request)) for request in requests]
    outs = [marked(len(q), int(q.sum())) for q, _ in requests]
    torch.cuda.synchronize()
    for _ in range(500):
        for stream, arrays, out, (q, _) in zip(streams, on, outs, requests, strict=True):
            assert fill(*arrays, out, "repeat", stream=stream) == q.sum()
    for out, (q, s) in zip(outs, requests, strict=True):
        assert_right(out, q, s, "repeat")


def test_a_kernel_that_there_is_not_is_refused():
    for kernel in ("fastest", 3):
        with pytest.raises(ValueError, match=f"kernel is {kernel!r}, want one of linear, binary, rows, tile"):
            local.fill_draft_extend_metadata(on_device([3]), on_device([5]), 9, on_device([0] * 3), None, mode="causal", kernel=kernel)


def test_a_stream_that_is_none_is_refused():
    with pytest.raises(TypeError, match="stream is a str, want a CUDA stream or its handle"):
        fill(on_device([3]), on_device([5]), {}, "causal", stream="mine")


@pytest.mark.parametrize(
    ("environment", "backend"),
    [
        ({}, "cuda"),
        ({"NSA_METADATA_BACKEND": "cuda"}, "cuda"),
        ({"NSA_METADATA_BACKEND": "cpu"}, "cpu"),
        ({"SGLANG_NSA_USE_TRITON_METADATA": "0"}, "reference"),
        ({"CUDA_FORCE_PTX_JIT": "1"}, "cuda"),
    ],
)
def test_the_environment_says_what_computes(environment, backend):
    # Of torch's nothing but copies: not all of its own kernels are there as PTX.
    code = (
        "import torch; from nsa_metadata import local\n"
        "q, s, out = (torch.tensor(x, dtype=torch.int32).cuda() for x in ([3, 2], [10, 4], [0] * 5))\n"
        "total = local.fill_draft_extend_metadata_adaptive(q, s, 9, None, out, mode='causal')\n"
        "print(*local.backend_of(0), total, out.cpu().tolist(), sep='; ')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert done.returncode == 0, done.stderr
    said, why, total, values = done.stdout.strip().split("; ")
    assert (said, total, values) == (backend, "5", "[8, 9, 9, 3, 4]")
    if backend == "cuda":
        assert why.endswith("PTX" if environment.get("CUDA_FORCE_PTX_JIT") else "machine code")


def test_sums_by_sequence_alone_are_written():
    q, s = lengths(2_000, seed=9)
    out = marked(2_000, 0, names=["cu_seqlens_q", "cu_seqlens_k"])
    assert fill(on_device(q), on_device(s), out, "causal") == q.sum()
    assert_right(out, q, s, "causal")


def test_lists_and_wider_integers_are_taken_beside_tensors():
    q = torch.tensor([3, 2], device="cuda")
    answer = local.expand(q, [10, 4], nsa_index_topk=8, mode="causal")
    assert answer.seqlens_expanded.tolist() == [8, 9, 10, 3, 4]
    empty = local.expand(q[:0], [], nsa_index_topk=8, mode="causal")
    assert empty.total_tokens == 0 and empty.seqlens_expanded.is_cuda
    with pytest.raises(ValueError, match="extend_seq_lens has 2 sequences, seq_lens 0"):
        local.expand(q, [], nsa_index_topk=8, mode="causal")


@pytest.mark.parametrize("num_sequences", [4, 5_000])
def test_threads_fill_while_another_captures(num_sequences):
    q, s = lengths(num_sequences, seed=10)
    on_q, on_s = on_device(q), on_device(s)
    torch.cuda.synchronize()
    outs = []

    def run():
        out = marked(num_sequences, int(q.sum()))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        fill(on_q, on_s, out, "causal", stream=stream)
        outs.append(out)

    ready = [marked(num_sequences, int(q.sum())) for _ in range(1)]
    with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        fill(on_q, on_s, ready[0], "causal", synchronize=False)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    torch.cuda.synchronize()
    assert len(outs) == 1
    assert_right(outs[0], q, s, "causal")


def test_the_client_takes_tensors_of_any_device_as_lengths_and_gives_tensors():
    assert int32_array("seq_lens", on_device([3, 2])).tolist() == [3, 2]
    answer = local.expand([3, 2], [10, 4], nsa_index_topk=9, mode="causal")
    tensors = answer.torch("cuda")
    assert tensors["seqlens_expanded"].is_cuda and tensors["nsa_cache_seqlens"].tolist() == [8, 9, 9, 3, 4]
    assert set(tensors) == {"seqlens_expanded", "nsa_cache_seqlens"}
