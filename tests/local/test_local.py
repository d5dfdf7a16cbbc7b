"""nsa_metadata.local on the host, with the package as it is installed: python -m pytest tests/local."""

import ast
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "e2e"))

from nsa_metadata import local  # noqa: E402, the installed one
from reference import OUTPUTS, expand  # noqa: E402

MODES = ("repeat", "causal")
MARKER = -77
each_mode = pytest.mark.parametrize("mode", MODES)
each_fill = pytest.mark.parametrize("fill", [local.fill_draft_extend_metadata, local.fill_draft_extend_metadata_adaptive])
GOLDEN = [json.loads(line) for line in (TESTS / "golden" / "expand.jsonl").read_text().splitlines()]


def length_of(name, num_sequences, total_tokens):
    if name in ("cu_seqlens_q", "cu_seqlens_k"):
        return num_sequences + 1
    return total_tokens + (name == "nsa_cu_seqlens_k")


def arrays(num_sequences, capacity, names=OUTPUTS):
    return {name: np.full(length_of(name, num_sequences, capacity), MARKER, np.int32) for name in names}


def filled(fill, q, s, top_k, mode, capacity=None, names=OUTPUTS):
    """The total that `fill` returns, and the arrays it has written."""
    q, s = np.asarray(q, np.int32), np.asarray(s, np.int32)
    out = arrays(len(q), int(q.sum()) if capacity is None else capacity, names)
    named = {"seqlens_expanded": None, "nsa_cache_seqlens": None, **out}
    return fill(q, s, top_k, **named, mode=mode), out


def random_lengths(seed, most=40):
    random = np.random.default_rng(seed)
    n = int(random.integers(0, most))
    return random.integers(0, 30, n).astype(np.int32), random.integers(0, 5_000, n).astype(np.int32)


def assert_right(out, q, s, top_k, mode):
    expected = expand(q, s, top_k, mode.upper())
    for name, array in out.items():
        assert np.array_equal(array[: len(expected[name])], expected[name]), name
        assert (array[len(expected[name]) :] == MARKER).all(), f"{name} past its tokens"


def test_the_package_under_test_is_the_installed_one():
    assert "site-packages" in local.__file__


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['name']}, {case['mode']}")
def test_known_answers(case):
    request = {name: case[name] for name in ("extend_seq_lens", "seq_lens", "nsa_index_topk")}
    for name, values in case["expected"].items():
        if values is None:  # a value passes int32
            with pytest.raises(ValueError, match=name):
                local.expand(**request, mode=case["mode"].lower(), outputs=[name])
        else:
            answer = local.expand(**request, mode=case["mode"].lower(), outputs=[name])
            assert getattr(answer, name).tolist() == values, name


@each_mode
@pytest.mark.parametrize("seed", range(8))
def test_expand_gives_what_the_definitions_say(mode, seed):
    q, s = random_lengths(seed)
    answer = local.expand(q.tolist(), s, nsa_index_topk=64, mode=mode, outputs=OUTPUTS)
    assert (answer.total_tokens, answer.mode) == (q.sum(), mode)
    assert_right({name: getattr(answer, name) for name in OUTPUTS}, q, s, 64, mode)


def test_expand_gives_the_first_two_outputs_unless_it_is_asked():
    answer = local.expand([3, 2], [10, 4], nsa_index_topk=8, mode="causal")
    assert answer.seqlens_expanded.tolist() == [8, 9, 10, 3, 4]
    assert answer.nsa_cache_seqlens.tolist() == [8, 8, 8, 3, 4]
    assert answer.positions is None
    answer.seqlens_expanded[0] = 0  # the caller's own


@each_mode
@each_fill
def test_filling_in_place_leaves_what_is_past_the_tokens(fill, mode):
    for seed in range(8):
        q, s = random_lengths(seed)
        total, out = filled(fill, q, s, 64, mode, capacity=int(q.sum()) + 1_000)
        assert total == q.sum()
        assert_right(out, q, s, 64, mode)


@each_fill
def test_outputs_that_are_not_asked_are_not_needed(fill):
    for name in OUTPUTS:
        total, out = filled(fill, [3, 2], [10, 4], 8, "causal", names=[name])
        assert total == 5
        assert_right(out, [3, 2], [10, 4], 8, "causal")


def test_a_batch_of_nothing():
    answer = local.expand([], [], mode="causal", nsa_index_topk=1, outputs=OUTPUTS)
    assert answer.total_tokens == 0
    assert {name: getattr(answer, name).tolist() for name in OUTPUTS} == {
        name: [0] if name.startswith(("cu_", "nsa_cu_")) else [] for name in OUTPUTS
    }


class OnlyDlpack:
    """An array of a library that has DLPack and nothing else."""

    def __init__(self, array, device=None):
        self._array, self._device = array, device

    def __dlpack__(self, **more):
        return self._array.__dlpack__(**more)

    def __dlpack_device__(self):
        return self._device or self._array.__dlpack_device__()


@each_fill
def test_any_array_with_dlpack_is_taken(fill):
    q, s = np.array([3, 2], np.int32), np.array([10, 4], np.int32)
    out = np.full(5, MARKER, np.int32)
    assert fill(OnlyDlpack(q), OnlyDlpack(s), 8, OnlyDlpack(out), None, mode="causal") == 5
    assert out.tolist() == [8, 9, 10, 3, 4]


@each_fill
@pytest.mark.parametrize("more", [{}, {"mode": "causal", "mood": 1}])
def test_mode_has_to_be_said_and_nothing_unknown(fill, more):
    q = np.array([3], np.int32)
    with pytest.raises(TypeError, match=r"mode: Mode, .*synchronize: bool = True"):
        fill(q, q, 9, None, np.empty(3, np.int32), **more)


@each_fill
def test_help_has_the_signature_that_type_checkers_see(fill):
    stub = ast.parse(Path(local.__file__).with_name("_local.pyi").read_text(encoding="utf-8"))
    stated = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}[fill.__name__]
    shown = ast.parse(f"def {fill.__doc__.splitlines()[0]}: ...").body[0]
    assert ast.unparse(shown) == ast.unparse(stated)


def test_lengths_may_be_read_only():
    q, s = np.array([3, 2], np.int32), np.array([10, 4], np.int32)
    q.flags.writeable = s.flags.writeable = False
    assert filled(local.fill_draft_extend_metadata, q, s, 8, "causal")[0] == 5


WRONG = [
    ({"extend_seq_lens": [3, -2]}, "extend_seq_lens[1] is -2, want at least 0"),
    ({"seq_lens": [10, -4]}, "seq_lens[1] is -4, want at least 0"),
    ({"seq_lens": [10]}, "extend_seq_lens has 2 sequences, seq_lens 1"),
    ({"nsa_index_topk": 0}, "nsa_index_topk is 0, want at least 1"),
    ({"nsa_index_topk": 2**31}, "nsa_index_topk is 2147483648, want at most 2147483647"),
    ({"mode": "both"}, "mode is 'both', want one of repeat, causal"),
    ({"extend_seq_lens": [2**31 - 1, 2]}, "the sum of extend_seq_lens is 2147483649, want at most"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message.split(" is ")[0] for _, message in WRONG])
def test_what_is_wrong_is_named(change, message):
    right = {"extend_seq_lens": [3, 2], "seq_lens": [10, 4], "nsa_index_topk": 8, "mode": "causal"}
    with pytest.raises(ValueError) as caught:
        local.expand(**{**right, **change})
    assert message in str(caught.value)


def test_values_that_pass_int32_are_refused_where_they_are_asked():
    request = {"extend_seq_lens": [1, 1], "seq_lens": [2**31 - 1, 2], "nsa_index_topk": 8, "mode": "repeat"}
    assert local.expand(**request).nsa_cache_seqlens.tolist() == [8, 2]
    with pytest.raises(ValueError, match="the largest value of ke is 2147483649, want at most 2147483647"):
        local.expand(**request, outputs=["ke"])


@each_fill
def test_tokens_that_find_no_room_are_refused_and_nothing_is_written(fill):
    q, s = np.array([3, 2], np.int32), np.array([10, 4], np.int32)
    out = np.full(4, MARKER, np.int32)
    with pytest.raises(ValueError, match="the sum of extend_seq_lens is 5, want at most 4, the outputs' room"):
        fill(q, s, 8, np.empty(9, np.int32), out, mode="causal")
    assert (out == MARKER).all()
    with pytest.raises(ValueError, match="cu_seqlens_q has room for 2 values, want at least 3"):
        fill(q, s, 8, None, None, cu_seqlens_q=np.empty(2, np.int32), mode="causal")


def read_only(array):
    array.flags.writeable = False
    return array


BAD_OUTPUTS = {
    "wider": (lambda: np.empty(5, np.int64), ValueError),
    "of two dimensions": (lambda: np.empty((5, 1), np.int32), ValueError),
    "with gaps": (lambda: np.empty(10, np.int32)[::2], ValueError),
    "a list": (lambda: [0] * 5, TypeError),
    "read-only": (lambda: read_only(np.empty(5, np.int32)), TypeError),
}


@pytest.mark.parametrize(("make", "error"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_outputs_that_cant_be_written_are_refused_by_name(make, error):
    with pytest.raises(error, match="seqlens_expanded"):
        local.fill_draft_extend_metadata(
            np.array([3, 2], np.int32), np.array([10, 4], np.int32), 8, make(), None, mode="causal"
        )


def test_a_kernel_of_the_devices_is_not_looked_at_on_the_host():
    q, s, out = (np.array(x, np.int32) for x in ([3, 2], [10, 4], [0] * 5))
    assert local.fill_draft_extend_metadata(q, s, 9, out, None, mode="causal", kernel="none of them") == 5
    assert out.tolist() == [8, 9, 10, 3, 4]


def test_what_is_no_array_is_named():
    q, out = np.array([3], np.int32), np.zeros(3, np.int32)
    for s, said in ((None, "NoneType"), (7, "int"), ([7], "list")):
        with pytest.raises(TypeError, match=f"seq_lens is a {said}, want an array with DLPack"):
            local.fill_draft_extend_metadata_adaptive(q, s, 9, out, None, mode="causal")


def test_threads_expand_at_the_same_time():
    wrong = []

    def run(seed):
        q, s = random_lengths(seed, most=2_000)
        for _ in range(20):
            try:
                assert_right(filled(local.fill_draft_extend_metadata_adaptive, q, s, 64, "causal")[1], q, s, 64, "causal")
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


@pytest.mark.parametrize(
    ("environment", "backend"),
    [
        ({}, "cpu"),
        ({"NSA_METADATA_BACKEND": "auto"}, "cpu"),
        ({"NSA_METADATA_BACKEND": "cpu"}, "cpu"),
        ({"NSA_METADATA_BACKEND": "reference"}, "reference"),
        ({"SGLANG_NSA_USE_TRITON_METADATA": "1"}, "cpu"),
        ({"SGLANG_NSA_USE_TRITON_METADATA": "0"}, "reference"),
        ({"SGLANG_NSA_USE_TRITON_METADATA": "False", "NSA_METADATA_BACKEND": "cuda"}, "reference"),
    ],
)
def test_the_environment_says_what_computes(environment, backend):
    code = "from nsa_metadata import local; print(local.backend_of()[0], local.expand([3], [5], mode='causal', nsa_index_topk=9).seqlens_expanded)"
    done = python(code, **environment)
    assert done.stdout == f"{backend} [3 4 5]\n", done.stderr


def test_an_environment_that_cant_be_followed_is_named():
    assert "NSA_METADATA_BACKEND is 'gpu', want one of" in python("import nsa_metadata.local", NSA_METADATA_BACKEND="gpu").stderr
    done = python("from nsa_metadata import local; local.expand([3], [5], mode='causal', nsa_index_topk=9)", NSA_METADATA_BACKEND="cuda")
    assert "NSA_METADATA_BACKEND is cuda, and the arrays are the host's" in done.stderr

