"""The Python package as users get it: a wheel, built and installed into an empty environment, with its own README snippet."""

import re
import subprocess
import sys
import venv
import zipfile

import pytest

from programs import REPOSITORY, Server

PACKAGE = REPOSITORY / "client" / "python"


def run(*command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **more)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build leaves things beside what it builds.
    run("cp", "-r", PACKAGE, folder / "source")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Of an environment that has the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "bin" / "python"


def test_the_wheel_has_every_module_and_is_typed(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"nsa_metadata/{path.name}" for path in (PACKAGE / "nsa_metadata").iterdir() if path.suffix == ".py"}
    assert len(modules) > 5 and modules | {"nsa_metadata/py.typed"} <= inside
    version = re.search(r"project\(.* VERSION ([\d.]+)", (REPOSITORY / "CMakeLists.txt").read_text())[1]
    assert wheel.name == f"nsa_metadata-{version}-py3-none-any.whl"


def test_the_readmes_snippet_works_with_the_wheel_alone(python, tmp_path):
    readme = (REPOSITORY / "README.md").read_text()
    start = readme.index("    from nsa_metadata import Client")
    snippet = re.match(r"(?:    .*\n)+", readme[start:])[0]
    with Server("--backend=cpu") as server:
        program = "".join(line[4:] + "\n" for line in snippet.splitlines()).replace("127.0.0.1:50051", server.address)
        lengths = "extend_seq_lens, seq_lens = [3, 2], [10, 4]\n"
        # Away from the checkout, whose package would be found first.
        said = run(python, "-c", lengths + program + "print(expansion.seqlens_expanded.tolist())", cwd=tmp_path)
    assert said.strip() == "[8, 9, 10, 3, 4]"


def test_the_pieces_are_there(python, tmp_path):
    names = "AsyncClient, Client, Refused, tls_credentials"
    run(python, "-c", f"from nsa_metadata import {names}; from nsa_metadata.presets import sglang_target_verify", cwd=tmp_path)
