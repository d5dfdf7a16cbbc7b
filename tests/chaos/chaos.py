"""Row R23 of tests/RELIABILITY.md: packets that are lost, a network that swallows everything, resets, long ways.

Every call has to end by its deadline, whatever the network does; both ends have to find out that the other is gone.
"""

import argparse
import contextlib
import json
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("e2e", "reliability")]

import wire  # noqa: E402
from programs import CLIENT, Server, eventually  # noqa: E402
from rows import Missed, Row, result_of, start_bench  # noqa: E402

HERE, THERE = "192.0.2.1", "192.0.2.2"
DEADLINE_S = 2
# How `replay` ends that found nobody, at once or by its deadline.
NOT_THERE = (3, 5)
# gRPC's timers and this machine's.
SLACK_S = 0.25
# The server's, shorter than usual so that the short form sees them.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 2, 2


def command(*words):
    subprocess.run([str(word) for word in words], check=True)


class Network:
    """Two namespaces, this process's own and the server's, with a cable between them."""

    def __enter__(self):
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"], stdout=subprocess.PIPE)
        self._holder.stdout.readline()
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self):
        self.enter = ["nsenter", f"--target={self._holder.pid}", "--net"]
        command("ip", "link", "set", "lo", "up")
        command("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", self._holder.pid)
        command("ip", "address", "add", f"{HERE}/30", "dev", "here")
        command("ip", "link", "set", "here", "up")
        command(*self.enter, "ip", "link", "set", "lo", "up")
        command(*self.enter, "ip", "address", "add", f"{THERE}/30", "dev", "there")
        command(*self.enter, "ip", "link", "set", "there", "up")

    def __exit__(self, *_):
        self._holder.kill()
        self._holder.wait()

    @contextlib.contextmanager
    def rules(self, server, *what, both_ways=True):
        """iptables' `what` for the packets to the server's gRPC port, and for those back from it, while it lasts."""
        port = server.address.rsplit(":", 1)[1]
        rules = [(self.enter, ["INPUT", "-p", "tcp", "--dport", port, *what])]
        if both_ways:
            rules.append(([], ["INPUT", "-p", "tcp", "--sport", port, *what]))
        for where, rule in rules:
            command(*where, "iptables", "--append", *rule)
        try:
            yield
        finally:
            for where, rule in rules:
                command(*where, "iptables", "--delete", *rule)


def serving(network):
    flags = ["--allow_plaintext", f"--health_listen={THERE}:0", f"--metrics_listen={THERE}:0"]
    flags += [f"--keepalive_time={KEEPALIVE_S}s", f"--keepalive_timeout={KEEPALIVE_TIMEOUT_S}s"]
    server = Server(*flags, listen=f"{THERE}:0")
    server.command = [*network.enter, *server.command]
    return server


def connections(server):
    return server.metrics().total("nsa_metadata_connections")


class Load:
    """64 calls, or items of a stream, in flight by the client library, in one run of `replay` after another until it is stopped."""

    def __init__(self, target, *flags, steps=20_000):
        self._trace = tempfile.NamedTemporaryFile("w", suffix=".csv")
        self._trace.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for second in range(2_000):
            self._trace.write(f"2026-01-01 00:{second // 60:02}:{second % 60:02}.0000000,{500 + second},200\n")
        self._trace.flush()
        self._command = [CLIENT, "replay", f"--target={target}", f"--trace={self._trace.name}", "--json", "--verify", f"--max_steps={steps}",
                         f"--timeout={DEADLINE_S}s", *flags]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.requests = self.ok = self.wrong = self.stuck = self.crashed = 0
        self.longest_s = 0.0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._trace.close()

    def _run(self):
        while not self._stop.is_set():
            try:
                done = subprocess.run(self._command, capture_output=True, text=True, timeout=120)
            except subprocess.TimeoutExpired:
                self.stuck += 1
                continue
            if done.returncode in NOT_THERE and "requests" not in done.stdout:
                continue  # it found nobody, and said so
            if done.returncode < 0 or "requests" not in done.stdout:
                self.crashed += 1
                continue
            result = json.loads(done.stdout)
            self.requests += result["requests"]
            self.ok += result["ok"]
            self.wrong += result["wrong"]
            self.longest_s = max(self.longest_s, (result["latency_us"]["max"] or 0) / 1e6)

    def into(self, row, what):
        row.figure(f"{what}, {DEADLINE_S} s each", "ended by then",
                   f"{self.requests:,}, {self.requests - self.ok:,} failed, {self.wrong} wrong, the longest {self.longest_s:.2f} s, {self.stuck} stuck, {self.crashed} crashed",
                   self.longest_s <= DEADLINE_S + SLACK_S and self.stuck == self.crashed == self.wrong == 0 and self.ok > 0)


@contextlib.contextmanager
def loads(row, what, target, **more):
    """Calls and a stream's items while it lasts; their figures afterwards."""
    with Load(target, **more) as calls, Load(target, "--stream", **more) as items:
        yield calls, items
    calls.into(row, f"{what}: calls")
    items.into(row, f"{what}: items of a stream")


def all_served(row, what, calls, items):
    for kind, load in (("calls", calls), ("items", items)):
        row.figure(f"{what}: {kind}", "all served", f"{load.ok:,} of {load.requests:,}", load.ok == load.requests)


def lossy(row, network, seconds):
    what = f"1 % of the packets lost, {seconds} s"
    with serving(network) as server:
        with loads(row, what, server.address) as (calls, items):
            with network.rules(server, "-m", "statistic", "--mode", "random", "--probability", "0.01", "-j", "DROP"):
                time.sleep(seconds)
        all_served(row, what, calls, items)


def black_hole(row, network, seconds):
    with serving(network) as server, wire.connect(server.address) as idle:
        idle.sendall(wire.PREFACE + wire.settings())
        with loads(row, f"a black hole for {seconds} s", server.address):
            held = eventually(lambda: connections(server) >= 3 and connections(server), "two callers and an idle connection")
            with network.rules(server, "-j", "DROP"):
                begin = time.monotonic()
                # A process that starts meanwhile gets no further than its SYN.
                eventually(lambda: connections(server) == 0, "the server has found all of them dead", seconds)
                found_s = time.monotonic() - begin
                time.sleep(max(0, seconds - found_s))
            begin = time.monotonic()
            again = result_of(start_bench(server.address, duration="200ms", warm_up="0s", timeout="20s", max_attempts=5))
            again_s = time.monotonic() - begin - 0.2
        row.figure("a black hole: dead peers found by the server", f"in {KEEPALIVE_S + KEEPALIVE_TIMEOUT_S} s and a look",
                   f"{held:.0f} of {held:.0f} in {found_s:.1f} s", found_s <= KEEPALIVE_S + KEEPALIVE_TIMEOUT_S + 1.5, timed=True)
        row.figure("a black hole: a new caller after it", "served", f"{again['ok']:,} calls, the first after {max(again_s, 0):.1f} s", again["ok"] > 0)


def resets(row, network, seconds):
    what = f"each 200th packet answered by a reset, {seconds} s"
    with serving(network) as server:
        rule = ["-m", "statistic", "--mode", "random", "--probability", "0.005", "-j", "REJECT", "--reject-with", "tcp-reset"]
        with loads(row, what, server.address) as (calls, items):
            with network.rules(server, *rule, both_ways=False):
                time.sleep(seconds)
        # Those in flight may find each of their 4 attempts reset; a machine with other work has fewer calls beside them.
        for kind, load in (("calls", calls), ("items", items)):
            row.figure(f"{what}: {kind}", "0.99 served", f"{load.ok:,} of {load.requests:,}", load.ok >= 0.99 * load.requests, timed=True)
        eventually(lambda: connections(server) == 0, "nothing is left of the connections that were reset", 10)


class Relay:
    """Passes bytes on, each way `delay_s` late."""

    def __init__(self, target, delay_s):
        host, port = target.rsplit(":", 1)
        self._target, self._delay_s = (host, int(port)), delay_s

    def __enter__(self):
        self._listener = socket.create_server((HERE, 0))
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for source, sink in ((near, far), (far, near)):
                    late = queue.SimpleQueue()
                    threading.Thread(target=self._take, args=(source, late), daemon=True).start()
                    threading.Thread(target=self._give, args=(late, sink), daemon=True).start()

    def _take(self, source, late):
        data = b"begin"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            late.put((time.monotonic() + self._delay_s, data))

    @staticmethod
    def _give(late, sink):
        with contextlib.suppress(OSError):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                when, data = late.get()
                time.sleep(max(0, when - time.monotonic()))
                if not data:
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(data)


def far_away(row, network, seconds):
    delay_s = 0.05
    what = f"50 ms each way, {seconds} s"
    with serving(network) as server, Relay(server.address, delay_s) as relay:
        with loads(row, what, relay.address, steps=1_000) as (calls, items):
            time.sleep(seconds)
        all_served(row, what, calls, items)
        large = result_of(start_bench(relay.address, in_flight=2, channels=2, duration="2s", warm_up="0s", timeout="10s", reply_bytes=1 << 20))
        row.figure("50 ms each way: replies of 1 MiB", "all served, in 100 ms and more",
                   f"{large['ok']} of {large['requests']}, p50 {large['latency_us']['p50'] / 1e3:.0f} ms",
                   large["ok"] == large["requests"] > 0 and large["latency_us"]["min"] >= 2e6 * delay_s)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="30 s of each")
    arguments = parser.parse_args()
    row = Row("R23", "bad networks", arguments.long)
    print("| row | what | asked | measured |\n|---|---|---|---|")
    with Network() as network:
        for case, seconds in ((lossy, 5), (black_hole, 8), (resets, 5), (far_away, 5)):
            try:
                case(row, network, 30 if arguments.long else seconds)
            except (Missed, AssertionError) as why:
                row.figure(case.__name__, "", f"{why}", False)
    if row.missed:
        sys.exit("missed: R23")


if __name__ == "__main__":
    main()
