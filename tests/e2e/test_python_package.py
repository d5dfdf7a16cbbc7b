"""The Python package as users get it: a wheel, built and installed into an empty environment, with its own README snippet."""

import re
import subprocess
import sys
import venv
import zipfile

import pytest

from certificates import Authority
from programs import REPOSITORY, Server

PACKAGE = REPOSITORY / "client" / "python"


def run(*command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **more)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # The kernels for CUDA take minutes to compile, and no card is here.
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--config-settings=cmake.define.NSA_METADATA_CUDA=OFF", "--wheel-dir", folder, PACKAGE)
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
    assert wheel.name == f"nsa_metadata-{version}-cp311-cp311-linux_x86_64.whl"
    extension = [name for name in inside if re.fullmatch(r"nsa_metadata/_local\.\S+\.so", name)]
    assert len(extension) == 1


def test_the_extension_needs_nothing_but_the_languages_own_libraries(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as inside:
        (name,) = (name for name in inside.namelist() if name.endswith(".so"))
        extension = inside.extract(name, tmp_path)
    needed = set(re.findall(r"NEEDED\s+(\S+?)\.so", run("objdump", "-p", extension)))
    assert needed <= {"libstdc++", "libgcc_s", "libm", "libc", "ld-linux-x86-64"}


def blocks(readme, language=r"python"):
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / readme).read_text(), re.DOTALL)


ALL_QUICK_STARTS = [block for block in blocks("client/README.md") if "nsa_metadata import" in block]
WITH_TLS = [block for block in ALL_QUICK_STARTS if "tls_credentials" in block]
QUICK_STARTS = [block for block in ALL_QUICK_STARTS if block not in WITH_TLS]


@pytest.mark.parametrize("code", QUICK_STARTS, ids=["Client", "AsyncClient", "preset", "local"])
def test_the_quick_starts_work_with_the_wheel_alone(python, tmp_path, code):
    with Server("--backend=cpu") as server:
        # Away from the checkout, whose package would be found first.
        said = run(python, "-c", code.replace("127.0.0.1:50051", server.address), cwd=tmp_path)
    assert said.splitlines()[0] == "[ 8  9 10  3  4]"
    if "open_stream" in code:
        assert said.splitlines()[1] == "[[2, 2, 2, 2, 2], [4, 4, 4, 3, 4], [8, 8, 8, 3, 4]]"
    if "local" in code:
        assert said.splitlines()[1] == "[ 8  9 10  3  4]"


def test_the_quick_start_with_tls_works_and_says_what_fails(python, tmp_path):
    (code,) = WITH_TLS
    (tmp_path / "server").mkdir()
    root = Authority()
    (tmp_path / "ca.crt").write_bytes(root.certificate)
    root.issue("spiffe://cluster.test/ns/inference/sa/engine").write(tmp_path, "caller")
    certificate, key = root.issue("127.0.0.1").write(tmp_path / "server", "tls")
    tls = [f"--tls_certificate={certificate}", f"--tls_key={key}", f"--tls_client_ca={tmp_path / 'ca.crt'}"]

    def ask(code):
        return run(python, "-c", code.replace("127.0.0.1:50051", server.address), cwd=tmp_path)

    with Server("--backend=cpu", *tls) as server:
        assert ask(code) == "[ 8  9 10  3  4]\n"
        assert ask(code.replace("[10, 4]", "[10]")) == "refused: LENGTHS_DIFFER seq_lens None\n"
    assert ask(code).startswith("no answer: UNAVAILABLE: ")


def test_the_readmes_snippet_works(python, tmp_path):
    readme = (REPOSITORY / "README.md").read_text()
    (snippet,) = re.findall(r"(?:^    .*\n)+", readme[readme.index("    from nsa_metadata import Client") :], re.MULTILINE)[:1]
    code = "".join(line[4:] + "\n" for line in snippet.splitlines())
    with Server("--backend=cpu") as server:
        code = code.replace("127.0.0.1:50051", server.address)
        said = run(python, "-c", code + "print(expansion.seqlens_expanded.tolist())", cwd=tmp_path)
    assert said.strip() == "[8, 9, 10, 3, 4]"


def test_its_types_are_right(tmp_path):
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, PACKAGE / "nsa_metadata")


def test_the_pieces_are_there(python, tmp_path):
    names = "AsyncClient, Client, Refused, tls_credentials, local"
    run(python, "-c", f"from nsa_metadata import {names}; from nsa_metadata.presets import sglang_target_verify", cwd=tmp_path)


def test_what_computes_in_this_process_does_as_it_is_installed(python, tmp_path):
    run(python, "-m", "pip", "install", "--quiet", "pytest==9.2.0")
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", REPOSITORY / "tests" / "local" / "test_local.py", cwd=tmp_path)


def test_without_the_extension_the_import_says_so():
    # The checkout has none.
    done = subprocess.run(
        [sys.executable, "-c", "import nsa_metadata.local"], cwd=PACKAGE, capture_output=True, text=True, timeout=60
    )
    assert "this installation of nsa_metadata has no extension for nsa_metadata.local" in done.stderr
