"""Measures a server under the request of `nsa-metadata bench`, sent by h2load, as one JSON object.

h2load, an HTTP/2 load generator in C, does less for a call than gRPC's client and so leaves a server more of the machine.
It also speaks the Open Inference Protocol, which `nsa-metadata bench` does not: with --service=inference the same request is
rewritten as a ModelInferRequest for this server, with --service=triton as one for Triton's triton_models/expand. A reply is compared with the specification before the load and
after it, and all under it have to be of that reply's size together: h2load counts an error as a success, since gRPC's
status is not HTTP's. With --bad the request has a negative length, and every call has to be refused.
"""

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "peers"), str(HERE.parent / "e2e")]
import reference  # noqa: E402
import stubs  # noqa: E402

BUILD = Path(os.environ.get("NSA_METADATA_BUILD", stubs.REPOSITORY / "build" / "release"))
EXPAND = "/nsa.metadata.v1.MetadataService/Expand"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
# What precedes a message on the wire: not compressed, and its length.
PREFIX = struct.Struct(">BI")
WINDOW_BITS = "24"
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "p99_9": 99.9}


class Recorder(grpc.GenericRpcHandler):
    """Keeps the last message that a caller of Expand sent, and refuses the call."""

    message = None

    def service(self, details):
        if details.method == EXPAND:
            return grpc.unary_unary_rpc_method_handler(self._record)

    def _record(self, message, context):
        self.message = message
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "recorded")


def benchs_request(shape):
    """The bytes of the ExpandRequest that `nsa-metadata bench` sends with these flags."""
    recorder = Recorder()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), handlers=[recorder])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    bench = [str(BUILD / "client" / "nsa-metadata"), "bench", "--target", f"127.0.0.1:{port}", *shape]
    ran = subprocess.run([*bench, "--duration", "10ms", "--warm_up", "0"], capture_output=True, text=True, timeout=30)
    server.stop(0).wait()
    if recorder.message is None:
        sys.exit(f"no request came from {' '.join(bench)}: {ran.stderr}")
    return recorder.message


class ExpandCall:
    """A call of this project's own protocol."""

    path = EXPAND

    def __init__(self, request, recorded, pb):
        self.message = recorded
        self._pb = pb

    def outputs(self, reply):
        response = self._pb.ExpandResponse.FromString(reply)
        return {name: np.array(getattr(response, name)) for name in reference.DEFAULT_OUTPUTS}


class InferCall:
    """The same in the Open Inference Protocol."""

    path = MODEL_INFER

    def __init__(self, model, inputs, outputs=()):
        self._messages = stubs.load().inference
        infer = self._messages.ModelInferRequest(model_name=model)
        for name, values in inputs.items():
            values = np.array(values, "<i4")
            infer.inputs.add(name=name, datatype="INT32", shape=values.shape)
            infer.raw_input_contents.append(values.tobytes())
        for name in outputs:
            infer.outputs.add(name=name)
        self.message = infer.SerializeToString()

    def outputs(self, reply):
        response = self._messages.ModelInferResponse.FromString(reply)
        contents = zip(response.outputs, response.raw_output_contents)
        return {output.name: np.frombuffer(content, np.int32) for output, content in contents}


class TritonCall(InferCall):
    """To triton_server.py's model."""

    def __init__(self, request, recorded, pb):
        lengths = [list(request.extend_seq_lens), list(request.seq_lens)]
        super().__init__("expand", {"lengths": [lengths], "settings": [[request.nsa_index_topk, request.mode]]})


class InferenceCall(InferCall):
    """To this server."""

    def __init__(self, request, recorded, pb):
        mode = {number: name for name, number in reference.MODES.items()}[request.mode]
        model = {"REPEAT": "nsa_metadata", "CAUSAL": "nsa_metadata_causal"}[mode]
        inputs = {
            "extend_seq_lens": request.extend_seq_lens,
            "seq_lens": request.seq_lens,
            "nsa_index_topk": [request.nsa_index_topk],
        }
        super().__init__(model, inputs, reference.DEFAULT_OUTPUTS)


CALLS = {"triton": TritonCall, "inference": InferenceCall, "expand": ExpandCall}


def verified_reply(target, call, request):
    """One reply's bytes, after a comparison of what they hold with the specification."""
    with grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)]) as channel:
        try:
            reply = channel.unary_unary(call.path)(call.message, timeout=10)
        except grpc.RpcError as error:
            sys.exit(f"{target} answered {error.code().name}: {error.details()}")
    mode = {number: name for name, number in reference.MODES.items()}[request.mode]
    want = reference.expand(request.extend_seq_lens, request.seq_lens, request.nsa_index_topk, mode)
    got = call.outputs(reply)
    for name in reference.DEFAULT_OUTPUTS:
        if not np.array_equal(got.get(name), want[name]):
            sys.exit(f"{name}: got {got.get(name)}, want {want[name]}")
    return reply


def refused(target, call):
    """Makes sure that a call is refused for its content."""
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(call.path)(call.message, timeout=10)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                return
            sys.exit(f"{target} answered {error.code().name}: {error.details()}")
    sys.exit(f"{target} did not refuse the request")


def h2load(flags, call, body, *more):
    """What h2load prints."""
    # The windows are those of a gRPC client on loopback: never what a reply waits for.
    command = [
        *("h2load", "-c", str(flags.channels), "-m", str(flags.in_flight // flags.channels)),
        *("-w", WINDOW_BITS, "-W", WINDOW_BITS, "-d", str(body)),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        *(*more, f"http://{flags.target}{call.path}"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60 + 10 * flags.duration)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(command)}: {ran.stderr or ran.stdout}")
    return ran.stdout


def measure(flags, call, reply):
    """Requests, how many of them in a second, and each one's microseconds."""
    with tempfile.TemporaryDirectory(prefix="nsa-metadata-load-") as folder:
        body, log = Path(folder, "request"), Path(folder, "log")
        body.write_bytes(PREFIX.pack(0, len(call.message)) + call.message)
        # A count of requests, and not a duration, lets the bytes received be compared with it.
        warm_up = h2load(flags, call, body, "-D", "1")
        requests = max(flags.in_flight, round(rate(warm_up) * flags.duration))
        printed = h2load(flags, call, body, "-n", str(requests), f"--log-file={log}")
        # A line a request: when it began, its HTTP status, how long it took.
        micros = np.loadtxt(log, dtype=np.int64, usecols=2, ndmin=1)
    received = int(re.search(r"\((\d+)\) data", printed)[1])
    expected = 0 if reply is None else requests * (PREFIX.size + len(reply))
    if f"{requests} succeeded" not in printed or received != expected:
        sys.exit(f"{received} bytes of replies, want {expected}; h2load printed:\n{printed}")
    return requests, rate(printed), micros


def rate(printed):
    return float(re.search(r"finished in .*, ([0-9.]+) req/s", printed)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="the server, as host:port")
    parser.add_argument("--service", choices=CALLS, default="expand", help="the protocol that it speaks")
    parser.add_argument("--num_sequences", type=int, default=4, help="as nsa-metadata bench's")
    parser.add_argument("--reply_bytes", type=int, default=142, help="as nsa-metadata bench's")
    parser.add_argument("--mode", choices=("causal", "repeat"), default="causal", help="as nsa-metadata bench's")
    parser.add_argument("--in_flight", type=int, default=1, help="requests under way at once")
    parser.add_argument("--channels", type=int, default=1, help="connections")
    parser.add_argument("--duration", type=float, default=2, help="how long to measure, about, seconds")
    parser.add_argument("--bad", action="store_true", help="send what has to be refused")
    flags = parser.parse_args()
    if flags.in_flight % flags.channels:
        parser.error("in_flight has to be a multiple of channels")
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed: Debian's package nghttp2-client has it")

    pb = stubs.load().pb
    shape = ("num_sequences", "reply_bytes", "mode")
    recorded = benchs_request([f"--{name}={getattr(flags, name)}" for name in shape])
    request = pb.ExpandRequest.FromString(recorded)
    if flags.bad:
        request.extend_seq_lens[0] = -1
        recorded = request.SerializeToString()
    call = CALLS[flags.service](request, recorded, pb)
    check = (lambda: refused(flags.target, call)) if flags.bad else (lambda: verified_reply(flags.target, call, request))
    reply = check()
    requests, calls_per_s, micros = measure(flags, call, reply)
    check()
    latency = {name: float(np.percentile(micros, percent)) for name, percent in PERCENTILES.items()}
    report = {
        "num_sequences": len(request.seq_lens),
        "total_tokens": sum(request.extend_seq_lens),
        "reply_bytes": 0 if reply is None else len(reply),
        "channels": flags.channels,
        "in_flight": flags.in_flight,
        "requests": requests,
        "ok": requests,
        "wrong": 0,
        "calls_per_s": calls_per_s,
        "latency_us": {"min": int(micros.min()), **latency, "max": int(micros.max())},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
