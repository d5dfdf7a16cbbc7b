"""A peer to measure the service against: the unary method on Python's grpcio, computed with numpy.

What one writes who has an afternoon and knows both libraries: a small thread pool, a process a core on one port
(threads of one process share its interpreter lock, so that more of them answer no more calls), generated messages, no
batches. Serves the default outputs in both modes.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
from concurrent import futures

import grpc
import numpy as np

import stubs

MAX_TOKENS = 4 << 20
START_S = 30


def varint(value):
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def packed(field, values):
    """The field on the wire. A packed sfixed32 has the array's own bytes; adding elements takes 40 times as long."""
    data = values.tobytes()
    return varint(field.number << 3 | 2) + varint(len(data)) + data


def expand(extend_seq_lens, seq_lens, nsa_index_topk, causal):
    """seqlens_expanded and nsa_cache_seqlens, int32 [total_tokens], of int32 arrays [num_sequences]."""
    if causal:
        # s_b - q_b + i + 1 is s_b - (q_0 + … + q_b) + t + 1: one gather and a ramp.
        offsets = seq_lens - np.cumsum(extend_seq_lens, dtype=np.int32) + 1
        seqlens_expanded = np.repeat(offsets, extend_seq_lens)
        seqlens_expanded += np.arange(seqlens_expanded.size, dtype=np.int32)
        np.maximum(seqlens_expanded, 0, out=seqlens_expanded)
    else:
        seqlens_expanded = np.repeat(seq_lens, extend_seq_lens)
    return seqlens_expanded, np.minimum(seqlens_expanded, nsa_index_topk)


def make_servicer(pb, rpc):
    fields = pb.ExpandResponse.DESCRIPTOR.fields_by_name
    default_outputs = {pb.OUTPUT_SEQLENS_EXPANDED, pb.OUTPUT_NSA_CACHE_SEQLENS}

    def refusal(request, extend_seq_lens, seq_lens):
        if extend_seq_lens.size != seq_lens.size:
            return "lengths differ"
        if extend_seq_lens.size and min(extend_seq_lens.min(), seq_lens.min()) < 0:
            return "a length is negative"
        if extend_seq_lens.sum(dtype=np.int64) > MAX_TOKENS:
            return "too many tokens"
        if request.nsa_index_topk < 1:
            return "nsa_index_topk is below 1"
        if request.mode not in pb.SequenceMode.values():
            return "mode is not known"
        return None

    class Servicer(rpc.MetadataServiceServicer):
        def Expand(self, request, context):
            extend_seq_lens = np.fromiter(request.extend_seq_lens, np.int32, len(request.extend_seq_lens))
            seq_lens = np.fromiter(request.seq_lens, np.int32, len(request.seq_lens))
            if refused := refusal(request, extend_seq_lens, seq_lens):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, refused)
            if not default_outputs.issuperset(request.outputs):
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "only the default outputs are served")
            mode = request.mode or pb.SEQUENCE_MODE_REPEAT
            seqlens_expanded, nsa_cache_seqlens = expand(
                extend_seq_lens, seq_lens, request.nsa_index_topk, mode == pb.SEQUENCE_MODE_CAUSAL
            )
            response = pb.ExpandResponse(
                request_id=request.request_id, total_tokens=seqlens_expanded.size, mode=mode
            )
            response.MergeFromString(
                packed(fields["seqlens_expanded"], seqlens_expanded)
                + packed(fields["nsa_cache_seqlens"], nsa_cache_seqlens)
            )
            return response

    return Servicer()


def serve(address, threads, loaded, all_listen):
    """Serves until the process is told to end. all_listen: a barrier that every process passes once it listens."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=threads), options=[("grpc.so_reuseport", 1)])
    loaded.rpc.add_MetadataServiceServicer_to_server(make_servicer(loaded.pb, loaded.rpc), server)
    server.add_insecure_port(address)
    server.start()
    if all_listen.wait() == 0:
        print(f"grpcio_server serving: grpc={address}", file=sys.stderr, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(0).wait()


def reserve(listen):
    """A socket that keeps the port while servers with SO_REUSEPORT come to listen on it, and their address."""
    host, port = listen.rsplit(":", 1)
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((host, int(port)))
    return reserved, "%s:%d" % reserved.getsockname()


def cores():
    return len(os.sched_getaffinity(0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--threads", type=int, default=2, help="threads that answer calls, in each process")
    parser.add_argument("--processes", type=int, default=cores(), help="processes that share the port")
    flags = parser.parse_args()

    loaded = stubs.load()
    # The kernel deals connections among the processes.
    reserved, address = reserve(flags.listen)
    # grpcio can't fork once it has started anything: each process, this one too, starts its server after the fork.
    forks = multiprocessing.get_context("fork")
    arguments = (address, flags.threads, loaded, forks.Barrier(flags.processes, timeout=START_S))
    others = [forks.Process(target=serve, args=arguments, daemon=True) for _ in range(flags.processes - 1)]
    for other in others:
        other.start()
    serve(*arguments)
    for other in others:
        other.terminate()
        other.join()
    reserved.close()


if __name__ == "__main__":
    main()
