"""The commands that people are told to type, and the log lines that they are told to look for."""

import re
import socket
import subprocess

import pytest
from manifests import Manifests, kubectl
from programs import PREFIX, REPOSITORY

RUNBOOK = REPOSITORY / "deploy" / "prometheus" / "RUNBOOK.md"
STANDS_FOR = {"POD": "nsa-metadata-server-0", "NODE": "node-0", "NUMBER": "4"}


def commands():
    return sorted(set(re.findall(r"`kubectl ([^`]+)`", RUNBOOK.read_text())))


def test_the_runbook_has_commands():
    assert len(commands()) >= 6, commands()


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_runbook_is_one_that_kubectl_takes(command):
    # tests/cluster takes the step. A command that kubectl does not take ends before it looks for a cluster.
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


def test_the_log_lines_that_the_runbook_quotes_are_the_servers():
    source = (REPOSITORY / "server" / "server.cc").read_text()
    formats = re.findall(r'spdlog::\w+\("((?:computing on|the device has failed)[^"]*)"', source)
    assert len(formats) == 4, formats
    quoted = set(re.findall(r"`((?:computing on|the device has failed, )[^`]*)`", RUNBOOK.read_text()))
    assert len(quoted) == len(formats)
    for one in formats:
        pattern = re.escape(one).replace(r"\{\}", ".*")
        assert any(re.fullmatch(pattern, line) for line in quoted), f"{one!r} is not among {quoted}"


def test_certificates_are_where_the_runbook_looks():
    production = Manifests("overlays/production")
    environment = production.environment
    files = {"tls_ca": "TLS_CLIENT_CA", "tls_certificate": "TLS_CERTIFICATE", "tls_key": "TLS_KEY"}
    (command,) = (one for one in commands() if one.startswith("exec") and "--tls" in one)
    given = dict(re.findall(r"--(\w+)=(\S+)", command))
    assert {flag: given[flag] for flag in files} == {flag: environment[PREFIX + name] for flag, name in files.items()}
    assert given["tls_server_name"].split(".")[0] == production.one("Service")["metadata"]["name"]
    assert given["target"].endswith(environment[f"{PREFIX}LISTEN"].removeprefix("0.0.0.0"))
