"""The software bill of materials: valid SPDX, and whole."""

import hashlib
import json
import re

import pytest
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from programs import BUILD, REPOSITORY, SERVER, run, server_version

CLIENT = BUILD / "client" / "nsa-metadata"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    text = run(REPOSITORY / "deploy" / "container" / "sbom.py", BUILD)
    path = tmp_path_factory.mktemp("sbom") / "nsa-metadata-server.spdx.json"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def packages(path):
    return {package["name"]: package for package in json.loads(path.read_text())["packages"]}


def test_is_valid_spdx(path):
    assert [str(message) for message in validate_full_spdx_document(parse_file(str(path)))] == []


def test_names_every_library_that_the_programs_load_with_its_installed_version(packages):
    loaded = re.findall(r"=> (/\S+)", run("ldd", SERVER) + run("ldd", CLIENT))
    assert len(loaded) > 10
    for library in set(loaded):
        owner = re.search(r"^([^:]+):", run("dpkg-query", "--search", f"*{library.removeprefix('/usr')}"))[1]
        version = run("dpkg-query", "--show", "--showformat=${Version}", owner)
        assert owner in packages, f"{library} is {owner}'s"
        assert packages[owner]["versionInfo"] == version


def test_names_what_was_compiled_in_and_the_compiler(packages):
    assert {"libcli11-dev", "libspdlog-dev", "libabsl-dev", "libprotobuf-dev"} <= packages.keys(), "headers only, or with code in them"
    assert {"libjs-dygraphs", "googleapis-common-protos"} <= packages.keys(), "the status page's and the error details'"
    assert any(re.fullmatch(r"g\+\+-\d+", name) for name in packages)
    assert ("cuda-toolkit" in packages) == ("libcudart_static" in (BUILD / "build.ninja").read_text())


def test_names_the_programs_by_their_sums(path, packages):
    files = {file["fileName"]: file for file in json.loads(path.read_text())["files"]}
    for program in (SERVER, CLIENT):
        sums = {item["algorithm"]: item["checksumValue"] for item in files[f"./{program.name}"]["checksums"]}
        assert sums["SHA256"] == hashlib.sha256(program.read_bytes()).hexdigest()
    assert packages["nsa-metadata-server"]["versionInfo"] == server_version()
