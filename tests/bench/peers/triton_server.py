"""A peer to measure the service against: the expansion as a Python model in NVIDIA's Triton Inference Server.

Runs the tritonserver program that the nvidia-pytriton package holds on the model in triton_models/, as a user of Triton
would; PyTriton's own way to bind a function puts two more hand-offs before it. Triton speaks its own protocol:
h2load.py measures it. Its log goes to stderr.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from pytriton.utils.distribution import get_libs_path, get_root_module_path, get_stub_path

MODELS = Path(__file__).resolve().parent / "triton_models"
LISTENS = "Started GRPCInferenceService"


def lay_out(folder, instances):
    """Copies the models, and makes a folder of backends with what runs a model on this version of Python."""
    shutil.copytree(MODELS, folder / "models")
    with open(folder / "models" / "expand" / "config.pbtxt", "a") as config:
        config.write(f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]\n")
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    stub = get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}")
    for file in (*(get_root_module_path() / "tritonserver" / "backends" / "python").glob("*.*"), stub):
        (backend / file.name).symlink_to(file)


def environment():
    """The model's process finds Triton's libraries, and by the first Python on the PATH the folder of its packages."""
    libraries = [str(get_libs_path()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    programs = [str(Path(sys.prefix) / "bin"), os.environ["PATH"]]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "PATH": ":".join(programs)}


def free_port(host):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def cores():
    return len(os.sched_getaffinity(0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--instances", type=int, default=cores(), help="processes that run the model")
    flags = parser.parse_args()

    host, port = flags.listen.rsplit(":", 1)
    port = int(port) or free_port(host)
    with tempfile.TemporaryDirectory(prefix="nsa-metadata-triton-") as name:
        folder = Path(name)
        lay_out(folder, flags.instances)
        command = [
            str(get_root_module_path() / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            f"--grpc-address={host}",
            f"--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
        ]
        with subprocess.Popen(command, env=environment(), stdout=sys.stderr, stderr=subprocess.PIPE, text=True) as triton:
            for end in (signal.SIGTERM, signal.SIGINT):
                signal.signal(end, lambda *_: triton.terminate())
            for line in triton.stderr:
                sys.stderr.write(line)
                if LISTENS in line:
                    print(f"triton_server serving: grpc={host}:{port}", file=sys.stderr, flush=True)
    # Of its own accord it ends only when something is wrong.
    sys.exit(0 if triton.returncode in (0, -signal.SIGTERM) else triton.returncode)


if __name__ == "__main__":
    main()
