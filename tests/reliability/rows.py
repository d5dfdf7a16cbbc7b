"""The rows of tests/RELIABILITY.md that need a load or thousands of peers: what each asks, measured, as Markdown.

    tests/reliability/run.sh [--long] [R3 R4 …]

Short: a hundredth of the counts, or as much of them as shows anything; what is a matter of time is said, and fails
nothing. Ends non-zero when a figure was missed.
"""

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from random import Random
from statistics import median

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import wire  # noqa: E402
from certificates import Authority  # noqa: E402
from programs import BUILD, CLIENT, REPOSITORY, TEST_SERVER, Server, eventually  # noqa: E402
from proxy import Proxy  # noqa: E402

MEBIBYTE = 1 << 20
# An attacker sends this many frames a second on a connection.
FRAMES_PER_S = 1_000
READY_ECHO = re.compile(r"grpc=(\S+)")
GREEDY = "127.0.0.2"
MODEST = [f"127.0.0.{i}" for i in range(3, 12)]


class Missed(Exception):
    """What a row asks is not so."""


class Row:
    """Collects what was measured against what is asked."""

    def __init__(self, name, what, long):
        self.name, self.what, self.long, self.lines, self.missed = name, what, long, [], False

    def figure(self, what, asked, measured, holds, timed=False):
        """timed: it depends on what else the machine has to do."""
        self.missed |= not holds and (self.long or not timed)
        self.lines.append(f"| {self.name} | {what} | {asked} | {measured}{'' if holds else ' **missed**'} |")
        print(self.lines[-1], flush=True)


def start_bench(target, **flags):
    command = [CLIENT, "bench", f"--target={target}", "--json", *(f"--{k}={v}" for k, v in flags.items())]
    return subprocess.Popen(map(str, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process):
    out, err = process.communicate()
    if not out:
        raise Missed(f"bench said nothing but: {err}")
    result = json.loads(out)
    if result["wrong"]:
        raise Missed(f"wrong bytes: {result['differences']}")
    return result


def bench(target, **flags):
    return result_of(start_bench(target, **flags))


def failures(result):
    return sum(result["refused"].values()) + sum(result["errors"].values())


def goodput(result):
    return result["ok"] / result["wall_s"]


def p99_ms(result):
    return result["latency_us"]["p99"] / 1e3


class HealthProbes:
    """Health checks as a kubelet makes them, a connection each, one after another; the longest of them."""

    def __init__(self, server, period_s=0.05):
        self._address, self._period_s = server.health_address, period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.longest_s, self.failed, self.made = 0.0, 0, 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(self._period_s):
            begin = time.monotonic()
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(self._address, options) as on:
                try:
                    reply = health_pb2_grpc.HealthStub(on).Check(health_pb2.HealthCheckRequest(), timeout=5)
                    self.failed += reply.status != health_pb2.HealthCheckResponse.SERVING
                except grpc.RpcError:
                    self.failed += 1
            self.longest_s = max(self.longest_s, time.monotonic() - begin)
            self.made += 1

    def into(self, row):
        row.figure(
            "health probes", "≤ 500 ms each", f"{self.longest_s * 1e3:.0f} ms at most, {self.failed} of {self.made} failed",
            self.longest_s <= 0.5 and self.failed == 0, timed=True,
        )


def request(pb, tokens=16, sequences=4):
    share = [tokens // sequences] * sequences
    return pb.ExpandRequest(extend_seq_lens=share, seq_lens=share, nsa_index_topk=2048).SerializeToString()


def books_balance(row, server):
    """admitted = launched + expired + cancelled, once nothing is in flight."""

    def settled():
        metrics = server.metrics()
        admitted = metrics.total("nsa_metadata_admitted_total")
        launched = metrics.total("nsa_metadata_batch_requests_sum")
        expired = metrics.total("nsa_metadata_expired_total", stage="queue")
        cancelled = metrics.total("nsa_metadata_cancelled_total", stage="queue")
        text = f"{admitted:.0f} = {launched:.0f} + {expired:.0f} + {cancelled:.0f}"
        return text if admitted == launched + expired + cancelled else None

    try:
        row.figure("admitted = launched + expired + cancelled", "exactly", eventually(settled, "the books balance"), True)
    except AssertionError as off:
        row.figure("admitted = launched + expired + cancelled", "exactly", str(off), False)


class NullSink:
    """Takes connections and what comes on them: what an attacker costs that shares the machine."""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._drain, args=(peer,), daemon=True).start()

    @staticmethod
    def _drain(peer):
        with contextlib.suppress(OSError):
            while peer.recv(1 << 16):
                pass


def paced(run, threads):
    """Runs `run(index)` on so many threads, to their end."""
    running = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(threads)]
    for thread in running:
        thread.start()
    return running


def noise(random, pb):
    """What a stranger may send first on a connection."""
    call = wire.PREFACE + wire.settings() + wire.call(1, request(pb))
    cut = random.randrange(len(call))
    spoilt = bytearray(call)
    for _ in range(random.randrange(1, 8)):
        spoilt[random.randrange(len(spoilt))] = random.randrange(256)
    return random.choice([
        random.randbytes(random.randrange(1, 2_000)),
        wire.PREFACE[: random.randrange(1, len(wire.PREFACE))],
        wire.PREFACE + random.randbytes(random.randrange(1, 2_000)),
        wire.PREFACE + wire.frame(random.randrange(12), random.randrange(256), random.randrange(4), random.randbytes(random.randrange(64))),
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        b"POST /nsa.metadata.v1.MetadataService/Expand HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303") + random.randbytes(193),  # a TLS ClientHello's begin
        call[:cut],
        bytes(spoilt),
    ])


def r1(row, pb, scale):
    count = int(1_000_000 * scale)
    per_s = 2_000  # connections, from all threads together

    def attack(address, some, seed):
        threads, begin = 4, time.monotonic()

        def run(index):
            random = Random(seed * 100 + index)
            for i in range(some // threads):
                if i % 20 == 0:
                    time.sleep(max(0, begin + threads * i / per_s - time.monotonic()))
                with contextlib.suppress(OSError), wire.connect(address) as peer:
                    peer.sendall(noise(random, pb))
                    if i % 4 == 0:  # others go without waiting for an answer
                        peer.settimeout(0.05)
                        peer.recv(1_000)

        for thread in paced(run, threads):
            thread.join()

    with Server("--handshake_timeout=2s") as server, NullSink() as sink:
        bench(server.address, duration="1s")
        results = []
        for address, some in ((sink.address, min(count // 2, 20_000)), (server.address, count)):
            server.reset_peak_memory()
            before = server.memory("VmRSS")
            beside = start_bench(server.address, duration=f"{max(some / per_s, 1):.1f}s", channels=2, in_flight=2)
            attack(address, some, len(results))
            results.append(result_of(beside))
        grown = (server.memory("VmHWM") - before) / MEBIBYTE
        sanitized = BUILD.name in ("asan", "tsan")  # which keep memory of their own
        row.figure(f"{count:,} connections that begin with nonsense: memory", "(a sanitizer's too)" if sanitized else "+32 MiB",
                   f"+{grown:.0f} MiB, up", sanitized or grown <= 32)
        row.figure("a good client beside them: p99", "within 2x", f"{p99_ms(results[1]):.2f} ms, with the same sent elsewhere "
                   f"{p99_ms(results[0]):.2f} ms, {failures(results[1])} failed",
                   p99_ms(results[1]) <= 2 * p99_ms(results[0]), timed=True)
        row.figure("its calls", "0 failed", f"{failures(results[1])} of {results[1]['requests']:,}", failures(results[1]) == 0)
        books_balance(row, server)


def abuses(pb):
    """What HTTP/2 lets a peer do: how a connection begins, and the frames that it then sends again and again."""
    begin = wire.PREFACE + wire.settings() + wire.window_update(0, (1 << 31) - 1 - 65_535)
    open_block = wire.frame(wire.HEADERS, 0, 1, wire.EXPAND)  # without END_HEADERS
    continuation = 9
    # A literal field without indexing, one byte of name and one of value.
    small_fields = b"\x00\x01a\x01b" * 16
    with_more = wire.headers_block(f"{wire.SERVICE}/Expand", [("x-filler", "f" * 8_192)])
    strange = wire.headers_block(f"{wire.SERVICE}/Expand", [("grpclb_client_stats", "x"), ("te", "x"), ("x-filler", "f" * 8_192)])
    body = request(pb)

    def calls(block):
        """One a frame, each a stream of its own."""
        return lambda i: wire.call(1 + 2 * i, body, block)

    return {
        "CONTINUATIONs without end": (begin + open_block, lambda i: wire.frame(continuation, 0, 1, small_fields)),
        "a header of 4 GiB announced": (
            begin + wire.frame(wire.HEADERS, 0, 1, wire.EXPAND + b"\x00\x7f\x80\xff\xff\xff\x0f"),
            lambda i: wire.frame(continuation, 0, 1, b"n" * 1_024)),
        "a varint without end": (
            begin + wire.frame(wire.HEADERS, 0, 1, wire.EXPAND + b"\x00\x7f"),
            lambda i: wire.frame(continuation, 0, 1, b"\x80" * 256)),
        "SETTINGS": (begin, lambda i: wire.settings()),
        "PINGs": (begin, lambda i: wire.frame(wire.PING, 0, 0, b"12345678")),
        "PRIORITY": (begin, lambda i: wire.frame(2, 0, 1 + 2 * i, b"\0\0\0\0\x10")),
        "WINDOW_UPDATEs": (begin, lambda i: wire.window_update(0, 1) if i == 0 else wire.frame(wire.WINDOW_UPDATE, 0, 2**31 - 1, b"\0\0\0\1")),
        "calls whose window is zero": (wire.PREFACE + wire.settings(0), calls(wire.EXPAND)),
        "DATA after a stream's end": (begin + wire.call(1, body), lambda i: wire.frame(wire.DATA, 0, 1, b"")),
        "calls with 8 KiB of metadata more": (begin, calls(with_more)),
        "calls with grpclb_client_stats, te: x and 8 KiB more": (begin, calls(strange)),
    }


def abuse(address, opening, unit, seconds, connections=10):
    """Sends an opening and then `unit(i)` at the cap, again on a new connection where the server ends one; frames sent."""
    sent = [0] * connections

    def run(index):
        end, batch = time.monotonic() + seconds, 50
        while time.monotonic() < end:
            # Not the good client's address, whose share of memory would be both's.
            with contextlib.suppress(OSError), wire.connect(address, source=GREEDY) as peer:
                peer.sendall(opening)
                threading.Thread(target=NullSink._drain, args=(peer,), daemon=True).start()
                begin, i = time.monotonic(), 0
                while time.monotonic() < end:
                    peer.sendall(b"".join(unit(i + k) for k in range(batch)))
                    i += batch
                    sent[index] += batch
                    time.sleep(max(0, begin + i / FRAMES_PER_S - time.monotonic()))
            time.sleep(0.01)

    for thread in paced(run, connections):
        thread.join()
    return sum(sent)


def beside(address, attack, attacked, seconds):
    """What a good client of `address` did during `attack(attacked, seconds)`, and how much of it was sent."""
    good = start_bench(address, duration=f"{seconds}s", warm_up="0s", channels=2, in_flight=2)
    sent = attack(attacked, seconds=seconds)
    return result_of(good), sent


def share_kept(row, name, serve, attack):
    """How much a good client still does beside `attack`, of what it does beside the same one at a sink: the median over pairs of stretches,
    each with servers of its own by `serve`, a context of the address to call, for an attack may outlast itself."""
    seconds, pairs = (4, 5) if row.long else (0.3, 1)
    shares = []
    for _ in range(pairs):
        with serve() as address, NullSink() as sink:
            bench(address, duration="200ms", warm_up="0s")
            elsewhere, here = (goodput(beside(address, attack, attacked, seconds)[0]) for attacked in (sink.address, address))
            shares.append(here / elsewhere)
    share = median(shares)
    row.figure(f"{name}: a good client's calls", "0.95 of what it does with the same sent elsewhere",
               f"{share:.2f}, the median of {' '.join(f'{one:.2f}' for one in sorted(shares))}", share >= 0.95, timed=True)


def r2(row, pb, scale):
    seconds = 20 if row.long else 0.3

    @contextlib.contextmanager
    def serve():
        with Server() as server:
            yield server.address

    for name, (opening, unit) in abuses(pb).items():
        attack = partial(abuse, opening=opening, unit=unit)
        with Server() as server:
            bench(server.address, duration="200ms", warm_up="0s")
            server.reset_peak_memory()
            before = server.memory("VmRSS")
            good, sent = beside(server.address, attack, server.address, seconds)
            grown = (server.memory("VmHWM") - before) / MEBIBYTE
            row.figure(f"{name}, {sent:,} frames on 10 connections", "up, +128 MiB, no call of a good client failed",
                       f"+{grown:.0f} MiB; {failures(good)} of {good['requests']:,}", grown <= 128 and failures(good) == 0)
            begin = time.monotonic()
            after = bench(server.address, duration="200ms", warm_up="0s", timeout="30s")
            row.figure(f"{name}: calls afterwards", "served at once", f"{failures(after)} failed of {after['requests']:,}, "
                       f"over after {time.monotonic() - begin:.1f} s", after["ok"] > 0 and failures(after) == 0, timed=True)
        share_kept(row, name, serve, attack)


def reset_flood(address, pairs, connections=10, body=None):
    """So many pairs of HEADERS and RST_STREAM, as fast as the cap lets it, every tenth with the request `body` in between if there is one;
    returns the pairs that were sent."""
    per_connection = pairs // connections
    sent = 0

    def run():
        nonlocal sent
        stream, peer = 1, None
        begin = time.monotonic()
        for i in range(per_connection):
            if i % 50 == 0:
                time.sleep(max(0, begin + 2 * i / FRAMES_PER_S - time.monotonic()))
            try:
                if peer is None:
                    peer, stream = wire.connect(address, source=GREEDY), 1
                    peer.sendall(wire.PREFACE + wire.settings())
                    threading.Thread(target=NullSink._drain, args=(peer,), daemon=True).start()
                opened = wire.call(stream, body) if body and i % 10 == 0 else wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.EXPAND)
                peer.sendall(opened + wire.rst(stream))
                sent, stream = sent + 1, stream + 2
            except OSError:
                peer = None  # the server has ended it
        if peer:
            peer.close()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent


def r3(row, pb, scale):
    pairs = int(2_000_000 * scale)
    with Server() as server, NullSink() as sink:
        bench(server.address, duration="1s")
        results = []
        for address, some in ((sink.address, min(pairs, 100_000)), (server.address, pairs)):
            server.reset_peak_memory()
            before = server.memory("VmRSS")
            seconds = some / 10 * 2 / FRAMES_PER_S
            earlier = server.metrics().total("nsa_metadata_admitted_total")
            beside = start_bench(server.address, duration=f"{seconds:.1f}s", warm_up="0s", channels=2, in_flight=2)
            sent = reset_flood(address, some, body=request(pb))
            results.append(result_of(beside))
        grown = (server.memory("VmHWM") - before) / MEBIBYTE
        row.figure(f"memory over {sent:,} pairs, {sent // 10:,} of them with a whole request", "+128 MiB", f"+{grown:.0f} MiB", grown <= 128)
        waiting = eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 0, "the queue is empty", 1)
        row.figure("queue afterwards", "0 within 1 s", "0", waiting)
        kept = goodput(results[1]) / goodput(results[0])
        row.figure(
            "a good client beside it", "all answered",
            f"{failures(results[1])} failed; {kept:.2f} of its calls, p99 {p99_ms(results[1]):.1f} ms, with the flood "
            f"sent elsewhere {p99_ms(results[0]):.1f} ms", failures(results[1]) == 0,
        )
        books_balance(row, server)
        metrics = server.metrics()
        admitted = metrics.total("nsa_metadata_admitted_total") - earlier - results[1]["requests"]
        row.figure("of the whole requests", "(told)", f"{max(admitted, 0):,.0f} admitted, since gRPC had not told of their reset; "
                   f"{metrics.total('nsa_metadata_cancelled_total', stage='queue'):,.0f} of those cancelled in the queue", True)


def proxied(row, pb, scale):
    """R2 and R3 with the proxy that SECURITY.md asks for in between: attackers and the good client call it alike."""
    seconds = 20 if row.long else 2

    @contextlib.contextmanager
    def serve():
        with Server() as server, Proxy.before(server) as proxy:
            yield proxy.address

    def resets(address, seconds):
        return reset_flood(address, int(seconds * 10 * FRAMES_PER_S / 2))

    attacks = {name: partial(abuse, opening=opening, unit=unit) for name, (opening, unit) in abuses(pb).items()}
    for name, attack in (*attacks.items(), ("HEADERS and RST_STREAM", resets)):
        with Server() as server, Proxy.before(server) as proxy:
            bench(proxy.address, duration="1s")
            for each in (server, proxy):
                each.reset_peak_memory()
            before = [each.memory("VmRSS") for each in (server, proxy)]
            good, sent = beside(proxy.address, attack, proxy.address, seconds)
            grown, proxy_grown = ((each.memory("VmHWM") - least) / MEBIBYTE for each, least in zip((server, proxy), before, strict=True))
            row.figure(f"behind the proxy: {name}, {sent:,} sent on 10 connections", "up, +128 MiB, no call of a good client failed",
                       f"server +{grown:.0f} MiB, proxy +{proxy_grown:.0f} MiB; {failures(good)} of {good['requests']:,}",
                       grown <= 128 and proxy_grown <= 128 and failures(good) == 0)
            books_balance(row, server)
        share_kept(row, f"behind the proxy: {name}", serve, attack)
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        authority = Authority()
        Path(folder, "ca.crt").write_bytes(authority.certificate)
        authority.issue("localhost", "127.0.0.1").write(folder, "tls")
        certificate, key = authority.issue("caller").write(folder, "caller")
        with Proxy.before(server, certificates=folder) as proxy:
            tls = {"tls_ca": f"{folder}/ca.crt", "duration": "200ms"}
            let_in = bench(proxy.address, tls_certificate=certificate, tls_key=key, **tls)
            row.figure("the proxy as it is shipped, by a caller with a certificate", "served",
                       f"{failures(let_in)} of {let_in['requests']:,} calls failed", let_in["ok"] > 0 and failures(let_in) == 0)
            stranger = bench(proxy.address, timeout="1s", **tls)
            row.figure("by one without", "not served", f"{stranger['ok']} calls", stranger["ok"] == 0)


def r4(row, pb, scale):
    count = max(int(10_000 * scale), 1_000)
    with Server() as server, contextlib.ExitStack() as stack:
        body = request(pb)
        bench(server.address, duration="1s", channels=4, in_flight=64)
        before = server.memory("VmRSS")
        idle = []
        for begin in range(0, count, 500):
            some = [wire.Connection(server.address) for _ in range(min(500, count - begin))]
            for connection in some:
                stack.callback(connection.close)
                connection.start(body)
            if not wire.run_until(some, lambda: all(c.statuses for c in some), 30):
                raise Missed("not every connection was answered")
            idle += some
        wrong = sum(connection.statuses[1] != 0 for connection in idle)
        each = (server.memory("VmRSS") - before) / count / 1024
        row.figure(f"{count:,} idle connections, one call each", "≤ 24 KiB each", f"{each:.1f} KiB each, {wrong} failed",
                   each <= 24 and wrong == 0)
        begin = time.monotonic()
        last = wire.Connection(server.address)
        last.start(body)
        answered = wire.run_until([last], lambda: last.statuses, 5)
        took = (time.monotonic() - begin) * 1e3
        row.figure("the next one is served", "in 50 ms", f"{took:.1f} ms", answered and took <= 50, timed=True)
        last.close()


def r6(row, pb, scale):
    count = max(int(1_000 * scale), 40)
    drips = max(int(100 * scale), 10)
    # In the short form it is over before the kernel gives up a socket that takes nothing, or next to nothing, after 20 s.
    stall_s, more_s = (30, 45) if row.long else (4, 8)
    budget = (256 if row.long else 64) * MEBIBYTE
    flags = [f"--output_budget_bytes={budget}", f"--max_reply_bytes={MEBIBYTE}", f"--max_unary_reply_bytes={MEBIBYTE}"]
    body = request(pb, tokens=100_000, sequences=1)  # a reply of 800 KB, more than the kernel takes of a connection
    each = 13  # blocks

    def unread():
        peer = wire.connect(server.address, GREEDY, receive_buffer=4096)
        opened = wire.PREFACE + wire.settings((1 << 31) - 1) + wire.window_update(0, (1 << 31) - 1 - 65_535)
        peer.sendall(opened + wire.call(1, body))
        return peer

    def shut():
        connection = wire.Connection(server.address, GREEDY, window=0)
        connection.start(body)
        return connection

    def sip(peers, stop):
        while not stop.wait(1):
            for peer in peers:
                with contextlib.suppress(OSError):  # nothing there, or ended
                    peer.recv(5_120, socket.MSG_DONTWAIT)

    def in_use():
        return server.metrics().total("nsa_metadata_output_blocks_in_use")

    with Server(*flags, f"--write_stall_timeout={stall_s}s", "--caller_share=0.75") as server, contextlib.ExitStack() as stack:
        bench(server.address, duration="1s", channels=4, in_flight=8)
        server.reset_peak_memory()
        before = server.memory("VmRSS")
        beside = start_bench(server.address, duration=f"{stall_s + more_s}s", channels=4, in_flight=8)
        # Some of each kind first: a caller's share holds only so many.
        begin = time.monotonic()
        few = 15
        dripping = [stack.enter_context(contextlib.closing(shut())) for _ in range(drips // 2)]
        sipping = [stack.enter_context(unread()) for _ in range(drips // 2)]
        stop = threading.Event()
        sips = threading.Thread(target=sip, args=(sipping, stop), daemon=True)
        sips.start()
        stack.callback(sips.join)
        stack.callback(stop.set)
        silent = [stack.enter_context(contextlib.closing(shut())) for _ in range(few)]
        sockets = [stack.enter_context(unread()) for _ in range(few)]
        run = [*dripping, *silent]
        wire.run_until(run, lambda: False, 0.5)
        held = in_use()
        for _ in range(count - few):
            run.append(stack.enter_context(contextlib.closing(shut())))
            sockets.append(stack.enter_context(unread()))
        wire.run_until(run, lambda: False, 0.5)
        refused = sum(14 in c.statuses.values() for c in run)  # UNAVAILABLE
        waits = [c for c in run if not c.statuses]
        while time.monotonic() < begin + stall_s + more_s:
            for connection in dripping:
                if not connection.closed and not connection.statuses:
                    connection.send(wire.window_update(1, 5_120))
            wire.run_until([c for c in run if not c.closed], lambda: False, 1)
        result = result_of(beside)
        grown = (server.memory("VmHWM") - before) / MEBIBYTE
        asked = 1.2 * budget / MEBIBYTE
        row.figure(
            f"memory with {count} readers whose window is shut, {count} that don't read the socket, {drips} "
            "that take 5 KiB a second, by the window or the socket",
            f"+{asked:.0f} MiB (budget + 20 %)", f"+{grown:.0f} MiB; {held:.0f} of {budget // 65_536} blocks held by the first, all kinds; of "
            f"those with a shut or slow window {refused} refused for the caller's share", grown <= asked and held >= each * (drips + few),
        )
        ended = server.metrics().total("nsa_metadata_connections_ended_total", reason="stalled")
        reset = sum(bool({1, "reset"} & set(c.statuses.values())) for c in waits)  # CANCELLED, or without a status
        left = in_use()
        row.figure(
            f"ended by write_stall_timeout ({stall_s} s)", "all",
            f"{reset} of {len(waits)} with a shut or slow window cancelled, {ended:.0f} connections ended by the server; "
            f"{left:.0f} blocks left in use", reset == len(waits) > 0 and left <= each * 8,
        )
        row.figure("healthy calls beside them", "0 failed", f"{failures(result)} failed of {result['requests']:,}",
                   failures(result) == 0)


def r7(row, pb, scale):
    with Server("--caller_share=1") as server:
        seconds = 60 if scale == 1 else 5
        result = bench(server.address, duration=f"{seconds}s", channels=100, in_flight=10_000, num_sequences=1,
                       reply_bytes=4_000_000)
        metrics = server.metrics()
        most, have = metrics.total("nsa_metadata_output_blocks_high_water"), metrics.total("nsa_metadata_output_blocks")
        row.figure("10,000 callers of 4 MB replies: blocks in use", f"≤ {have:.0f}", f"{most:.0f} at most, "
                   f"{result['ok']:,} answered, {failures(result):,} refused, 0 wrong", most <= have and result["ok"] > 0)
        books_balance(row, server)


@contextlib.contextmanager
def echo():
    """The address of a bare echo of 142 bytes."""
    command = [BUILD / "tests" / "bench" / "transport_floor", "--listen=127.0.0.1:0", "--reply_bytes=142"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield READY_ECHO.search(process.stderr.readline())[1]
        finally:
            process.terminate()


def r8(row, pb, scale):
    seconds, factors = (120, (2, 5, 10)) if row.long else (3, (5,))
    # A queue of what can be served in 0.2 s.
    flags = ["--batch_time=5ms", "--lanes=1", "--max_batch_requests=10", "--max_queue_requests=400"]
    with Server(*flags, program=TEST_SERVER) as server, HealthProbes(server) as probes:
        quiet = bench(server.address, duration="2s")
        peak = goodput(bench(server.address, duration="2s", channels=4, in_flight=64))
        for factor in factors:
            result = bench(server.address, duration=f"{seconds}s", channels=8, in_flight=800, rate=factor * peak)
            kept = goodput(result) / peak
            row.figure(f"(a) {peak:,.0f} calls/s offered {factor}x: goodput", "≥ 0.9 of the peak", f"{kept:.2f}", kept >= 0.9, timed=True)
            refusals = result.get("refusal_latency_us")
            row.figure(f"(a) {factor}x: refusals", "p99 ≤ 10 ms", f"{sum(result['refused'].values()):,}, p99 "
                       f"{refusals['p99'] / 1e3:.1f} ms" if refusals else "none", not refusals or refusals["p99"] <= 1e4, timed=True)
        time.sleep(1)
        after = bench(server.address, duration="1s", warm_up="0s")
        row.figure("(a) p99 within 2 s of the load's end", "as before", f"{p99_ms(after):.1f} ms, before "
                   f"{p99_ms(quiet):.1f} ms", p99_ms(after) <= 1.5 * p99_ms(quiet), timed=True)
        probes.into(row)
    with Server() as server, HealthProbes(server) as probes:
        seconds = 60 if row.long else 2
        quiet = bench(server.address, duration="1s")
        peak = goodput(bench(server.address, duration="2s", channels=4, in_flight=64))
        result = bench(server.address, duration=f"{seconds}s", channels=100, in_flight=10_000, timeout="100ms")
        kept = goodput(result) / peak
        row.figure("(b) 10,000 callers with 100 ms each: goodput", "≥ 0.6 of the peak",
                   f"{kept:.2f} of {peak:,.0f} calls/s, {failures(result):,} of {result['requests']:,} without an answer",
                   kept >= 0.6, timed=True)
        if row.long:
            with echo() as floor:
                bare = bench(floor, duration="10s", channels=100, in_flight=10_000, timeout="100ms")
            row.figure("(b) the same callers of a bare echo (tests/bench/transport_floor)", "(for comparison)",
                       f"{bare['ok']:,} of {bare['requests']:,} answered", True)
        time.sleep(1)
        after = bench(server.address, duration="1s", warm_up="0s")
        row.figure("(b) p99 within 2 s of the load's end", "as before",
                   f"{p99_ms(after):.2f} ms, before {p99_ms(quiet):.2f} ms", p99_ms(after) <= 2 * p99_ms(quiet), timed=True)
        probes.into(row)
        ended = server.metrics().total("nsa_metadata_connections_ended_total", reason="undelivered")
        row.figure("connections of callers that gave up, taken for attackers", "0", f"{ended:.0f}", ended == 0)
        books_balance(row, server)


def offer(address, body, rates, seconds):
    """Calls at so many a second from each source address; {source: [status of each call, None for no answer]}."""
    connections = {source: [] for source in rates}
    due = {source: time.monotonic() for source in rates}
    started = {source: [] for source in rates}
    end = time.monotonic() + seconds
    everyone = []

    def start(source):
        # Fewer than a connection may have at once; more connections while answers are long in coming.
        room = [c for c in connections[source] if len(c.started) < 90 and not c.closed]
        if not room:
            room = [wire.Connection(address, source)]
            connections[source] += room
            everyone.extend(room)
        started[source].append((room[0], room[0].start(body)))

    while (now := time.monotonic()) < end:
        for source, rate in rates.items():
            while due[source] <= now:
                start(source)
                due[source] += 1 / rate
        for connection in everyone:
            connection.receive()
        time.sleep(0.002)
    wire.run_until(everyone, lambda: not any(c.started for c in everyone), 10)
    outcomes = {s: [c.statuses.get(stream) for c, stream in calls] for s, calls in started.items()}
    for connection in everyone:
        connection.close()
    return outcomes


def r9(row, pb, scale):
    seconds = 60 if row.long else 6
    rates = {GREEDY: 2_000, **{source: 20 for source in MODEST}}
    # 1,600 calls a second, fewer than are offered.
    flags = ["--batch_time=5ms", "--lanes=1", "--max_batch_requests=8", "--max_queue_requests=400"]
    lost = {}
    for share in (0.25, 1):
        with Server(*flags, f"--caller_share={share}", program=TEST_SERVER) as server:
            outcomes = offer(server.address, request(pb), rates, seconds)
            calls = [status for source in MODEST for status in outcomes[source]]
            lost[share] = sum(status != 0 for status in calls) / len(calls)
            greedy = sum(status != 0 for status in outcomes[GREEDY]) / len(outcomes[GREEDY])
            if share < 1:
                row.figure("nine callers of 20 calls/s beside one of 2,000, 1,600 can be served: the nine lose",
                           "≤ 5 %", f"{lost[share]:.1%} of {len(calls):,}; the one {greedy:.1%}", lost[share] <= 0.05)
    row.figure("the same without a caller's share", "more", f"{lost[1]:.1%}", lost[1] > lost[0.25])


def free_ports(count):
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


class Replicas:
    """Two servers with ports of their own, one of which is ended and started again while a client calls both."""

    def __init__(self, *flags):
        self.addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
        self.target = "ipv4:" + ",".join(self.addresses)
        self._flags = flags

    def __enter__(self):
        self._servers = [self._start(address) for address in self.addresses]
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.kill()

    def _start(self, address):
        return Server(*self._flags, listen=address).__enter__()

    def replace(self, which, end):
        """Ends one by `end(server)` and starts it again; seconds until that serves."""
        end(self._servers[which])
        begin = time.monotonic()
        self._servers[which] = self._start(self.addresses[which])
        return time.monotonic() - begin


def restarts(row, scale, end, what):
    """Ends replicas in turn under 35 % of the load that both can take."""
    times = max(int(100 * scale), 3)
    # Time for callers to come back to the one that was away, before the other one goes.
    pause_s = 2.2
    with Replicas("--lame_duck=200ms") as replicas:
        peak = goodput(bench(replicas.target, duration="3s", channels=4, in_flight=64, max_attempts=4))
        rate = max(0.35 * peak, 1_000_000 * scale / (times * pause_s) if scale == 1 else 0)
        load = start_bench(replicas.target, duration=f"{times * (pause_s + 0.6) + 1:.0f}s", channels=4, in_flight=256,
                           rate=rate, max_attempts=4)
        starts = []
        for i in range(times):
            time.sleep(pause_s)
            if load.poll() is not None:
                break
            starts.append(replicas.replace(i % 2, end))
        result = result_of(load)
        row.figure(f"{len(starts)} {what} of two replicas at {rate / peak:.0%} of their {peak:,.0f} calls/s: failed calls", "0",
                   f"{failures(result)} of {result['requests']:,} {result['errors'] or ''}", failures(result) == 0)
        return starts


def r12(row, pb, scale):
    def end(server):
        server.terminate()
        code = server.wait()
        if code != 0:
            raise Missed(f"exit code {code}")

    restarts(row, scale, end, "rolling restarts")


def r13(row, pb, scale):
    starts = restarts(row, scale, Server.kill, "kills (SIGKILL)")
    row.figure("serving again", "in 1 s", f"{max(starts):.2f} s at most", max(starts) <= 1, timed=True)
    streams_over_kills(row, scale)


def streams_over_kills(row, scale):
    """Kills replicas in turn under streams that hold 64 items in flight."""
    times = max(int(100 * scale), 3)
    with Replicas() as replicas, tempfile.NamedTemporaryFile("w", suffix=".csv") as trace:
        # Prefills and decodes of many lengths, some seconds of them.
        print("TIMESTAMP,ContextTokens,GeneratedTokens", file=trace)
        for i in range(150_000):
            at = f"2026-01-01 {i // 720_000:02}:{i // 12_000 % 60:02}:{i // 200 % 60:02}.{i % 200 * 50_000:07}"
            print(f"{at},{1 + i * 37 % 4_000},{1 + i * 11 % 300}", file=trace)
        trace.flush()
        command = [CLIENT, "replay", f"--target={replicas.target}", f"--trace={trace.name}", "--json", "--verify",
                   "--channels=2", "--stream", "--streams=4"]
        kills = answered = failed = 0
        while kills < times:
            replay = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            while replay.poll() is None and kills < times:
                time.sleep(1.6)
                if replay.poll() is None:
                    replicas.replace(kills % 2, Server.kill)
                    kills += 1
            result = result_of(replay)
            answered += result["ok"]
            failed += failures(result)
        row.figure(f"{kills} kills under streams with 64 items in flight: failed items", "0",
                   f"{failed} of {answered + failed:,}, whole replies compared", failed == 0)


def r22(row, pb, scale):
    stop = threading.Event()

    def stuck(address):
        """Says half a request, again whenever it is ended."""
        while not stop.is_set():
            with contextlib.suppress(OSError), wire.connect(address) as peer:
                peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
                peer.settimeout(0.5)
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not peer.recv(100):
                            break

    with Server() as server:
        def scrape_s():
            begin = time.monotonic()
            server.metrics()
            ready = server.get("/readyz")[0]
            return time.monotonic() - begin if ready == 200 else float("inf")

        before = bench(server.address, duration="3s")
        threads = [threading.Thread(target=stuck, args=(server.metrics_address,), daemon=True) for _ in range(100)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        beside = start_bench(server.address, duration="3s")
        scrapes = []
        while beside.poll() is None:
            scrapes.append(scrape_s())
        during = result_of(beside)
        stop.set()
        for thread in threads:
            thread.join()
        row.figure("100 stuck connections on the metrics port: calls", "no effect",
                   f"{failures(during)} failed, p99 {p99_ms(during):.2f} ms, before {p99_ms(before):.2f} ms",
                   failures(during) == 0)
        row.figure("scrapes and readiness", "answered", f"{len(scrapes)}, {max(scrapes) * 1e3:.0f} ms at most", max(scrapes) < 1, timed=True)


def r25(row, pb, scale):
    count = max(int(10_000 * scale), 1_000)
    open_stream = wire.headers_block("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")

    def threads():
        return int(re.search(r"Threads:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1])

    with Server("--reflection") as server, contextlib.ExitStack() as stack:
        bench(server.address, duration="200ms")
        before = threads()
        peers = []
        for _ in range(count // 100):
            peers.append(stack.enter_context(contextlib.closing(wire.Connection(server.address))))
            peers[-1].send(b"".join(wire.frame(wire.HEADERS, wire.END_HEADERS, 1 + 2 * i, open_stream) for i in range(100)))
        most = 0

        def settled():
            nonlocal most
            most = max(most, threads())
            return False

        wire.run_until(peers, settled, 5 if row.long else 2)
        refused = sum(len(peer.statuses) for peer in peers)
        good = bench(server.address, duration="500ms")
        most = max(most, threads())
        row.figure(f"{count:,} reflection streams held open: threads", "32 more at most", f"{before} before, {most} at most; {refused:,} refused meanwhile",
                   most - before <= 32)
        row.figure("calls beside them", "0 failed", f"{failures(good)} of {good['requests']:,}", failures(good) == 0 and good["ok"] > 0)


def r26(row, pb, scale):
    seconds = 60 if scale == 1 else 5
    with Server("--max_connections=200") as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(wire.connect(server.address)) for _ in range(200)]
        stop = threading.Event()

        def flood():
            while not stop.is_set():
                with contextlib.suppress(OSError), wire.connect(server.address) as peer:
                    peer.recv(1)
                time.sleep(0.004)

        threads = [threading.Thread(target=flood, daemon=True) for _ in range(4)]
        with HealthProbes(server) as probes:
            for thread in threads:
                thread.start()
            time.sleep(seconds)
            stop.set()
        for thread in threads:
            thread.join()
        refused = server.metrics().total("nsa_metadata_connections_refused_total")
        row.figure("flood at max_connections", "refused, counted", f"{refused:,.0f} refused beside {len(held)} held", refused > 100)
        probes.into(row)


def silent_streams(row, count):
    """What a stream takes before its first item: all of a connection's at once, on many."""
    opening = b"".join(wire.frame(wire.HEADERS, wire.END_HEADERS, 1 + 2 * i, wire.EXPAND_STREAM) for i in range(100))
    with Server() as server, contextlib.ExitStack() as stack:
        bench(server.address, duration="200ms", warm_up="0s", streams=2)
        open_ones = lambda: server.metrics().total("grpc_server_started_total", grpc_method="ExpandStream")  # noqa: E731
        peers = [stack.enter_context(contextlib.closing(wire.Connection(server.address))) for _ in range(count // 100)]
        eventually(lambda: server.metrics().total("nsa_metadata_connections") >= len(peers), "all are connected")
        before, earlier = server.memory("VmRSS"), open_ones()
        for peer in peers:
            peer.send(opening)
        eventually(lambda: open_ones() == earlier + count, "every stream has reached the service", 20)
        each = (server.memory("VmRSS") - before) / count / 1024
        row.figure(f"{count:,} streams that have asked nothing: memory", "≤ 24 KiB each, as a connection", f"{each:.1f} KiB each", each <= 24)


def r27(row, pb, scale):
    count = max(int(10_000 * scale), 1_000)
    silent_streams(row, count)
    item = pb.ExpandRequest(request_id=7, extend_seq_lens=[4] * 8, seq_lens=[9] * 8, nsa_index_topk=64)
    messages = [
        pb.ExpandStreamRequest(expand=item),
        pb.ExpandStreamRequest(expand=item),  # its id is in flight, or was
        pb.ExpandStreamRequest(cancel_request_id=99),  # nobody's
        pb.ExpandStreamRequest(cancel_request_id=7),
    ]
    body = b"".join(wire.message(m.SerializeToString()) for m in messages)
    with Server() as server:
        def abandon(streams):
            for begin in range(0, streams, 50):
                with contextlib.closing(wire.Connection(server.address)) as connection:
                    for i in range(50):
                        stream = 1 + 2 * i
                        opening = wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.EXPAND_STREAM)
                        connection.send(opening + wire.frame(wire.DATA, 0, stream, body))
                        if begin % 100 == 0:
                            connection.send(wire.rst(stream))
                    connection.receive()
                if begin % 500 == 0:  # or the attacker would only queue up in the server's socket
                    eventually(lambda: server.metrics().total("nsa_metadata_connections") <= 2, "connections are closed")

        abandon(count)
        eventually(lambda: server.metrics().total("nsa_metadata_output_blocks_in_use") == 0, "the blocks are back")
        grown = []  # a leak grows in every round, the allocator's arenas in some
        for _ in range(5):
            before = server.memory("VmRSS")
            abandon(count)
            eventually(lambda: server.metrics().total("nsa_metadata_output_blocks_in_use") == 0, "the blocks are back")
            grown.append((server.memory("VmRSS") - before) / MEBIBYTE)

        def ended():
            metrics = server.metrics()
            started = metrics.total("grpc_server_started_total", grpc_method="ExpandStream")
            return started if started == metrics.total("grpc_server_handled_total", grpc_method="ExpandStream") else None

        started = eventually(ended, "every stream has ended")
        row.figure(f"{count:,} streams opened and abandoned, five times: memory", "flat (≤ 1 MiB the least)",
                   " ".join(f"{g:+.1f}" for g in grown) + f" MiB; all of {started:.0f} that reached the service ended", min(grown) <= 1)
        good = bench(server.address, duration="1s", streams=2, in_flight=64)
        row.figure("streams afterwards", "served", f"{failures(good)} failed of {good['requests']:,}", failures(good) == 0)
        books_balance(row, server)


ROWS = {
    "R1": (r1, "nonsense on connections"),
    "R2": (r2, "HTTP/2 abuse"),
    "R3": (r3, "rapid reset"),
    "R4": (r4, "idle connections"),
    "R6": (r6, "slow readers"),
    "R7": (r7, "large replies for small requests"),
    "R8": (r8, "overload"),
    "R9": (r9, "one caller among others"),
    "R12": (r12, "rolling restarts"),
    "R13": (r13, "kills"),
    "R22": (r22, "stuck HTTP connections"),
    "R25": (r25, "reflection streams"),
    "R26": (r26, "a flood of connections"),
    "R27": (r27, "abandoned streams"),
    "proxy": (proxied, "R2 and R3 behind Envoy"),
}
# Run when they are asked for: they need what `tests/run.sh --full` installs.
OTHERS = {"proxy"}


def generated():
    """The messages, as grpcio-tools generates them from proto/."""
    import grpc_tools
    from grpc_tools import protoc

    out = tempfile.mkdtemp(prefix="nsa-stubs-")
    well_known = next(iter(grpc_tools.__path__)) + "/_proto"
    source = "nsa/metadata/v1/metadata.proto"
    if protoc.main(["protoc", f"-I{REPOSITORY}/proto", f"-I{well_known}", f"--python_out={out}", source]) != 0:
        sys.exit(f"protoc failed on {source}")
    sys.path.insert(0, out)
    from nsa.metadata.v1 import metadata_pb2

    return metadata_pb2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="the counts that the rows ask for")
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], default=[])
    arguments = parser.parse_args()
    pb = generated()
    missed = []
    print("| row | what | asked | measured |\n|---|---|---|---|")
    for name in arguments.rows or [name for name in ROWS if name not in OTHERS]:
        function, what = ROWS[name]
        row = Row(name, what, arguments.long)
        begin = time.monotonic()
        try:
            function(row, pb, 1 if arguments.long else 0.01)
        except (Missed, AssertionError) as why:
            row.figure(what, "", f"{why}", False)
        print(f"{name} took {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        if row.missed:
            missed.append(name)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
