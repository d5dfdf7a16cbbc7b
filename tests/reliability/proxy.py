"""Envoy, with the configuration that deploy/ ships, before a server."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from programs import REPOSITORY

COMPONENT = REPOSITORY / "deploy" / "kubernetes" / "components" / "edge-proxy"
ENVOY = REPOSITORY / "build" / "venv-reliability" / "bin" / "envoy"
START_S = 20
# Of the cluster's, for a test's own name server.
RESOLVER = """\
      typed_dns_resolver_config:
        name: envoy.network.dns_resolver.cares
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig
          resolvers: [{socket_address: {address: 127.0.0.1, port_value: PORT}}]
"""


def replaced(text, old, new):
    assert text.count(old) == 1, f"{COMPONENT} has {old!r} {text.count(old)} times"
    return text.replace(old, new)


class Proxy:
    """On a free port of loopback, from `with` on, before the servers that `host` stands for. certificates: a folder with tls.crt, tls.key and
    ca.crt; without, plain text. resolver_port: of the name server on loopback to ask, in place of the system's."""

    def __init__(self, host, port, health_port, certificates=None, resolver_port=None):
        self._host, self._port, self._health_port = host, port, health_port
        self._certificates, self._resolver_port = certificates, resolver_port

    @classmethod
    def before(cls, server, certificates=None):
        host, port = server.address.rsplit(":", 1)
        return cls(host, port, server.health_address.rsplit(":", 1)[1], certificates)

    def __enter__(self):
        if not ENVOY.exists():
            sys.exit(f"{ENVOY} is missing: tests/run.sh --full installs it")
        self._folder = tempfile.TemporaryDirectory(prefix="nsa-proxy-")
        folder = Path(self._folder.name)
        self._admin, log = folder / "admin", open(folder / "log", "w")
        configuration = self._configuration(folder)
        self.process = subprocess.Popen(
            [ENVOY, "--config-path", configuration, "--use-dynamic-base-id", "--log-level", "warning"],
            stderr=log, stdout=log, env={"PATH": os.environ["PATH"]},
        )
        log.close()
        self.log = lambda: (folder / "log").read_text()
        try:
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self._folder.cleanup()

    def _configuration(self, folder):
        """The shipped files, with the addresses of this machine; what it listens on lies at the start of all."""
        for name in ("certificate.yaml", "validation.yaml"):
            (folder / name).write_text((COMPONENT / name).read_text().replace("/etc/envoy-tls", str(self._certificates)))
        text = (COMPONENT / "envoy.yaml").read_text()
        text = text.replace("socket_address: {address: 127.0.0.1, port_value: 9901}", f"pipe: {{path: {self._admin}}}")
        for port in (8443, 9902):
            text = replaced(text, f"address: 0.0.0.0, port_value: {port}", "address: 127.0.0.1, port_value: 0")
        text = replaced(text, "address: nsa-metadata-server, port_value: 50051", f"address: {self._host}, port_value: {self._port}")
        text = replaced(text, "port_value: 50052", f"port_value: {self._health_port}")
        if self._resolver_port:
            text = replaced(text, "      dns_lookup_family: ALL\n", f"      dns_lookup_family: ALL\n{RESOLVER}".replace("PORT", str(self._resolver_port)))
        if self._certificates:
            text = text.replace("/etc/envoy-tls", str(self._certificates)).replace("/etc/envoy", str(folder))
        else:
            text, cut = re.subn(r"\n +transport_socket:\n.*?(?=\n +filters:)", "", text, count=1, flags=re.DOTALL)
            assert cut == 1, f"{COMPONENT} has {cut} transport sockets"
        path = folder / "envoy.yaml"
        path.write_text(text)
        return path

    def _await_ready(self):
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                if self.get("/ready").strip() == "LIVE" and self.stat("cluster.nsa-metadata-server.membership_healthy") > 0:
                    break
            assert self.process.poll() is None, f"envoy ended\n{self.log()}"
            assert time.monotonic() < end, f"envoy is not ready after {START_S} s\n{self.log()}"
            time.sleep(0.05)
        listeners = {one["name"]: one["local_address"]["socket_address"] for one in json.loads(self.get("/listeners?format=json"))["listener_statuses"]}
        self.address, probed = (f"127.0.0.1:{listeners[name]['port_value']}" for name in ("grpc", "admin"))
        # As a kubelet asks.
        with urllib.request.urlopen(f"http://{probed}/ready", timeout=5) as ready:
            assert ready.status == 200

    def get(self, path):
        """What the admin interface says."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.settimeout(5)
            connection.sock.connect(str(self._admin))
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def stat(self, name):
        """One of Envoy's own counters or gauges; 0 before it has any."""
        found = re.search(rf"^{re.escape(name)}: (\d+)$", self.get(f"/stats?filter=^{re.escape(name)}$"), re.MULTILINE)
        return int(found[1]) if found else 0

    def memory(self, which):
        """VmRSS, or VmHWM, the most since reset_peak_memory; bytes."""
        return int(re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def reset_peak_memory(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
