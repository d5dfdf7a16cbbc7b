"""The wire contract keeps its style and breaks nothing that has landed."""

import shutil
import sys
from pathlib import Path

import pytest

from programs import REPOSITORY, run

PROTO = REPOSITORY / "proto"
# The contract that callers were built against, copied here when it lands.
LANDED = REPOSITORY / "tests" / "proto" / "landed"
FILE = Path("nsa/metadata/v1/metadata.proto")
# It comes with buf-bin, beside this Python.
BUF = Path(sys.executable).parent / "buf"


@pytest.fixture(autouse=True)
def offline_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BUF_CACHE_DIR", str(tmp_path / "buf-cache"))


def lint(folder):
    return run(BUF, "lint", folder)


def breaking(folder):
    return run(BUF, "breaking", folder, "--against", LANDED)


@pytest.fixture
def changed(tmp_path):
    """A function that copies proto/ with one piece of text replaced."""

    def change(old, new):
        copy = shutil.copytree(PROTO, tmp_path / "proto")
        text = (copy / FILE).read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {FILE}"
        (copy / FILE).write_text(text.replace(old, new))
        return copy

    return change


def test_the_proto_is_clean_by_buf_lint():
    done = lint(PROTO)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_proto_breaks_nothing_that_landed():
    done = breaking(PROTO)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_buf_lint_would_report_a_bad_name(changed):
    done = lint(changed("int32 nsa_index_topk = 4;", "int32 NsaIndexTopk = 4;"))
    assert done.returncode != 0
    assert "NsaIndexTopk" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "reported"),
    [
        ("int32 nsa_index_topk = 4;", "int32 nsa_index_topk = 8;", '"4" with name "nsa_index_topk"'),
        ("repeated sfixed32 seq_lens = 3;", "repeated int32 seq_lens = 3;", '"seq_lens"'),
        ("  REFUSAL_REASON_QUEUE_FULL = 20;\n", "", '"20" on enum "RefusalReason"'),
        ("rpc GetServerInfo(", "rpc ServerInfo(", '"GetServerInfo"'),
    ],
    ids=["another number", "another type", "a value gone", "another method name"],
)
def test_buf_breaking_would_report(changed, old, new, reported):
    done = breaking(changed(old, new))
    assert done.returncode != 0
    assert reported in done.stdout
