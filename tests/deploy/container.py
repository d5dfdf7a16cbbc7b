"""The image: what it says of itself, its files, and a container of it as Kubernetes would run it.

Container runtimes need cgroups, which a sandbox may not give. So a container here is what a runtime makes of it, by the kernel's own tools:
the image's files read-only as the root, processes, mounts and network (a loopback) of its own, the image's user, no way to more rights.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

from programs import log_until_serving, run

NAMESPACES = ["--mount", "--net", "--pid", "--ipc", "--uts"]

# Arguments: the image's files, an empty folder, user, group, the command.
START = r"""
set -eu
files=$1 root=$2 user=$3 group=$4
shift 4
ip link set lo up
mkdir -p "$files/dev"
mount --bind "$files" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,ro "$root/dev"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs unshare --root="$root" --wd=/ --setgid "$group" --setuid "$user" -- "$@"
"""

STOP_S = 45


def image_config(tag):
    """The OCI configuration: User, Env, Entrypoint, ExposedPorts, Labels."""
    return json.loads(run("buildah", "inspect", "--type", "image", tag))["OCIv1"]["config"]


class Files:
    """The image's files in a folder, from `with` on."""

    def __init__(self, tag):
        self._tag = tag

    def __enter__(self):
        self._name = run("buildah", "from", "--pull-never", self._tag).strip()
        return Path(run("buildah", "mount", self._name).strip())

    def __exit__(self, *_):
        run("buildah", "rm", self._name)


class Container:
    """A running container, from `with` on. It serves on the image's ports, which only programs run by `execute` and `outside` reach.

    files: the image's; root: an empty folder, where the container's own mounts put them.
    """

    def __init__(self, files, root, config):
        self._user, self._group = config["User"].split(":")
        init = ["sh", "-c", START, "sh", str(files), str(root), self._user, self._group, *config["Entrypoint"]]
        self._command = ["unshare", *NAMESPACES, "--fork", "--kill-child", *init]
        # Up to the entrypoint, which is absolute, the tools are this machine's.
        image = dict(variable.split("=", 1) for variable in config["Env"])
        self._environment = {**image, "PATH": os.environ["PATH"]}

    def __enter__(self):
        self._process = subprocess.Popen(self._command, env=self._environment, stderr=subprocess.PIPE, text=True)
        self.log = log_until_serving(self._process)
        # unshare's only child is the container's first process.
        self.pid = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text())
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stderr.close()

    def execute(self, *command):
        """The output of one of the image's programs, run in the container as its user."""
        rights = ["--setuid", self._user, "--setgid", self._group]
        return run("nsenter", "--target", self.pid, "--mount", "--net", "--pid", "--root", "--wd", *rights, *command)

    def outside(self, *command):
        """The output of one of this machine's programs that sees the container's network."""
        return run("nsenter", "--target", self.pid, "--net", *command)

    def status(self):
        """/proc/PID/status of the first process: name to text."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: text.strip() for name, text in (line.split(":", 1) for line in lines)}

    def mounts(self):
        """Where to how, of what the first process has mounted."""
        lines = [line.split() for line in Path(f"/proc/{self.pid}/mounts").read_text().splitlines()]
        return {line[1]: line[3].split(",") for line in lines}

    def stop(self):
        """SIGTERM to the first process, as a kubelet does; its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        code = self._process.wait(STOP_S)
        self.log += self._process.stderr.readlines()
        return code
