"""Envoy, with the configuration that deploy/ ships, before a server."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from programs import REPOSITORY

COMPONENT = REPOSITORY / "deploy" / "kubernetes" / "components" / "edge-proxy"
ENVOY = REPOSITORY / "build" / "venv-reliability" / "bin" / "envoy"
START_S = 20


def replaced(text, old, new):
    assert text.count(old) == 1, f"{COMPONENT} has {old!r} {text.count(old)} times"
    return text.replace(old, new)


class Proxy:
    """On a free port of loopback, from `with` on. certificates: a folder with tls.crt, tls.key and ca.crt; without, plain text."""

    def __init__(self, server, certificates=None):
        self._server, self._certificates = server, certificates

    def __enter__(self):
        if not ENVOY.exists():
            sys.exit(f"{ENVOY} is missing: tests/run.sh --full installs it")
        self._folder = tempfile.TemporaryDirectory(prefix="nsa-proxy-")
        folder = Path(self._folder.name)
        admin, log = folder / "admin", open(folder / "log", "w")
        configuration = self._configuration(folder)
        self.process = subprocess.Popen(
            [ENVOY, "--config-path", configuration, "--admin-address-path", admin, "--use-dynamic-base-id", "--log-level", "warning"],
            stderr=log, stdout=log, env={"PATH": os.environ["PATH"]},
        )
        log.close()
        self.log = lambda: (folder / "log").read_text()
        try:
            self._await_ready(admin)
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
            (folder / name).write_text((COMPONENT / name).read_text().replace("/etc/envoy/tls", str(self._certificates)))
        text = (COMPONENT / "envoy.yaml").read_text()
        text = replaced(text, "address: 127.0.0.1, port_value: 9901", "address: 127.0.0.1, port_value: 0")
        text = replaced(text, "address: 0.0.0.0, port_value: 8443", "address: 127.0.0.1, port_value: 0")
        _, port = self._server.address.rsplit(":", 1)
        _, health_port = self._server.health_address.rsplit(":", 1)
        text = replaced(text, "address: nsa-metadata-server, port_value: 50051", f"address: 127.0.0.1, port_value: {port}")
        text = replaced(text, "port_value: 50052", f"port_value: {health_port}")
        if self._certificates:
            text = text.replace("/etc/envoy/tls", str(self._certificates)).replace("/etc/envoy", str(folder))
        else:
            text, cut = re.subn(r"\n +transport_socket:\n.*?(?=\n +filters:)", "", text, flags=re.DOTALL)
            assert cut == 1, f"{COMPONENT} has {cut} transport sockets"
        path = folder / "envoy.yaml"
        path.write_text(text)
        return path

    def _await_ready(self, admin):
        end = time.monotonic() + START_S
        while True:
            try:
                self._admin = admin.read_text()
                if self.get("ready").strip() == "LIVE" and self.stat("cluster.nsa-metadata-server.membership_healthy") == 1:
                    break
            except (OSError, urllib.error.URLError):
                pass
            assert self.process.poll() is None, f"envoy ended\n{self.log()}"
            assert time.monotonic() < end, f"envoy is not ready after {START_S} s\n{self.log()}"
            time.sleep(0.05)
        where = json.loads(self.get("listeners?format=json"))["listener_statuses"][0]["local_address"]["socket_address"]
        self.address = f"{where['address']}:{where['port_value']}"

    def get(self, path):
        with urllib.request.urlopen(f"http://{self._admin}/{path}", timeout=5) as reply:
            return reply.read().decode()

    def stat(self, name):
        """One of Envoy's own counters or gauges; 0 before it has any."""
        found = re.search(rf"^{re.escape(name)}: (\d+)$", self.get(f"stats?filter=^{re.escape(name)}$"), re.MULTILINE)
        return int(found[1]) if found else 0

    def memory(self, which):
        """VmRSS, or VmHWM, the most since reset_peak_memory; bytes."""
        return int(re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def reset_peak_memory(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
