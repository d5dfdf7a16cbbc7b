"""The commands that people are told to type."""

import re
import socket
import subprocess

import pytest
from manifests import Manifests, kubectl
from programs import REPOSITORY

RUNBOOK = REPOSITORY / "deploy" / "prometheus" / "RUNBOOK.md"
STANDS_FOR = {"POD": "nsa-metadata-server-0", "NODE": "node-0", "NUMBER": "4"}


def commands():
    return sorted(set(re.findall(r"`kubectl ([^`]+)`", RUNBOOK.read_text())))


def test_the_runbook_has_commands():
    assert len(commands()) >= 6, commands()


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_runbook_is_one_that_kubectl_takes(command):
    # There is no cluster to run it in: a command that kubectl does not take ends before it looks for one.
    words = [STANDS_FOR.get(word, word.replace("NUMBER", STANDS_FOR["NUMBER"])) for word in command.split()]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        server = f"--server=http://127.0.0.1:{nobody.getsockname()[1]}"
        done = subprocess.run([kubectl(), server, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "refused" in done.stderr, f"kubectl {' '.join(words)}: {done.stderr}"


def test_what_the_runbook_scales_is_there():
    name = re.search(r"kubectl scale deployment/(\S+)", RUNBOOK.read_text())[1]
    deployments = [o["metadata"]["name"] for o in Manifests("overlays/cpu").objects if o["kind"] == "Deployment"]
    assert name in deployments
