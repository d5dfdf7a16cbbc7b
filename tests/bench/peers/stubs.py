"""The service's messages and stubs as grpcio-tools generates them from proto/."""

import importlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from grpc_tools import protoc

REPOSITORY = Path(__file__).resolve().parents[3]


def load():
    """`pb` and `rpc`, and `inference`, the Open Inference Protocol's messages. What is generated lies in a temporary folder that is gone when this returns."""
    proto = REPOSITORY / "proto"
    well_known = Path(protoc.__file__).parent / "_proto"
    sources = ["nsa/metadata/v1/metadata.proto", "inference/inference.proto"]
    with tempfile.TemporaryDirectory(prefix="nsa-metadata-stubs-") as out:
        code = protoc.main(
            ["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *sources]
        )
        if code != 0:
            sys.exit(f"protoc failed on {sources}")
        sys.path.insert(0, out)
        loaded = SimpleNamespace(
            pb=importlib.import_module("nsa.metadata.v1.metadata_pb2"),
            rpc=importlib.import_module("nsa.metadata.v1.metadata_pb2_grpc"),
            inference=importlib.import_module("inference.inference_pb2"),
        )
        sys.path.remove(out)
    return loaded
