"""The blocks of client/README.md that need neither the Python package nor Triton's clients, whose own tests run theirs; and what deploy/local/run.sh shows."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from programs import BUILD, CLIENT, REPOSITORY, Server, environment, run

README = (REPOSITORY / "client" / "README.md").read_text()
ANY_PORTS = ("--listen=127.0.0.1:0", "--health_listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0")


def block(language, word):
    (found,) = (code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in code)
    return found


def in_reach(programs, folder):
    """An environment with these programs and this Python's, whose home is in the folder."""
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    return environment({"PATH": path, "HOME": str(folder / "home"), "BUF_CACHE_DIR": str(folder / "buf-cache")})


def sh(code, folder, programs=CLIENT.parent):
    """Runs a block as somebody does in the repository's root."""
    done = subprocess.run(
        ["bash", "-euc", code], cwd=folder, capture_output=True, text=True, timeout=60, env=in_reach(programs, folder)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def root(tmp_path):
    for name in ("deploy", "proto"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


@pytest.fixture
def serve(root):
    """A folder with a cmake that builds nothing, and notes what it was asked: `root`'s build/serve has what NSA_METADATA_BUILD has, to run and to install."""
    build = root / "build" / "serve"
    build.mkdir(parents=True)
    for folder in filter(Path.is_dir, BUILD.iterdir()):
        (build / folder.name).symlink_to(folder)
    # Its paths are absolute.
    (configured,) = re.findall(r"^CMAKE_CACHEFILE_DIR:INTERNAL=(.*)$", (BUILD / "CMakeCache.txt").read_text(), re.MULTILINE)
    (build / "cmake_install.cmake").write_text((BUILD / "cmake_install.cmake").read_text().replace(configured, str(build)))
    cmake = root / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(f'#!/bin/sh\n[ "$1" = --install ] && exec {shutil.which("cmake")} "$@"\necho "cmake $*" >>{root}/asked\n')
    cmake.chmod(0o755)
    return cmake.parent


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def seqlens_expanded(table):
    """Of what `nsa-metadata expand` prints."""
    columns, *rows = (line.split() for line in table.splitlines()[:6])
    return [int(row[columns.index("seqlens_expanded")]) for row in rows]


def test_the_programs_are_installed_and_run(serve, root):
    said = sh(block("sh", "cmake --install") + "type -P nsa-metadata-server nsa-metadata", root, serve)
    program, client = map(Path, said.splitlines()[-2:])
    assert program.parent == client.parent == root / "home" / "nsa-metadata" / "bin"
    assert (root / "asked").read_text() == "cmake --preset serve\ncmake --build --preset serve\n"
    with Server(program=program) as server:
        said = sh(block("sh", "nsa-metadata expand").replace("127.0.0.1:50051", server.address), root, client.parent)
    assert seqlens_expanded(said) == [8, 9, 10, 3, 4] and said.endswith("SERVING\n")


def lines_to(end, process, timeout_s=60):
    """What a process says until a line that begins so, or fails when that does not come."""
    said = []
    late = threading.Timer(timeout_s, process.terminate)
    late.start()
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith(end):
                return said
    finally:
        late.cancel()
    pytest.fail(f"no line {end!r}: {said}")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_commands_of_run_sh_and_of_the_readme_work_in_the_root(serve, root, log_format):
    (readmes,) = re.findall(r"^ {4}(\S*nsa-metadata expand .*)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    script = [root / "deploy" / "local" / "run.sh", *ANY_PORTS, f"--log_format={log_format}"]
    with subprocess.Popen(script, cwd="/", stdout=subprocess.PIPE, text=True, env=in_reach(serve, root)) as running:
        try:
            shown = lines_to("serving gRPC on ", running)
            (scripts,) = (line.removeprefix("$ ") for line in shown if re.match(r"\$ .* expand ", line))
            address = re.match(r"serving gRPC on ([^,]+),", shown[-1])[1]
            for command in (scripts, f"{readmes} --target {address}"):
                assert seqlens_expanded(sh(command, root, serve)) == [8, 9, 10, 3, 4], command
        finally:
            running.terminate()


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
