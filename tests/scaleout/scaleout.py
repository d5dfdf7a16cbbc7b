"""Rows "scale-out" of tests/RELIABILITY.md: three servers as overlays/production runs them, on addresses of loopback that
a real name server knows, and the client as it is shipped; straight, or by Envoy with the edge-proxy component's file."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("e2e", "reliability")]

from programs import REPOSITORY, Server, eventually  # noqa: E402
from proxy import Proxy  # noqa: E402
from rows import Row, bench, goodput, result_of, start_bench  # noqa: E402

KUBECTL = REPOSITORY / "build" / "venv-deploy" / "bin" / "kubectl"
HOST = "nsa-metadata-server"
IN_FLIGHT = 64
MAX_ATTEMPTS = 4
# More than the 30 s that gRPC leaves between two questions to a name server.
CONNECTION_AGE_S = 32


def free_port(*addresses, kind=socket.SOCK_STREAM):
    """A port that is free on all of them: a name server's answers have none, so that replicas share one."""
    while True:
        with contextlib.ExitStack() as held:
            port = 0
            with contextlib.suppress(OSError):
                for address in addresses:
                    one = held.enter_context(socket.socket(socket.AF_INET, kind))
                    one.bind((address, port))
                    port = one.getsockname()[1]
                return port


def deployed():
    """The flags of the production overlay's pods, but for certificates and logs that only a machine reads; and how long a pod is out of DNS
    before its SIGTERM."""
    rendered = subprocess.run([KUBECTL, "kustomize", REPOSITORY / "deploy/kubernetes/overlays/production"], check=True, capture_output=True)
    objects = list(yaml.safe_load_all(rendered.stdout))
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    name = container["envFrom"][0]["configMapRef"]["name"]
    (flags,) = (one["data"] for one in objects if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name)
    flags = {flag: value for flag, value in flags.items() if not any(word in flag for word in ("TLS", "POLICY", "LOG"))}
    flags["NSA_METADATA_COMPLETION_QUEUES"] = container["resources"]["limits"]["cpu"]
    return flags, container["lifecycle"]["preStop"]["sleep"]["seconds"]


class NameServer:
    """dnsmasq, which knows HOST by the addresses that `set` was last given."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="nsa-scaleout-")
        self._hosts = Path(self._folder.name) / "hosts"
        self._hosts.touch()
        self.port = free_port("127.0.0.1", kind=socket.SOCK_DGRAM)
        options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1"]
        where = [f"--port={self.port}", f"--addn-hosts={self._hosts}", "--pid-file=", f"--user={os.environ.get('USER', 'root')}"]
        self._process = subprocess.Popen(["dnsmasq", *options, *where], stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def set(self, addresses):
        self._hosts.write_text("".join(f"{address} {HOST}\n" for address in addresses))
        assert self._process.poll() is None, "dnsmasq ended"
        self._process.send_signal(signal.SIGHUP)


class Replicas:
    """Three of them, 1 to 3, as many running and in DNS as was asked for."""

    def __init__(self, names, flags, pre_stop_s):
        self._names, self._pre_stop_s = names, pre_stop_s
        self._flags = {**flags, "NSA_METADATA_MAX_CONNECTION_AGE": f"{CONNECTION_AGE_S}s"}
        everywhere = [f"127.0.0.{number}" for number in (1, 2, 3)]
        self.port, self.health_port = free_port(*everywhere), free_port(*everywhere)
        self._running, self._known = {}, set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self._running.values():
            server.kill()

    def _tell(self):
        self._names.set(f"127.0.0.{number}" for number in sorted(self._known))

    def start(self, *numbers):
        for number in numbers:
            health = f"--health_listen=127.0.0.{number}:{self.health_port}"
            self._running[number] = Server(health, listen=f"127.0.0.{number}:{self.port}", env=self._flags).__enter__()
            self._known.add(number)
        self._tell()

    def restart(self, number):
        """As Kubernetes does it: out of DNS, preStop, SIGTERM, the end, a new one, ready, in DNS."""
        self._known.remove(number)
        self._tell()
        time.sleep(self._pre_stop_s)
        self._running.pop(number).stop()
        self.start(number)

    def kill(self, number):
        """-9, and Kubernetes takes its time to notice."""
        self._running.pop(number).kill()

    def forget(self, number):
        self._known.remove(number)
        self._tell()

    def stop(self, number):
        self.forget(number)
        self._running.pop(number).stop()

    def handled(self):
        """Number of each running one to calls it has answered."""
        return {
            number: server.metrics().total("grpc_server_handled_total", grpc_method="Expand", grpc_code="OK")
            for number, server in self._running.items()
        }


def spread_of(parts):
    """By how much the most loaded is over, or the least under, an even share; %."""
    return 100 * max(abs(part * len(parts) - 1) for part in parts.values())


class ByDns:
    name = "client, round robin over DNS"

    def __init__(self, names, replicas):
        self.target = f"dns://127.0.0.1:{names.port}/{HOST}:{replicas.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def await_known(self, count):
        pass  # each load makes its own channel, and asks


class ByEnvoy:
    name = "Envoy, least requests"

    def __init__(self, names, replicas):
        self._proxy = Proxy(HOST, replicas.port, replicas.health_port, resolver_port=names.port)

    def __enter__(self):
        self._proxy.__enter__()
        self.target = self._proxy.address
        return self

    def __exit__(self, *_):
        self._proxy.__exit__()

    def await_known(self, count):
        healthy = "cluster.nsa-metadata-server.membership_healthy"
        eventually(lambda: self._proxy.stat(healthy) == count, f"Envoy knows {count} healthy servers", 30)


def during(way, rate, seconds, what):
    """The result of a load of `rate` calls a second while `what()` happens, which has to be over before it ends."""
    flags = {"rate": f"{rate:.0f}", "in_flight": IN_FLIGHT, "max_attempts": MAX_ATTEMPTS, "timeout": "10s"}
    load = start_bench(way.target, duration=f"{seconds:.0f}s", warm_up="0s", **flags)
    try:
        time.sleep(0.5)  # it has begun
        what()
        assert load.poll() is None, f"the load ended too early, after {seconds} s"
        return result_of(load)
    finally:
        load.kill()
        load.wait()


def nothing_lost(row, what, result):
    lost = result["requests"] - result["ok"]
    row.figure(what, "0 lost", f"{lost} of {result['requests']:,} calls; the slowest {result['latency_us']['max'] / 1e3:.0f} ms", lost == 0)


def shares(replicas):
    """Each one's part of the calls of the next seconds."""
    time.sleep(1)  # connections are made
    before = replicas.handled()
    time.sleep(4)
    counts = {number: count - before[number] for number, count in replicas.handled().items()}
    return {number: count / sum(counts.values()) for number, count in counts.items()}


def balanced(row, way, replicas, rate):
    parts = {}
    during(way, rate, 8, lambda: parts.update(shares(replicas)))
    row.figure(f"{way.name}: {rate:,.0f} calls/s over {len(parts)}", "each within 10 % of its share",
               ", ".join(f"{part:.1%}" for part in parts.values()), spread_of(parts) <= 10)


def restarted(row, way, replicas, rate, calls):
    # What each takes at most: preStop, the drain, a start, being found again.
    seconds = max(calls / rate, 3 * 12)

    def all_in_turn():
        for number in (1, 2, 3):
            replicas.restart(number)
            way.await_known(3)

    nothing_lost(row, f"{way.name}: a rolling restart of all three", during(way, rate, seconds, all_in_turn))


def killed(row, way, replicas, rate):
    def kill():
        replicas.kill(3)
        time.sleep(2)  # as a kubelet may take to notice
        replicas.forget(3)

    nothing_lost(row, f"{way.name}: kill -9 of one", during(way, rate, 5, kill))


def added(row, way, replicas, rate):
    """Replica 3 comes back; whoever is connected has to find it."""

    def add():
        replicas.start(3)
        begin = time.monotonic()
        way.await_known(3)
        time.sleep(max(0, begin + CONNECTION_AGE_S - time.monotonic()))
        parts = shares(replicas)
        row.figure(f"{way.name}: one added, as soon as its callers' connections have reached their age, {CONNECTION_AGE_S} s", "within 10 % of its share", f"{parts[3]:.1%}", spread_of(parts) <= 10)

    nothing_lost(row, f"{way.name}: one added", during(way, rate, CONNECTION_AGE_S + 20, add))


def scale_out(row, kind, calls):
    flags, pre_stop_s = deployed()
    with NameServer() as names, Replicas(names, flags, pre_stop_s) as replicas:
        replicas.start(1, 2)
        with kind(names, replicas) as way:
            load = {"in_flight": IN_FLIGHT, "max_attempts": MAX_ATTEMPTS}
            way.await_known(2)
            of_two = goodput(bench(way.target, duration="3s", **load))
            replicas.start(3)
            way.await_known(3)
            of_three = goodput(bench(way.target, duration="3s", **load))
            replicas.stop(2)
            replicas.stop(3)
            way.await_known(1)
            of_one = goodput(bench(way.target, duration="3s", **load))
            replicas.start(2, 3)
            way.await_known(3)
            cores = os.cpu_count()
            row.figure(f"{way.name}: three against one, {IN_FLIGHT} in flight, all and the load on {cores} cores", "",
                       f"{of_three / of_one:.2f} ({of_one:,.0f}, {of_two:,.0f}, {of_three:,.0f} calls/s of one, two, three)", True)
            rate = of_two / 2
            balanced(row, way, replicas, rate)
            restarted(row, way, replicas, rate, calls)
            killed(row, way, replicas, rate)
            added(row, way, replicas, rate)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="1,000,000 calls during the rolling restart")
    parser.add_argument("ways", nargs="*", choices=("dns", "envoy", []), default=[])
    arguments = parser.parse_args()
    row = Row("scale-out", "three servers", arguments.long)
    print("| row | what | asked | measured |\n|---|---|---|---|")
    for way in arguments.ways or ["dns"]:
        scale_out(row, {"dns": ByDns, "envoy": ByEnvoy}[way], 1_000_000 if arguments.long else 0)
    if row.missed:
        sys.exit("missed: scale-out")


if __name__ == "__main__":
    main()
