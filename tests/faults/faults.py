"""Sees each test fail: plants a fault in a copy of the sources, builds it, and runs the test that has to notice.

    tests/faults/run.sh [--check] [name or row …]

Each test has to pass without the fault first, and then to fail in the way that the fault's `says` tells. Prints a table; ends
non-zero when a fault went unnoticed. --check: only whether each fault still finds its place in the sources.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from planted import FAULTS

REPOSITORY = Path(__file__).resolve().parents[2]
COPY = REPOSITORY / "build" / "faults"
TEST_TIMEOUT_S = 300


class Wrong(Exception):
    """What a fault, its place, its build or its test is not as it should be."""


def copy_sources():
    """Brings the copy up to date with the working tree; what is the same keeps its time, and needs no building."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=REPOSITORY, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = REPOSITORY / name, COPY / name
        if not source.is_file():
            target.unlink(missing_ok=True)
            continue
        content = source.read_bytes()
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(source.stat().st_mode)
    venv = COPY / "build" / "venv-e2e"
    if not venv.exists():
        venv.parent.mkdir(exist_ok=True)
        venv.symlink_to(REPOSITORY / "build" / "venv-e2e")


def planted(fault, text):
    count = text.count(fault.old)
    if count != 1:
        raise Wrong(f"{fault.name}: {fault.file} has {count} places for it, not one; what it replaced has changed: {fault.old!r}")
    return text.replace(fault.old, fault.new)


def built(test):
    configure = ["cmake", "--preset", test.preset]
    build = ["cmake", "--build", "--preset", test.preset, "--target", *test.targets, "--", "--quiet"]
    for command in (configure, build):
        done = subprocess.run(command, cwd=COPY, capture_output=True, text=True)
        if done.returncode:
            raise Wrong(f"it does not build: {(done.stdout + done.stderr)[-3000:]}")


def run(test):
    """Its exit status and what it said; a test that hangs has failed, with the status None."""
    thread_sanitizer = f"ignore_noninstrumented_modules=1 report_thread_leaks=0 suppressions={COPY}/tests/tsan.supp"
    environment = {**os.environ, "NSA_METADATA_BUILD": str(COPY / "build" / test.preset), "TSAN_OPTIONS": thread_sanitizer}
    program = COPY / "build" / test.preset / test.command[0]
    command = [str(program) if program.is_file() else test.command[0], *test.command[1:]]
    with subprocess.Popen(command, cwd=COPY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          start_new_session=True) as process:
        try:
            said, _ = process.communicate(timeout=TEST_TIMEOUT_S)
            return process.returncode, said
        except subprocess.TimeoutExpired:
            return None, "it hangs"
        finally:  # and what it has started
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def passes(test):
    built(test)
    status, said = run(test)
    if status != 0:
        raise Wrong(f"{' '.join(test.command)} ends with {status} without a fault: {said[-3000:]}")


def noticed(fault):
    """The line of the test's that tells of the fault."""
    path = COPY / fault.file
    whole = path.read_text()
    path.write_text(planted(fault, whole))
    try:
        built(fault.test)
        status, said = run(fault.test)
    finally:
        path.write_text(whole)
    if status == 0:
        raise Wrong(f"{fault.name} went unnoticed")
    if status is None:
        return said
    found = re.search(f".*(?:{fault.says}).*", said) if fault.says else None
    if fault.says and not found:
        raise Wrong(f"{fault.name}: the test ended with {status}, but not for it: {said[-3000:]}")
    return found[0].strip() if found else said.strip().splitlines()[-1] if said.strip() else f"status {status}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    faults = [f for f in FAULTS if not arguments.names or {f.row, f.name} & set(arguments.names)]
    if not faults:
        sys.exit(f"there is no fault of {arguments.names}")
    wrong = []
    if arguments.check:
        for fault in faults:
            try:
                planted(fault, (REPOSITORY / fault.file).read_text())
            except Wrong as why:
                wrong.append(str(why))
        sys.exit("\n".join(wrong) if wrong else 0)
    copy_sources()
    good = set()
    print("| row | fault | noticed by | which said |\n|---|---|---|---|")
    for fault in faults:
        begin = time.monotonic()
        try:
            if fault.test not in good:
                passes(fault.test)
                good.add(fault.test)
            said = noticed(fault)
            by = " ".join(Path(part).name if "/" in part else part for part in fault.test.command if part not in ("-m", "-q", "-x"))
            print(f"| {fault.row} | {fault.name} | {by} | {said[:160].replace('|', '/')} |", flush=True)
        except Wrong as why:
            wrong.append(fault.name)
            print(f"| {fault.row} | {fault.name} | **{str(why).replace(chr(10), ' ')[-1500:]}** | |", flush=True)
        print(f"{fault.name} took {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    if wrong:
        sys.exit(f"not noticed, or not for the fault: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
