"""Where the checkout and the built server are, and what the server says about its flags."""

import os
import re
import subprocess
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("NSA_METADATA_BUILD", REPOSITORY / "build" / "release")).resolve()
SERVER = BUILD / "server" / "nsa-metadata-server"

# The variables that the server takes for flags.
PREFIX = "NSA_METADATA_"
START_S = 30


def run(*command, timeout_s=60, **more):
    """The output of a program that has to succeed."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, **more)
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def server_flags():
    """Name and default of each flag in the server's --help."""
    # --help ends with 1, as abseil has it.
    text = subprocess.run([SERVER, "--help"], capture_output=True, text=True, timeout=20).stdout
    flags = re.findall(r'^\s+--(\w+) \(.*?\);\s+default: "?(.*?)"?;$', text, re.MULTILINE | re.DOTALL)
    assert flags, f"no flags in --help:\n{text}"
    return dict(flags)


def server_version():
    return run(SERVER, "--version").split()[1]


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def log_until_serving(process):
    """The lines of a started server's log up to the one that says where it serves; fails when the server ends before."""
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    log = []
    try:
        for line in process.stderr:
            log.append(line)
            if "serving: grpc=" in line:
                return log
    finally:
        watchdog.cancel()
    raise AssertionError("the server ended without serving:\n" + "".join(log))
