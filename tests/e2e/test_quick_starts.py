"""The blocks of client/README.md that need neither the Python package nor tritonclient, whose own tests run theirs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from programs import BUILD, CLIENT, REPOSITORY, run

README = (REPOSITORY / "client" / "README.md").read_text()


def block(language, word):
    (found,) = (code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in code)
    return found


def sh(code, folder):
    """Runs a block as somebody does in the repository's root, with the programs and this Python's in reach."""
    path = os.pathsep.join((str(CLIENT.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euc", code], cwd=folder, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": path, "BUF_CACHE_DIR": str(folder / "buf-cache")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def root(tmp_path):
    (tmp_path / "proto").symlink_to(REPOSITORY / "proto")
    return tmp_path


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def test_the_programs(server, root):
    said = sh(block("sh", "nsa-metadata expand").replace("127.0.0.1:50051", server.address), root)
    assert "seqlens_expanded" in said and "SERVING" in said


def test_cpp(server):
    # CMake compiles the block, with the address as its argument.
    done = run(BUILD / "tests" / "client" / "quick_start", server.address)
    assert (done.returncode, done.stdout) == (0, "8\n9\n10\n3\n4\n"), done.stderr


def test_any_other_language(server, root):
    sh(block("sh", "grpc_tools.protoc"), root)
    code = block("python", "metadata_pb2_grpc").replace("127.0.0.1:50051", server.address)
    done = run(sys.executable, "-c", code, cwd=root)
    assert done.stdout == "[8, 9, 10, 3, 4]\n", done.stderr


def test_a_tool_that_makes_json_of_a_proto(server, root):
    said = sh(block("sh", "buf curl").replace("127.0.0.1:50051", server.address), root)
    assert numbers(said[said.index("seqlensExpanded") :].split("]")[0]) == [8, 9, 10, 3, 4]
