"""How many servers callers need: tests/scaleout/simulate.py TRACE... [--callers=10000] [--cores=2] [--tls].

Each caller is an engine that lives through a trace of invocations (TIMESTAMP,ContextTokens,GeneratedTokens) from a moment
of its own, in steps of 20 ms, as `nsa-metadata replay` makes them: a call for what it decodes, and one for each prefill.
Groups of 8 step at the same moment, as the ranks of an engine do. Calls go round the servers, each a queue before so many
cores. What a call costs is measured first, on this machine: CPU of a real server at several sizes, a line through them.
"""

import argparse
import contextlib
import csv
import re
import resource
import ssl
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("e2e", "reliability")]

STEP_S, TOKEN_S = 0.02, 0.03
MAX_QUERIES = 8
RANKS = 8
# A unary reply's most; a step that is larger goes in several calls.
MAX_TOKENS = 516_000
BYTES_PER_TOKEN = 8


def mutual(folder):
    """What a server, and a caller, is given for certificates both ways: flags, flags of nsa-metadata, and an ssl.SSLContext."""
    from certificates import Authority

    authority = Authority()
    Path(folder, "ca.crt").write_bytes(authority.certificate)
    pairs = {name: authority.issue("localhost", "127.0.0.1").write(Path(folder), name) for name in ("server", "caller")}
    ca, (certificate, key) = f"{folder}/ca.crt", pairs["server"]
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(*pairs["caller"])
    context.set_alpn_protocols(["h2"])
    of_server = [f"--tls_certificate={certificate}", f"--tls_key={key}", f"--tls_client_ca={ca}"]
    return of_server, dict(zip(("tls_certificate", "tls_key"), pairs["caller"], strict=True), tls_ca=ca), context


def idle_connection_bytes(server, context, count=300):
    """The server's memory for a connection that has had a call answered."""
    import wire

    before = server.memory("VmRSS")
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            peer = stack.enter_context(wire.connect(server.address))
            if context:
                peer = stack.enter_context(context.wrap_socket(peer, server_hostname="localhost"))
            peer.sendall(wire.PREFACE + wire.settings() + wire.call(1, b""))
            answered = b""
            while b"grpc-status" not in answered:  # an empty request is refused, by trailers
                answered += peer.recv(1 << 16)
        return (server.memory("VmRSS") - before) / count


def kernel_bytes():
    """What the kernel holds for all TCP sockets."""
    pages = re.search(r"^TCP: .* mem (\d+)$", Path("/proc/net/sockstat").read_text(), re.MULTILINE)[1]
    return int(pages) * resource.getpagesize()


def stuck_connection_bytes(server, count=50):
    """The kernel's memory for a connection whose caller reads nothing of a reply of 2 MB."""
    import wire
    from rows import generated

    body = generated().ExpandRequest(extend_seq_lens=[250_000], seq_lens=[250_000], nsa_index_topk=2048).SerializeToString()
    before = kernel_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            peer = stack.enter_context(wire.connect(server.address, receive_buffer=4096))
            peer.sendall(wire.PREFACE + wire.settings((1 << 31) - 1) + wire.window_update(0, (1 << 31) - 1 - 65_535) + wire.call(1, body))
        time.sleep(2)
        return (kernel_bytes() - before) / count


def measured_costs(tls):
    """Seconds of a server's CPU for a call, and for a token of it."""
    from programs import Server
    from rows import bench

    tokens, seconds = (16, 512, 4_096, 32_768, 262_144), []
    with tempfile.TemporaryDirectory() as folder:
        of_server, of_client, context = mutual(folder) if tls else ([], {}, None)
        with Server("--backend=cpu", *of_server) as server:

            def cpu_s():
                fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
                return (int(fields[11]) + int(fields[12])) / 100

            for count in tokens:
                before = cpu_s()
                done = bench(server.address, total_tokens=count, num_sequences=4, in_flight=8, duration="3s", warm_up="0s", **of_client)
                seconds.append((cpu_s() - before) / done["ok"])
                print(f"a call of {count:,} tokens: {seconds[-1] * 1e6:.1f} us of the server's CPU")
            if not tls:
                print(f"a connection whose caller doesn't read: {stuck_connection_bytes(server) / 1024:.0f} KiB of the kernel's")
            print(f"an idle connection: {idle_connection_bytes(server, context) / 1024:.1f} KiB of its memory")
    # By relative errors: the small ones are the many.
    weights = 1 / np.array(seconds)
    slope, fixed = np.polyfit(tokens, seconds, 1, w=weights)
    return fixed, slope


def steps_of(path, random):
    """The tokens of each 20 ms: of the decode's call, and of the prefill's; 0 where there is none."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    arrivals = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
    arrivals -= arrivals[0]
    context = np.array([int(row["ContextTokens"]) for row in rows])
    ends = arrivals + TOKEN_S * np.array([int(row["GeneratedTokens"]) for row in rows])
    count = int(arrivals[-1] / STEP_S) + 1
    begins = np.floor(arrivals / STEP_S).astype(int)
    prefill = np.bincount(begins, weights=context, minlength=count)[:count].astype(int)
    change = np.bincount(begins + 1, minlength=count + 2)[: count + 2] - np.bincount(
        np.minimum(np.ceil(ends / STEP_S).astype(int).clip(begins + 1), count + 1), minlength=count + 2)[: count + 2]
    running = np.cumsum(change)[:count]
    decode = np.array([random.integers(1, MAX_QUERIES + 1, many).sum() for many in running])
    return decode, prefill


def calls_of(decode, prefill, callers, seconds, random):
    """Arrival, tokens and caller of each call of some seconds, by arrival."""
    steps = int(seconds / STEP_S)
    groups = -(-callers // RANKS)
    first = np.repeat(random.integers(0, len(decode) - steps, groups), RANKS)[:callers]
    phase = np.repeat(random.uniform(0, STEP_S, groups), RANKS)[:callers]
    whose, when, size = [], [], []
    for step in range(steps):
        for tokens in (decode[first + step], prefill[first + step]):
            while (tokens > 0).any():
                (some,) = np.nonzero(tokens > 0)
                whose.append(some)
                when.append(phase[some] + step * STEP_S)
                size.append(np.minimum(tokens[some], MAX_TOKENS))
                tokens = np.maximum(tokens - MAX_TOKENS, 0)
    whose, when, size = np.concatenate(whose), np.concatenate(when), np.concatenate(size)
    order = np.argsort(when, kind="stable")
    return when[order], size[order], whose[order]


def waits_of(when, work, cores):
    """How long each call waits for one of the cores, first come, first served."""
    free = [0.0] * cores
    waits = np.empty(len(when))
    for index, (arrival, cost) in enumerate(zip(when.tolist(), work.tolist())):
        core = free.index(min(free))
        begin = max(arrival, free[core])
        free[core] = begin + cost
        waits[index] = begin - arrival
    return waits


def served(when, work, size, whose, servers, cores, random):
    """The waits of all, and the largest share of a core, and of bytes in flight, that one server has."""
    # Each caller goes round from a server of its own.
    turn = random.integers(0, servers, whose.max() + 1)
    place = np.empty(len(whose), dtype=np.int64)
    by_caller = np.argsort(whose, kind="stable")
    start = np.r_[0, np.nonzero(np.diff(whose[by_caller]))[0] + 1]
    number = np.arange(len(whose)) - np.repeat(start, np.diff(np.r_[start, len(whose)]))
    place[by_caller] = (number + turn[whose[by_caller]]) % servers
    waits, busiest, most_bytes = np.empty(len(when)), 0.0, 0.0
    for server in range(servers):
        (mine,) = np.nonzero(place == server)
        waits[mine] = waits_of(when[mine], work[mine], cores)
        busiest = max(busiest, work[mine].sum() / (cores * (when[-1] - when[0])))
        # What is in the server at once: bytes in at the arrival, out at the end.
        ends = when[mine] + waits[mine] + work[mine]
        at = np.r_[when[mine], ends]
        change = np.r_[size[mine], -size[mine]] * BYTES_PER_TOKEN
        most_bytes = max(most_bytes, np.cumsum(change[np.argsort(at, kind="stable")]).max())
    return waits, busiest, most_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+")
    parser.add_argument("--callers", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2, help="of a server")
    parser.add_argument("--seconds", type=float, default=2.0, help="of trace time")
    parser.add_argument("--tls", action="store_true", help="measured with certificates both ways")
    parser.add_argument("--costs", type=float, nargs=2, metavar=("CALL_US", "TOKEN_NS"), help="in place of measuring them")
    flags = parser.parse_args()
    for name, least in (("callers", 1), ("cores", 1), ("seconds", STEP_S)):
        if getattr(flags, name) < least:
            parser.error(f"--{name}={getattr(flags, name)} is less than {least}")
    random = np.random.default_rng(1)
    fixed, slope = [flags.costs[0] * 1e-6, flags.costs[1] * 1e-9] if flags.costs else measured_costs(flags.tls)
    print(f"a call costs {fixed * 1e6:.1f} us and {slope * 1e9:.2f} ns a token\n")
    print("| trace | calls/s | tokens a call, mean and p99 | cores' work | servers | busiest | wait p50 | wait p99 | wait max | MiB in flight |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for path in flags.traces:
        try:
            decode, prefill = steps_of(path, random)
        except (OSError, KeyError, ValueError, IndexError) as fault:
            parser.error(f"{path} is no trace of TIMESTAMP,ContextTokens,GeneratedTokens: {fault}")
        if flags.seconds >= len(decode) * STEP_S:
            parser.error(f"--seconds={flags.seconds} is not within {path}, which lasts {len(decode) * STEP_S:.0f}")
        when, size, whose = calls_of(decode, prefill, flags.callers, flags.seconds, random)
        work = fixed + slope * size
        needed = work.sum() / flags.seconds
        for share in (0.9, 0.7, 0.5, 0.35):
            servers = int(np.ceil(needed / flags.cores / share))
            waits, busiest, most_bytes = served(when, work, size, whose, servers, flags.cores, random)
            p50, p99, most = np.quantile(waits, (0.5, 0.99, 1)) * 1e3
            print(f"| {Path(path).stem} | {len(when) / flags.seconds:,.0f} | {size.mean():,.0f}, {np.quantile(size, 0.99):,.0f} | {needed:.1f} | "
                  f"{servers} | {busiest:.0%} | {p50:.2f} ms | {p99:.2f} ms | {most:.1f} ms | {most_bytes / 2**20:.1f} |", flush=True)


if __name__ == "__main__":
    main()
