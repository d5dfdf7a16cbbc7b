"""Fixtures of the foreign-peer tests. Everything a test starts listens on loopback and ends with the test."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from programs import CLIENT, REPOSITORY, SERVER, Server


@pytest.fixture(scope="session", autouse=True)
def built_programs():
    assert SERVER.exists(), f"{SERVER} is not built; NSA_METADATA_BUILD names the build folder"


@pytest.fixture(scope="session")
def client_program():
    assert CLIENT.exists(), f"{CLIENT} is not built; NSA_METADATA_BUILD names the build folder"
    return CLIENT


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """`pb` and `rpc`: the messages and the service as grpcio-tools generates them from proto/."""
    import grpc_tools
    from grpc_tools import protoc

    out = tmp_path_factory.mktemp("stubs")
    proto = REPOSITORY / "proto"
    well_known = next(iter(grpc_tools.__path__)) + "/_proto"
    source = "nsa/metadata/v1/metadata.proto"
    code = protoc.main(
        ["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", source]
    )
    assert code == 0, f"protoc failed on {proto / source}"
    sys.path.insert(0, str(out))
    return SimpleNamespace(
        pb=importlib.import_module("nsa.metadata.v1.metadata_pb2"),
        rpc=importlib.import_module("nsa.metadata.v1.metadata_pb2_grpc"),
    )


@pytest.fixture(scope="session")
def pb(stubs):
    return stubs.pb


@pytest.fixture(scope="module")
def server():
    """A server with the defaults, shared by a module's tests."""
    with Server() as running:
        yield running
