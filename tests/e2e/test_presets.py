"""Presets and `nsa-metadata check`: what engines build, computed as they do, beside what the service and the program say."""

import json
import re

import numpy as np
import pytest

from nsa_metadata import Client, presets
from programs import CLIENT, REPOSITORY, Server, run

RANDOM = np.random.default_rng(11)
SEQ_LENS = RANDOM.integers(20, 5_000, 40)
LENGTHS = RANDOM.integers(1, 9, 40)
TOP_K = 2048


def ranges(qo_lens, kv_lens):
    """As SGLang and vLLM do: for each sequence from kv_len - qo_len + 1 to kv_len, not below 0."""
    return np.concatenate([np.maximum(np.arange(kv - qo + 1, kv + 1), 0) for qo, kv in zip(qo_lens, kv_lens)])


# Each preset, and what its engine builds: its arrays by our names.
PRESETS = {
    "sglang-decode": (presets.sglang_decode(SEQ_LENS), {"seqlens_expanded": SEQ_LENS}),
    "sglang-target-verify": (presets.sglang_target_verify(SEQ_LENS, 4), {"seqlens_expanded": ranges([4] * 40, SEQ_LENS + 4)}),
    "sglang-draft-extend": (presets.sglang_extend(LENGTHS, SEQ_LENS), {"seqlens_expanded": ranges(LENGTHS, SEQ_LENS)}),
    "sglang-extend": (presets.sglang_extend(SEQ_LENS - 7, SEQ_LENS), {"seqlens_expanded": ranges(SEQ_LENS - 7, SEQ_LENS)}),
    "vllm-ragged-decode": (presets.vllm_ragged_decode(LENGTHS, np.minimum(SEQ_LENS, 3)), {"seqlens_expanded": ranges(LENGTHS, np.minimum(SEQ_LENS, 3))}),
    "flashinfer-batch-indices-positions": (
        presets.flashinfer_batch_indices_positions(np.concatenate([[0], np.cumsum(LENGTHS)]), SEQ_LENS),
        {
            "token_to_batch_idx": np.repeat(np.arange(40), LENGTHS),
            "positions": np.concatenate([np.arange(s - q, s) for q, s in zip(LENGTHS, SEQ_LENS)]),
        },
    ),
    "tensorrt-llm-kv-lens-expanded": (
        presets.tensorrt_llm_kv_lens_expanded(SEQ_LENS, 3),
        {"seqlens_expanded": np.stack([SEQ_LENS] * 4).transpose().flatten()},
    ),
}


@pytest.fixture(scope="module")
def client():
    with Server("--backend=cpu") as server, Client(server.address) as on:
        yield on


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gets_what_its_engine_builds(client, name):
    lengths, built = PRESETS[name]
    expansion = client.expand(**lengths, nsa_index_topk=TOP_K, outputs=[*built, "nsa_cache_seqlens"])
    for output, values in built.items():
        assert np.array_equal(getattr(expansion, output), values), output
    if "seqlens_expanded" in built:
        assert np.array_equal(expansion.nsa_cache_seqlens, built["seqlens_expanded"].clip(max=TOP_K))


def check(path, *flags):
    ran = run(CLIENT, "check", f"--input={path}", *flags)
    return ran.returncode, ran.stdout + ran.stderr


def dump_of(name, form, tmp_path, **changed):
    lengths, built = PRESETS[name]
    arrays = {"extend_seq_lens": lengths["extend_seq_lens"], "seq_lens": lengths["seq_lens"], **built, **changed}
    arrays = {key: np.asarray(values) for key, values in arrays.items() if values is not None}
    path = tmp_path / f"dump.{form.split('-')[0]}"
    if form == "json":
        path.write_text(json.dumps({key: values.tolist() for key, values in arrays.items()}))
    else:
        save = np.savez_compressed if form == "npz-compressed" else np.savez
        save(path, **{key: values.astype(np.int32 if form == "npz-int32" else values.dtype) for key, values in arrays.items()})
    return path


@pytest.mark.parametrize("form", ["json", "npz", "npz-compressed", "npz-int32"])
@pytest.mark.parametrize("name", PRESETS)
def test_check_names_the_preset_that_builds_a_dump(name, form, tmp_path):
    code, said = check(dump_of(name, form, tmp_path))
    assert code == 0, said
    # Verify's lengths with the drafts in them are an extend's of D tokens.
    wanted = "sglang-extend" if name == "sglang-target-verify" else name
    assert wanted in re.search(r"^matches +(.*)$", said, re.MULTILINE)[1].split(", "), said


def test_check_adds_the_drafts_where_the_dump_has_lengths_before_them(tmp_path):
    _, built = PRESETS["sglang-target-verify"]
    path = dump_of("sglang-target-verify", "npz", tmp_path, extend_seq_lens=None, seq_lens=SEQ_LENS, **built)
    code, said = check(path, "--num_draft_tokens=4")
    assert code == 0 and re.search(r"^matches +sglang-target-verify$", said, re.MULTILINE), said


def test_check_adds_no_drafts_to_lengths_that_have_them(tmp_path):
    path = tmp_path / "dump.json"
    verify = {"cache_seqlens_int32": [12, 6], "nsa_seqlens_expanded": [11, 12, 5, 6]}
    path.write_text(json.dumps({**verify, "num_draft_tokens": 2}))
    for flags in ([], ["--preset=sglang-target-verify"]):
        code, said = check(path, *flags)
        assert code == 0 and re.search("^matches +sglang-target-verify$", said, re.MULTILINE), said
    path.write_text(json.dumps({**verify, "extend_seq_lens": [2, 2]}))
    assert check(path, "--preset=sglang-target-verify")[0] == 0
    path.write_text(json.dumps({**verify, "num_draft_tokens": 2, "nsa_seqlens_expanded": [13, 14, 7, 8]}))
    code, said = check(path, "--preset=sglang-target-verify")
    assert code == 1 and "all values are 2 too large" in said, said


@pytest.mark.parametrize("lengths", [
    {"seq_lens": [10, 4], "num_draft_tokens": 2, "nsa_seqlens_expanded": [11, 12, 5, 6]},
    {"seq_lens": [10, 4], "accept_lens": [3, 1], "nsa_seqlens_expanded": [8, 9, 10, 4]},
], ids=["target_verify", "draft_extend"])
def test_check_takes_sglangs_query_for_each_token(tmp_path, lengths):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({**lengths, "cu_seqlens_q": [0, 1, 2, 3, 4]}))
    code, said = check(path)
    assert code == 0 and re.search("^cu_seqlens_q +right\n +looks like SGLang's, a query for each token: 0 to 4$", said, re.MULTILINE), said
    for wrong in ([0, 1, 2, 3], [0, 1, 2, 3, 5]):
        path.write_text(json.dumps({**lengths, "cu_seqlens_q": wrong}))
        code, said = check(path)
        assert code == 1 and "SGLang's" not in said, said


def test_check_takes_no_query_for_each_token_of_other_presets(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"seq_lens": [10, 4], "extend_seq_lens": [3, 1], "nsa_seqlens_expanded": [8, 9, 10, 4], "cu_seqlens_q": [0, 1, 2, 3, 4]}))
    code, said = check(path)
    assert code == 0 and re.search("^matches +sglang-draft-extend$", said, re.MULTILINE), said
    code, said = check(path, "--preset=sglang-extend")
    assert code == 1 and "cu_seqlens_q[1] is 1, want 3" in said, said


def test_check_takes_no_query_for_each_token_in_the_other_mode(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"kv_lens": [10, 4], "max_draft_tokens": 1, "kv_lens_expanded": [10, 10, 4, 4], "cu_seqlens_q": [0, 1, 2, 3, 4]}))
    code, said = check(path)
    assert code == 1 and "cu_seqlens_q[1] is 1, want 2" in said, said


def test_check_compares_a_cu_seqlens_q_that_the_drafts_make_no_lengths(tmp_path):
    path = tmp_path / "dump.json"
    dump = {"seq_lens": [10, 4], "nsa_seqlens_expanded": [11, 12, 5, 6], "cu_seqlens_q": [0, 2, 1]}
    path.write_text(json.dumps({**dump, "num_draft_tokens": 2}))
    code, said = check(path)
    assert code == 1 and "cu_seqlens_q[2] is 1, want 4" in said, said
    path.write_text(json.dumps(dump))
    code, said = check(path)
    assert code == 2 and "cu_seqlens_q[2] is 1, must be 2 or more" in said, said


def test_check_knows_engines_names_for_arrays(tmp_path):
    expanded = ranges(LENGTHS, SEQ_LENS)
    path = tmp_path / "dump.npz"
    np.savez(path, decode_lens=LENGTHS, seq_lens_cpu=SEQ_LENS, dsa_seqlens_expanded=expanded, dsa_cache_seqlens=expanded.clip(max=64), index_topk=64)
    code, said = check(path)
    assert code == 0, said


def test_check_looks_at_every_array_of_an_output_and_names_what_it_does_not_know(tmp_path):
    right, wrong = ranges(LENGTHS, SEQ_LENS), ranges(LENGTHS, SEQ_LENS) + 1
    lengths = {"extend_seq_lens": LENGTHS, "seq_lens": SEQ_LENS, "seq_lens_cpu": SEQ_LENS}
    np.savez(tmp_path / "dump.npz", **lengths, seqlens_expanded=right, nsa_seqlens_expanded=wrong, page_table=[1, 2])
    code, said = check(tmp_path / "dump.npz")
    assert code == 1 and re.search("^seqlens_expanded +right$", said, re.MULTILINE), said
    assert re.search(r"^nsa_seqlens_expanded +nsa_seqlens_expanded\[0\]", said, re.MULTILINE), said
    assert re.search("^not looked at +page_table, seq_lens_cpu$", said, re.MULTILINE), said
    assert json.loads(check(tmp_path / "dump.npz", "--json")[1])["not_looked_at"] == "page_table, seq_lens_cpu"


def test_check_takes_presets_that_there_are(tmp_path):
    code, said = check(tmp_path, "--preset=sglang-decod")
    assert code == 2 and "sglang-decod" in said and "sglang-decode" in said, said


def test_the_documents_names_are_those_that_it_knows():
    text = (REPOSITORY / "client" / "PRESETS.md").read_text()
    documented = set(re.findall(r"`(\w+)`", text[text.index("| ours | other names"):]))
    said = run(CLIENT, "check", "--help").stdout
    known = set(re.findall(r"\w+", said[said.index("Names that are known:"):].split(":", 1)[1].replace("or running sums", "")))
    assert documented == known
    assert all(f"`{name}`" in text for name in re.search(r"\{([^}]*)\}", said)[1].split(","))


def spoilt(values, change):
    changed = values.copy()
    change(changed)
    return changed


EXPANDED = ranges(LENGTHS, SEQ_LENS)
SPOILT = {
    "off by one": ({"seqlens_expanded": EXPANDED + 1}, "off by one: all values are 1 too large"),
    "by more": ({"seqlens_expanded": EXPANDED - 4}, "all values are 4 too small"),
    "the other mode": ({"seqlens_expanded": np.repeat(SEQ_LENS, LENGTHS)}, "the other mode: it is what repeat builds"),
    "no top-k": ({"nsa_cache_seqlens": EXPANDED, "nsa_index_topk": TOP_K}, "a missing clamp: it is seqlens_expanded"),
    "a wrong top-k": ({"nsa_cache_seqlens": EXPANDED.clip(max=512), "nsa_index_topk": TOP_K}, "a wrong top-k: as with nsa_index_topk 512"),
    "a wrong top-k everywhere": ({"nsa_cache_seqlens": EXPANDED.clip(max=5), "nsa_index_topk": 9}, "a wrong top-k: as with nsa_index_topk 5"),
    "sums of no top-k": ({"nsa_cu_seqlens_k": np.append(0, EXPANDED.cumsum()), "nsa_index_topk": TOP_K}, "a missing clamp: it is the running sums of seqlens_expanded"),
    "sums of a wrong top-k": ({"nsa_cu_seqlens_k": np.append(0, EXPANDED.clip(max=512).cumsum()), "nsa_index_topk": TOP_K}, "a wrong top-k: as with nsa_index_topk 512"),
    "a longer buffer": ({"seqlens_expanded": np.append(EXPANDED, [7, 7, 7])}, "a stale tail: 3 values beyond"),
    "a shorter one": ({"seqlens_expanded": EXPANDED[:-2]}, "cut off: 2 values are missing"),
    "the last step's": ({"seqlens_expanded": np.append(EXPANDED[:50], EXPANDED[50:] + RANDOM.integers(1, 9, EXPANDED.size - 50))}, "a stale tail: right up to there"),
    "one value": ({"seqlens_expanded": spoilt(EXPANDED, lambda values: values.__setitem__(17, 3))}, None),
}


@pytest.mark.parametrize("what", SPOILT)
def test_check_says_where_a_dump_is_wrong_and_what_it_looks_like(what, tmp_path):
    changed, looks_like = SPOILT[what]
    code, said = check(dump_of("sglang-draft-extend", "npz", tmp_path, **changed))
    assert code == 1 and "matches            nothing" in said, said
    assert looks_like is None and "looks like" not in said or f"looks like {looks_like}" in said, said


@pytest.mark.parametrize("lengths", [[3, 2], [2, 2]])
@pytest.mark.parametrize(("name", "preset", "mode"), [
    ("nsa_seqlens_expanded", "sglang-extend", "REPEAT"), ("dsa_seqlens_expanded", "sglang-extend", "REPEAT"),
    ("expanded_seq_lens", "vllm-ragged-decode", "REPEAT"), ("kv_lens_expanded", "tensorrt-llm-kv-lens-expanded", "CAUSAL"),
])
def test_check_holds_an_engine_to_the_mode_of_its_name(name, preset, mode, lengths, tmp_path):
    seq_lens = [10, 4]
    built = {"CAUSAL": ranges(lengths, seq_lens), "REPEAT": np.repeat(seq_lens, lengths)}
    np.savez(tmp_path / "wrong.npz", extend_seq_lens=lengths, seq_lens=seq_lens, **{name: built.pop(mode)})
    np.savez(tmp_path / "right.npz", extend_seq_lens=lengths, seq_lens=seq_lens, **{name: built.popitem()[1]})
    if mode == "CAUSAL" and lengths != [2, 2]:
        preset = "repeat"  # TensorRT-LLM's rows are as many of each sequence
    code, said = check(tmp_path / "wrong.npz")
    assert code == 1 and preset in re.search(r"the nearest is (.*),", said)[1] and "the other mode: it is what " in said and f"SEQUENCE_MODE_{mode}" in said, said
    code, said = check(tmp_path / "right.npz")
    assert code == 0 and preset in said, said


def test_check_takes_either_mode_under_our_own_names(tmp_path):
    np.savez(tmp_path / "dump.npz", extend_seq_lens=[2, 2], seq_lens=[10, 4], seqlens_expanded=[10, 10, 4, 4], nsa_cache_seqlens=[5, 5, 4, 4], nsa_index_topk=5)
    code, said = check(tmp_path / "dump.npz")
    assert code == 0 and "tensorrt-llm-kv-lens-expanded" in said, said


def test_check_says_what_is_missing_to_look_at_rows_of_drafts(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"seq_lens": [4], "kv_lens_expanded": [4, 4]}))
    code, said = check(path)
    assert code == 2 and "extend_seq_lens" in said, said
    assert check(path, "--num_draft_tokens=1")[0] == 0


def test_check_holds_a_dump_to_the_preset_that_it_is_told(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"extend_seq_lens": [2, 2], "seq_lens": [10, 4], "seqlens_expanded": [10, 10, 4, 4]}))
    assert check(path)[0] == 0 and check(path, "--preset=tensorrt-llm-kv-lens-expanded")[0] == 0
    code, said = check(path, "--preset=sglang-extend")
    assert code == 1 and "the other mode: it is what tensorrt-llm-kv-lens-expanded builds" in said, said
    positions = tmp_path / "positions.json"
    positions.write_text(json.dumps({"extend_seq_lens": [2, 2], "seq_lens": [10, 4], "positions": [8, 9, 2, 3]}))
    assert check(positions)[0] == check(positions, "--preset=sglang-extend")[0] == check(positions, "--preset=flashinfer-batch-indices-positions")[0] == 0
    code, said = check(path, "--preset=sglang-decode")
    assert code == 2 and "none of preset sglang-decode, but of sglang-draft-extend, sglang-extend" in said, said


def test_check_says_what_else_of_the_same_mode_it_is(tmp_path):
    path = tmp_path / "dump.json"
    # The drafts' lengths are in seq_lens already, and were added once more.
    path.write_text(json.dumps({"extend_seq_lens": [2, 2], "seq_lens": [10, 4], "seqlens_expanded": [11, 12, 5, 6]}))
    code, said = check(path, "--preset=sglang-extend")
    assert code == 1 and "looks like what sglang-target-verify builds" in said, said


def test_check_names_the_value_the_sequence_and_the_token(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"extend_seq_lens": [3, 2], "seq_lens": [10, 4], "seqlens_expanded": [8, 9, 10, 3, 77]}))
    code, said = check(path)
    assert code == 1 and "seqlens_expanded[4] (sequence 1, its token 1) is 77, want 4" in said
    code, said = check(path, "--json")
    (array,) = json.loads(said)["arrays"]
    assert code == 1 and array["difference"] == "seqlens_expanded[4] (sequence 1, its token 1) is 77, want 4"


def test_check_names_a_missing_lower_clamp(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"extend_seq_lens": [3], "seq_lens": [1], "seqlens_expanded": [-1, 0, 1]}))
    code, said = check(path)
    assert code == 1 and "a missing clamp: values are negative where they are to be 0" in said


def files(tmp_path):
    good = {"seq_lens": [4], "seqlens_expanded": [4]}
    yield "dump.txt", "", "neither .json nor .npz"
    yield "dump.json", "[1, 2]", "no JSON object"
    yield "dump.json", json.dumps({**good, "seq_lens": [4.5]}), "seq_lens whose value 0 is no whole number"
    yield "dump.json", json.dumps({**good, "seq_lens": [1 << 40]}), "passes int32"
    yield "dump.json", json.dumps({"seqlens_expanded": [4]}), "no array seq_lens (or kv_lens, cache_seqlens, cache_seqlens_int32, seq_lens_cpu)"
    yield "dump.json", json.dumps({"seq_lens": [4]}), "no array to check"
    yield "dump.json", json.dumps({**good, "extend_seq_lens": [1, 1]}), "seq_lens has 1 values, extend_seq_lens has 2"
    yield "dump.json", json.dumps({"kv_lens": [4], "seqlens_expanded": [4], "decode_lens": [1, 1]}), "kv_lens has 1 values, decode_lens has 2"
    yield "dump.json", json.dumps({**good, "extend_seq_lens": [-1]}), "extend_seq_lens[0] is -1, must be 0 or more"
    yield "dump.json", json.dumps({**good, "seq_lens": [4, -3]}), "seq_lens[1] is -3, must be 0 or more"
    yield "dump.json", json.dumps({"kv_lens": [4, -3], "seqlens_expanded": [4]}), "kv_lens[1] is -3, must be 0 or more"
    yield "dump.json", json.dumps({**good, "qo_indptr": [-1, 1]}), "qo_indptr[0] is -1, must be 0 or more"
    yield "dump.json", json.dumps({**good, "append_indptr": [3, 1]}), "append_indptr[1] is 1, must be 3 or more"
    yield "dump.json", json.dumps({**good, "num_draft_tokens": -2}), "num_draft_tokens is -2, must be 0 or more"
    yield "dump.json", json.dumps({**good, "extend_seq_lens": [1 << 30]}), "extend_seq_lens comes to 1073741824 tokens, must be at most 67108864"
    yield "dump.json", json.dumps({**good, "append_indptr": [0, 1 << 30]}), "append_indptr comes to 1073741824 tokens, must be at most 67108864"
    yield "dump.json", json.dumps({**good, "num_draft_tokens": 1 << 30}), "num_draft_tokens 1073741824 for 1 sequences comes to 1073741824 tokens, must be at most 67108864"
    yield "dump.json", json.dumps({"seq_lens": [4], "positions": [2, 3]}), "positions has 2 values for 1 sequences, and there is no array extend_seq_lens (or decode_lens,"
    yield "dump.json", json.dumps({**good, "nsa_cache_seqlens": [4]}), "nsa_cache_seqlens needs nsa_index_topk"
    yield "dump.json", json.dumps({**good, "nsa_cache_seqlens": [0], "index_topk": 0}), "index_topk is 0, and nsa_cache_seqlens needs at least 1"
    yield "dump.npz", "not a zip file", "is no .npz file"


def test_check_refuses_what_it_can_not_read(tmp_path):
    for name, text, wanted in files(tmp_path):
        (tmp_path / name).write_text(text)
        code, said = check(tmp_path / name)
        assert code == 2 and wanted in said, f"{name} {text}: {said}"
    code, said = check(tmp_path / "nowhere.npz")
    assert code == 2 and "nowhere.npz" in said
    np.savez(tmp_path / "dump.npz", seq_lens=np.array([1 << 40]))
    code, said = check(tmp_path / "dump.npz")
    assert code == 2 and "has seq_lens, which value 0 is 1099511627776, which passes int32" in said
    # A byte of a length is another one, and the archive's checksum says so.
    np.savez(tmp_path / "dump.npz", seq_lens=[4_242], seqlens_expanded=[4_242])
    bytes_ = bytearray((tmp_path / "dump.npz").read_bytes())
    bytes_[bytes_.index((4_242).to_bytes(8, "little"))] += 1
    (tmp_path / "dump.npz").write_bytes(bytes_)
    code, said = check(tmp_path / "dump.npz")
    assert code == 2 and "has seq_lens, which can't be read" in said


def test_check_leaves_out_what_holds_no_integers(tmp_path):
    np.savez(tmp_path / "dump.npz", extend_seq_lens=[3, 2], seq_lens=[10, 4], seqlens_expanded=[8, 9, 10, 3, 4], weights=[1.5], names=["a"], mask=[True])
    code, said = check(tmp_path / "dump.npz")
    assert code == 0 and re.search("^not looked at +mask, names, weights$", said, re.MULTILINE), said
    (tmp_path / "dump.json").write_text(json.dumps({"seq_lens": [4], "seqlens_expanded": [4], "comment": "decode", "captured": True, "none": None}))
    code, said = check(tmp_path / "dump.json")
    assert code == 0 and re.search("^not looked at +captured, comment, none$", said, re.MULTILINE), said


@pytest.mark.parametrize(("name", "values", "wanted"), [
    ("nsa_cache_seqlens", np.array([4.0]), "nsa_cache_seqlens has no integers: <f8"),
    ("positions", np.array([3], ">i4"), "positions has no little-endian integers: >i4"),
    ("extend_seq_lens", np.array([True]), "extend_seq_lens has no integers: |b1"),
    ("index_topk", np.array(["2048"]), "index_topk has no integers: <U4"),
    ("ks", np.array([(0, 1)], "i4,i4"), "ks has no integers: values of several fields"),
    ("positions", None, "positions has no integers: null"),
    ("nsa_cache_seqlens", "4", "nsa_cache_seqlens has no integers: a string"),
    ("num_draft_tokens", False, "num_draft_tokens has no integers: a truth value"),
    ("ke", {"0": 1}, "ke has no integers: an object"),
], ids=lambda part: part if isinstance(part, str) else "")
def test_check_leaves_out_no_name_that_it_knows(tmp_path, name, values, wanted):
    dump = {"seq_lens": [4], "seqlens_expanded": [4], name: values}
    if isinstance(values, np.ndarray):
        path = tmp_path / "dump.npz"
        np.savez(path, **dump)
    else:
        path = tmp_path / "dump.json"
        path.write_text(json.dumps(dump))
    code, said = check(path)
    assert code == 2 and wanted in said, said


def test_check_says_that_verify_needs_the_number_of_drafts(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"seq_lens": [10, 4], "seqlens_expanded": [11, 12, 5, 6]}))
    code, said = check(path, "--preset=sglang-target-verify")
    assert code == 2 and "needs num_draft_tokens (or speculative_num_draft_tokens), which is neither there nor given by --num_draft_tokens" in said, said
    assert check(path, "--preset=sglang-target-verify", "--num_draft_tokens=2")[0] == 0


def test_check_refuses_a_top_k_below_one(tmp_path):
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"seq_lens": [4], "nsa_cache_seqlens": [0]}))
    for value in ("0", "-1"):
        code, said = check(path, f"--nsa_index_topk={value}")
        assert code == 2 and re.search(rf"--nsa_index_topk: Value {value} not in range \[?1 ", said), said


def test_check_takes_running_sums_and_tensorrt_llms_names(tmp_path):
    (tmp_path / "dump.json").write_text(json.dumps({"seq_lens": [10, 4], "append_indptr": [0, 3, 5], "batch_indices": [0, 0, 0, 1, 1], "positions": [7, 8, 9, 2, 3]}))
    code, said = check(tmp_path / "dump.json")
    assert code == 0 and "flashinfer-batch-indices-positions" in said
    (tmp_path / "dump.json").write_text(json.dumps({"kv_lens": [10, 4], "max_draft_tokens": 1, "kv_lens_expanded": [10, 10, 4, 4]}))
    code, said = check(tmp_path / "dump.json")
    assert code == 0 and "tensorrt-llm-kv-lens-expanded" in said


def test_presets_change_no_value_that_does_not_fit():
    for bad in ([1.5], [2**63 + 5]):
        for lengths in (presets.sglang_extend([1], bad), presets.sglang_decode(bad)):
            with Client("127.0.0.1:1") as on, pytest.raises((TypeError, ValueError), match="seq_lens"):
                on.expand(**lengths, nsa_index_topk=8)
        with pytest.raises((TypeError, ValueError), match="seq_lens"):
            presets.sglang_target_verify(bad, 2)


def test_presets_take_no_number_of_drafts_that_is_no_integer():
    for preset, name in ((presets.sglang_target_verify, "num_draft_tokens"), (presets.tensorrt_llm_kv_lens_expanded, "max_draft_tokens")):
        for bad in (1.7, 2.0, "2", None):
            with pytest.raises(TypeError, match=re.escape(f"{name} is {bad!r}, want an integer")):
                preset([10, 4], bad)
        with pytest.raises(ValueError, match=f"{name} is 2147483648, want at most 2147483647"):
            preset([10, 4], 2**31)
    assert presets.tensorrt_llm_kv_lens_expanded([10, 4], np.int64(1))["extend_seq_lens"].tolist() == [2, 2]


def test_the_documents_example_is_what_it_prints(tmp_path):
    text = (REPOSITORY / "client" / "PRESETS.md").read_text()
    shown = [line[4:] for line in text[text.index("    $ nsa-metadata check"):].splitlines()[1:] if line.startswith("    ")]
    np.savez(tmp_path / "dump.npz", extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=5, seqlens_expanded=[8, 9, 10, 3, 4], nsa_cache_seqlens=[8, 9, 10, 3, 4])
    assert check(tmp_path / "dump.npz")[1].splitlines() == shown
