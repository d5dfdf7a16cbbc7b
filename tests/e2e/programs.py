"""The programs under test: where they are, how to run them, and a server with its addresses, log and metrics."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from scrape import Scrape

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("NSA_METADATA_BUILD", REPOSITORY / "build" / "release"))
SERVER = BUILD / "server" / "nsa-metadata-server"
# The same on a device that does what its flags say: --batch_time, --fail_at, --time_to_fail.
TEST_SERVER = BUILD / "tests" / "nsa-metadata-test-server"
CLIENT = BUILD / "client" / "nsa-metadata"
TRACES = Path(os.environ.get("NSA_METADATA_TRACES", REPOSITORY.parent / "shared" / "traces"))

READY = re.compile(r"serving: grpc=(\S+) health=(\S+) metrics=(\S+)")
START_S = 30
# More than the server's drain_timeout, so that a drain that takes all of it shows as such.
STOP_S = 45


def eventually(condition, what, timeout_s=10):
    """Polls until `condition()` is true and returns what it returned; fails, saying `what`, when it never is."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout_s} s: {what} (last: {value!r})"
        time.sleep(0.01)


def tool(name):
    """The path of a program from the system, or a skip."""
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def environment(more=None):
    """This process's environment without settings for the server, and `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NSA_METADATA_")}
    return {**kept, **(more or {})}


def run(*command, env=None, timeout_s=20, **more):
    """Runs a program to its end, or fails when that does not come; its output is text."""
    command = [str(part) for part in command]
    try:
        return subprocess.run(command, env=environment(env), timeout=timeout_s, capture_output=True, text=True, **more)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"still running after {timeout_s} s: {' '.join(command)}\n{(late.stderr or b'').decode()}")


class Server:
    """A nsa-metadata-server on free loopback ports, from `with` on; at the end of `with` it has to exit cleanly.

    flags: after the addresses on the command line. env: beside the environment. nofile: its limit of descriptors.
    program: SERVER, or TEST_SERVER.
    """

    def __init__(self, *flags, env=None, nofile=None, listen="127.0.0.1:0", program=SERVER):
        limit = [tool("prlimit"), f"--nofile={nofile}:{nofile}"] if nofile else []
        where = [f"--listen={listen}", "--health_listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0"]
        self.command = [*limit, str(program), *where, *flags]
        self._env = environment(env)
        self._log = []
        self._log_grew = threading.Condition()

    def __enter__(self):
        self.process = subprocess.Popen(self.command, env=self._env, stderr=subprocess.PIPE, text=True, errors="replace")
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            ready = self.wait_for_log(READY, START_S)
        except BaseException:
            self.kill()
            raise
        self.addresses = ready[1].split(",")
        self.address, self.health_address, self.metrics_address = self.addresses[0], ready[2], ready[3]
        return self

    def __exit__(self, error_type, *_):
        if self.process.poll() is not None:
            return
        if error_type is None:
            self.stop()
        else:
            self.kill()

    @property
    def log(self):
        with self._log_grew:
            return "".join(self._log)

    def wait_for_log(self, pattern, timeout_s=10):
        """The first match in the log; fails when the server ends without one."""
        end = time.monotonic() + timeout_s
        with self._log_grew:
            while True:
                log = "".join(self._log)
                if match := re.search(pattern, log):
                    return match
                ended = self._log and self._log[-1] is self._END
                assert not ended, f"the server ended without logging {pattern!r}: {self.command}\n{log}"
                assert time.monotonic() < end, f"no {pattern!r} in the log within {timeout_s} s: {self.command}\n{log}"
                self._log_grew.wait(end - time.monotonic())

    def terminate(self):
        """Sends SIGTERM and returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """Waits for the end and returns the exit code."""
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the server did not end within {STOP_S} s of SIGTERM\n{self.log}")
        self._reader.join()
        return code

    def stop(self):
        """SIGTERM; the server has to drain and exit with 0."""
        self.terminate()
        code = self.wait()
        assert code == 0, f"exit code {code}\n{self.log}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def get(self, path, timeout_s=5):
        """The status and body of an HTTP GET on the metrics port."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics_address}{path}", timeout=timeout_s) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self):
        status, body = self.get("/metrics")
        assert status == 200, f"/metrics answered {status}: {body}"
        return Scrape(body)

    def settled_metrics(self):
        """The metrics once every call that has started has also been counted as handled: an answer may reach its
        caller a moment before it is counted."""

        def settled():
            scrape = self.metrics()
            started = scrape.total("grpc_server_started_total")
            # A call's last observation is its `send` stage.
            answered = scrape.total("grpc_server_handled_total", grpc_method="Expand", grpc_code="OK")
            sent = scrape.total("nsa_metadata_stage_seconds_count", stage="send")
            return scrape if started == scrape.total("grpc_server_handled_total") and answered == sent else None

        return eventually(settled, "every started call is counted as handled")

    def memory(self, name):
        """Bytes of `name` ("VmRSS", "VmHWM") in /proc/PID/status."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024

    def descriptors(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def reset_peak_memory(self):
        """Lets VmHWM start again from what is resident now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    _END = ""

    def _read_log(self):
        for line in self.process.stderr:
            self._append(line)
        self._append(self._END)

    def _append(self, line):
        with self._log_grew:
            self._log.append(line)
            self._log_grew.notify_all()
