"""The server's objects in a namespace of a cluster."""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import yaml

from adapted import adapted
from cluster import Failed, eventually, run
from manifests import Manifests, kubectl

NAME = "nsa-metadata-server"
KUBECTL_S = 90


class Deployed:
    """What overlays/cpu with components renders to, applied from `with` on; not yet rolled out. `change` is given this first, to change its objects."""

    def __init__(self, cluster, namespace, *components, change=lambda deployed: None):
        self._cluster = cluster
        self.namespace = namespace
        self.objects = adapted(Manifests.of("overlays/cpu", *components).objects)
        change(self)
        self.kubectl("create", "namespace", namespace)

    def __enter__(self):
        self.apply(self.objects)
        return self

    def __exit__(self, *_):
        # At once: a pod that never was ready would hold up a drain, by its budget.
        self.kubectl("delete", "deployments,poddisruptionbudgets", "--all")
        self.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        self.kubectl("delete", "namespace", self.namespace, "--wait=false")

    # What is asked for

    def one(self, kind, name=NAME):
        found = [thing for thing in self.objects if thing["kind"] == kind and thing["metadata"]["name"].startswith(name)]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} called {name}"
        return found[0]

    @property
    def server(self):
        (container,) = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return container

    def set_flag(self, name, value):
        """As a user's overlay would: as kustomize has it, a ConfigMap's name says what is in it."""
        config = self.one("ConfigMap", self.server["envFrom"][0]["configMapRef"]["name"])
        config["data"][f"NSA_METADATA_{name.upper()}"] = value
        config["metadata"]["name"] += f"-{value}"
        self.server["envFrom"][0]["configMapRef"]["name"] = config["metadata"]["name"]

    def set_memory(self, quantity):
        for kind in ("requests", "limits"):
            self.server["resources"][kind]["memory"] = quantity

    # What is done

    def command(self, *words, program=None):
        """For today's kubectl unless another is given."""
        return [str(part) for part in (program or kubectl(), f"--kubeconfig={self._cluster.kubeconfig}", f"--namespace={self.namespace}", *words)]

    def kubectl(self, *words, program=None, **more):
        return run(*self.command(*words, program=program), timeout_s=KUBECTL_S, **more)

    @contextlib.contextmanager
    def following(self, *words):
        """The output of a kubectl that goes on, which ends with `with` if not before."""
        with subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            # Whoever reads is not kept for ever.
            watchdog = threading.Timer(KUBECTL_S, process.kill)
            watchdog.start()
            try:
                yield process.stdout
            finally:
                watchdog.cancel()
                process.kill()

    def apply(self, objects):
        # 1.20 gives no description of its objects that today's kubectl could check them by.
        self.kubectl("apply", "--validate=false", "--filename=-", input=yaml.safe_dump_all(objects))

    def roll_out(self):
        self.apply(self.objects)
        try:
            self.kubectl("rollout", "status", f"deployment/{NAME}", "--timeout=80s")
        except Failed as error:
            raise Failed(f"{error}\n{self.kubectl('describe', 'pods')}") from error

    def put_certificate(self, authority):
        """A new pair of the authority's, as cert-manager writes it."""
        pair = authority.issue(f"{NAME}.{self.namespace}", common_name="server")
        files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
        data = {name: base64.b64encode(content).decode() for name, content in files.items()}
        self.apply([{"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": f"{NAME}-tls"}, "data": data}])

    # What is there

    def pods(self):
        """Those that are not about to end."""
        return [pod for pod in json.loads(self.kubectl("get", "pods", "--output=json"))["items"] if "deletionTimestamp" not in pod["metadata"]]

    def ready(self):
        """The names of the ready ones."""
        return [pod["metadata"]["name"] for pod in self.pods() if any(status["ready"] for status in pod["status"].get("containerStatuses", []))]

    def two_ready(self):
        """Their names."""
        return self.become("two ready servers", lambda: len(names := self.ready()) == 2 and names)

    def pod(self, name):
        return json.loads(self.kubectl("get", "pod", name, "--output=json"))

    def container(self, name):
        """Its server's status."""
        (status,) = self.pod(name)["status"]["containerStatuses"]
        return status

    def process(self, name):
        """The number of the pod's server on this machine."""
        uid = self.pod(name)["metadata"]["uid"]
        servers = [int(pid) for pid in run("pgrep", "--full", f"^/usr/local/bin/{NAME}").split()]
        found = [pid for pid in servers if uid in self._cgroups(pid)]
        assert len(found) == 1, f"pod {uid} has the servers {found} of {servers}"
        return found[0]

    @staticmethod
    def _cgroups(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/cgroup").read_text()
        return ""

    def kill(self, name):
        os.kill(self.process(name), signal.SIGKILL)

    def metric(self, name, series):
        text = self.kubectl("get", f"--raw=/api/v1/namespaces/{self.namespace}/pods/{name}:9464/proxy/metrics")
        found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        assert found, f"no {series} in\n{text}"
        return float(found[1])

    def become(self, what, condition, timeout_s=90):
        return eventually(f"{what} in {self.namespace}", condition, timeout_s)
