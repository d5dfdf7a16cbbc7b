"""A small Kubernetes on this machine: a control plane, and two nodes with a kubelet and a containerd each.

run.sh makes the namespaces that it is in (network, mounts, processes), so that it ends with them.
"""

import json
import secrets
import shutil
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "cluster"
PROGRAMS = BUILD / "programs"
KUBECTL = PROGRAMS / "usr" / "bin" / "kubectl"
IMAGES = BUILD / "images"
NODES = ("node-a", "node-b")
CGROUPS = Path("/sys/fs/cgroup")
# In a node's own /run; of a name that a containerd of the machine's doesn't have.
CONTAINERD = "/run/nsa-metadata-containerd.sock"
READY_S = 120
STOP_S = 20
LOG_LINES = 20

# Where a node's programs write whatever their options say.
WRITTEN = ("/run", "/var/lib", "/var/log")
# What a kubelet would set, for all of the machine and for good: it finds that it is so.
KERNEL = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


class Failed(AssertionError):
    """A program that had to succeed did not."""


def run(*command, timeout_s=60, **more):
    """The output of a program that has to succeed."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, **more)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def eventually(what, condition, timeout_s=READY_S):
    """The first value of `condition()` that is one. It may raise Failed on the way there."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            last = condition()
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
        self._index = index
        self._cluster = cluster

    def start(self):
        self.folder.mkdir()
        self._start_containerd()
        for archive in sorted(IMAGES.glob("*.tar")):
            self._ctr("images", "import", archive)
        self._start_kubelet()

    def _in_mounts(self, *command):
        return ("nsenter", f"--target={self._containerd.pid}", "--mount", *command)

    def _ctr(self, *words):
        return run(*self._in_mounts("ctr", "--address", CONTAINERD, "--namespace", "k8s.io"), *words, timeout_s=120)

    def _mounts(self):
        """Shell commands for a node's own mounts. A kubelet removes what it doesn't know in these folders."""
        commands = [f"mount -t tmpfs tmpfs {path}" for path in WRITTEN]
        for name, value in KERNEL.items():
            file = self.folder / name.replace("/", "-")
            file.write_text(f"{value}\n")
            commands.append(f"mount --bind '{file}' /proc/sys/{name}")
        return "; ".join(commands)

    def _start_containerd(self):
        networks = self.folder / "cni"
        networks.mkdir()
        addresses = {"type": "host-local", "ranges": [[{"subnet": f"10.78.{self._index}.0/24"}]], "dataDir": str(self.folder / "addresses")}
        bridge = {"type": "bridge", "bridge": f"pods{self._index}", "isDefaultGateway": True, "ipam": addresses}
        (networks / "pods.conflist").write_text(json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}))
        (self.folder / "containerd.toml").write_text(f"""
version = 2
root = "{self.folder}/containerd"
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true  # it may not be allowed to lower one
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PROGRAMS}/usr/lib/cni"
    conf_dir = "{networks}"
""")
        containerd = ("containerd", "--config", self.folder / "containerd.toml")
        self._containerd = self._cluster.start(
            f"{self.name}-containerd", "unshare", "--mount", "sh", "-ec", f'{self._mounts()}; exec "$@"', "sh", *containerd
        )
        self._cluster.started(f"{self.name}'s containerd", lambda: self._ctr("version"))

    def _start_kubelet(self):
        # v1 has a hierarchy for each controller, or for some together, which have links to it then.
        for hierarchy in CGROUPS.iterdir():
            if (hierarchy / "cgroup.procs").exists() and not hierarchy.is_symlink():
                (hierarchy / f"nsa-metadata-{self.name}").mkdir(exist_ok=True)
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
            "protectKernelDefaults": True,
            "failSwapOn": False,
            "featureGates": {"EphemeralContainers": True},
            # Whatever else is on this machine's disk.
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
            *self._in_mounts("kubelet"),
            f"--config={self.folder}/kubelet.json",
            f"--kubeconfig={self._cluster.kubeconfig}",
            f"--cert-dir={self.folder}/certificates",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            # Of 1.20's spreading only nodes partake that have all of the labels it is by.
            f"--node-labels=topology.kubernetes.io/zone=zone-{self._index}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{CONTAINERD}",
            f"--image-service-endpoint=unix://{CONTAINERD}",
        )


class Cluster:
    """A running cluster, from `with` on."""

    def __init__(self, folder):
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.nodes = [Node(self, index) for index in range(len(NODES))]
        self._processes = {}

    def start(self, name, *command):
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen([str(part) for part in command], stdout=file, stderr=file)
        self._processes[name] = process
        return process

    def started(self, what, condition):
        """Waits for `condition`, as long as everything that was started goes on."""

        def goes_on():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    end = (self.folder / f"{name}.log").read_text().splitlines()[-LOG_LINES:]
                    raise RuntimeError(f"waiting for {what}: {name} ended with {process.returncode}\n" + "\n".join(end))
            return condition()

        try:
            eventually(what, goes_on)
        except Failed as error:
            raise Failed(f"{error}\ntheir logs: {self.folder}/*.log") from error

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        if self.folder.exists():
            shutil.rmtree(self.folder)
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
        self.started("nodes that are ready", lambda: len(self._ready_nodes()) == len(NODES))

    def __exit__(self, *_):
        # Each before what it calls.
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()

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
            "kube-apiserver",
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
        self.started("the API server", lambda: self._kubectl("get", "--raw=/readyz") == "ok")
        self.start(
            "kube-controller-manager",
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={folder}/accounts.key",
            f"--cert-dir={folder}/controller-manager",
            f"--flex-volume-plugin-dir={folder}/plugins",
            "--leader-elect=false",
        )
        self.start("kube-scheduler", "kube-scheduler", f"--kubeconfig={self.kubeconfig}", f"--cert-dir={folder}/scheduler", "--leader-elect=false")

    def _kubectl(self, *words):
        return run(KUBECTL, f"--kubeconfig={self.kubeconfig}", *words)

    def _ready_nodes(self):
        return [
            node["metadata"]["name"]
            for node in json.loads(self._kubectl("get", "nodes", "--output=json"))["items"]
            if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"]["conditions"])
        ]
