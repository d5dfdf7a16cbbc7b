"""A small Kubernetes on this machine: a control plane, and two nodes with a kubelet and a containerd each.

run.sh makes the namespaces that it is in (network, mounts, processes), so that all of it is gone with them.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "cluster"
PROGRAMS = BUILD / "bin"
NODES = ("node-a", "node-b")
READY_S = 120
IMAGES = BUILD / "images"
CGROUPS = Path("/sys/fs/cgroup")
# Where a node's programs write whatever their options say.
WRITTEN = ("/run", "/var/lib", "/var/log")
STOP_S = 20


class Failed(AssertionError):
    """A program that had to succeed did not."""


def run(*command, timeout_s=60, **more):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, **more)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def eventually(what, true, timeout_s=READY_S):
    """The first value of `true()` that is one. It may raise Failed on the way there."""
    until = time.monotonic() + timeout_s
    while True:
        last = None
        try:
            last = true()
            if last:
                return last
        except Failed as error:
            last = error
        if time.monotonic() > until:
            raise Failed(f"{what}: not within {timeout_s} s; at last {last}")
        time.sleep(0.2)


class Node:
    """A kubelet and a containerd, with a folder, an address and mounts of their own."""

    def __init__(self, cluster, index):
        self.name = NODES[index]
        self.address = f"10.77.0.{index + 1}"
        self.folder = cluster.folder / self.name
        self.socket = self.folder / "containerd.sock"
        self._index = index
        self._cluster = cluster

    def start(self):
        self.folder.mkdir()
        self._start_containerd()
        for archive in sorted(IMAGES.glob("*.tar")):
            self.ctr("images", "import", archive)
        self._start_kubelet()

    def ctr(self, *words):
        return run("ctr", "--address", self.socket, "--namespace", "k8s.io", *words, timeout_s=120).stdout

    def _start_containerd(self):
        networks = self.folder / "cni"
        networks.mkdir()
        bridge = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": f"pods{self._index}",
                    "isDefaultGateway": True,
                    "ipam": {"type": "host-local", "ranges": [[{"subnet": f"10.78.{self._index}.0/24"}]], "dataDir": str(self.folder / "addresses")},
                },
            ],
        }
        (networks / "pods.conflist").write_text(json.dumps(bridge))
        (self.folder / "containerd.toml").write_text(f"""
version = 2
root = "{self.folder}/containerd"
state = "{self.folder}/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true  # it may not be allowed to lower one
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
""")
        # Mounts of its own: a kubelet takes what it doesn't know in these folders for left behind.
        mounts = "; ".join(f"mount -t tmpfs tmpfs {path}" for path in WRITTEN)
        containerd = ("containerd", "--config", self.folder / "containerd.toml")
        self._mounts = self._cluster.start(f"{self.name}-containerd", "unshare", "--mount", "sh", "-ec", f'{mounts}; exec "$@"', "sh", *containerd)
        eventually(f"{self.name}'s containerd", lambda: self.ctr("images", "list") is not None)

    def cgroups(self):
        """This node's, one in each hierarchy."""
        return [hierarchy / f"nsa-metadata-{self.name}" for hierarchy in CGROUPS.iterdir() if (hierarchy / "cgroup.procs").exists()]

    def remove_cgroups(self):
        for top in self.cgroups():
            for group, _, _ in os.walk(top, topdown=False):
                os.rmdir(group)

    def processes(self):
        """Those of its containers."""
        return {int(pid) for top in self.cgroups() for group, _, _ in os.walk(top) for pid in Path(group, "cgroup.procs").read_text().split()}

    def _start_kubelet(self):
        self.remove_cgroups()  # of a run that was killed
        for group in self.cgroups():
            group.mkdir()
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "port": 10250,
            "healthzBindAddress": self.address,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/nsa-metadata-{self.name}",
            "failSwapOn": False,
            "featureGates": {"EphemeralContainers": True},
            "evictionHard": {"memory.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            "nodeStatusUpdateFrequency": "2s",
            # Secrets and ConfigMaps that changed are in the pods so soon.
            "syncFrequency": "2s",
            "volumePluginDir": str(self.folder / "plugins"),
        }
        (self.folder / "kubelet.json").write_text(json.dumps(config))
        self._cluster.start(
            f"{self.name}-kubelet",
            *("nsenter", f"--target={self._mounts.pid}", "--mount"),
            PROGRAMS / "kubelet",
            f"--config={self.folder}/kubelet.json",
            f"--kubeconfig={self._cluster.kubeconfig}",
            f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/certificates",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{self.socket}",
            f"--image-service-endpoint=unix://{self.socket}",
        )


class Cluster:
    """A running cluster, from `with` on."""

    def __init__(self, folder):
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.nodes = [Node(self, index) for index in range(len(NODES))]
        self._processes = {}

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("w")
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=environment)
        self._processes[name] = process
        return process

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "nodes", "type", "bridge")
        run("ip", "link", "set", "nodes", "up")
        for node in self.nodes:
            run("ip", "address", "add", f"{node.address}/24", "dev", "nodes")
        # From one node's pods to the other's.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._start_control_plane()
        for node in self.nodes:
            node.start()
        eventually("nodes that are ready", lambda: len(self.ready_nodes()) == len(NODES))

    def __exit__(self, *_):
        # The kubelets first: they would start their containers again.
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        for node in self.nodes:
            eventually(f"the end of {node.name}'s containers", lambda node=node: not self._kill(node), STOP_S)
            node.remove_cgroups()

    @staticmethod
    def _kill(node):
        """What it killed."""
        left = node.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def _start_control_plane(self):
        folder = self.folder
        address = self.nodes[0].address
        token = secrets.token_hex(16)
        (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        run("openssl", "genrsa", "-out", folder / "accounts.key", "2048")
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": f"https://{address}:6443", "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
            "current-context": "here",
        }
        self.kubeconfig.write_text(json.dumps(kubeconfig))
        self.start("etcd", "etcd", f"--data-dir={folder}/etcd", "--unsafe-no-fsync", "--logger=zap")
        self.start(
            "kube-apiserver",
            PROGRAMS / "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={address}",
            f"--cert-dir={folder}/apiserver",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://here",
            f"--service-account-signing-key-file={folder}/accounts.key",
            f"--service-account-key-file={folder}/accounts.key",
            "--service-cluster-ip-range=10.79.0.0/24",
            "--kubelet-preferred-address-types=InternalIP",
            "--feature-gates=EphemeralContainers=true",
        )
        eventually("the API server", lambda: self.kubectl("get", "--raw=/readyz") == "ok")
        self.start(
            "kube-controller-manager",
            PROGRAMS / "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={folder}/accounts.key",
            f"--cert-dir={folder}/controller-manager",
            "--leader-elect=false",
        )
        self.start("kube-scheduler", PROGRAMS / "kube-scheduler", f"--kubeconfig={self.kubeconfig}", f"--cert-dir={folder}/scheduler", "--leader-elect=false")

    def kubectl(self, *words, timeout_s=90, program=PROGRAMS / "kubectl", **more):
        return run(program, f"--kubeconfig={self.kubeconfig}", *words, timeout_s=timeout_s, **more).stdout

    def get(self, *words):
        return json.loads(self.kubectl("get", "-o", "json", *words))

    def ready_nodes(self):
        return [
            node["metadata"]["name"]
            for node in self.get("nodes")["items"]
            if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"]["conditions"])
        ]
