"""Flag files that are cut, spoilt and put together anew, read by the server as it starts: it has to read or refuse each.

    tests/fuzz/flag_file.py [--seconds=600 | --files=200] [--seed=1]

Not by libFuzzer: abseil's parser ends the process at the first error. Ends non-zero at a file that crashes or hangs it,
which it prints.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

SERVER = Path(os.environ.get("NSA_METADATA_BUILD", "build/release")) / "server" / "nsa-metadata-server"
TIMEOUT_S = 10
VALUES = [
    "0", "1", "-1", "5x", "1e99", "2147483648", "-9223372036854775809", "18446744073709551616", "0x10", "nan", "true", "no", "10ms", "1h2m",
    "inf", "-inf", "9" * 400, "", " ", "\0", "a,b,,c", "127.0.0.1:0", "[::1]:0", "unix:/x", '"quoted"', "\\n", "é", "\xff\xfe", "%s%n", "=" * 50,
]


def flags():
    """The names of the server's flags, and of abseil's that read more flags."""
    said = subprocess.run([SERVER, "--help"], capture_output=True, text=True, timeout=TIMEOUT_S).stdout
    ours = re.findall(r"^ +--(\w+) \(", said, re.MULTILINE)
    assert len(ours) > 30, said
    return [*ours, "fromenv", "tryfromenv", "undefok", "helpmatch", "no_such_flag"]


def made(random, names):
    lines = []
    for _ in range(random.randint(0, 5)):
        value, name = random.choice(VALUES), random.choice(names)
        lines.append(random.choice([f"--{name}={value}", f"-{name}={value}", f"--{name}", f"--no{name}", f"# {value}", value, f"  --{name} = {value}", f"--={value}", "-=", "--", ""]))
    text = random.choice(["\n", "\r\n", "\n\n"]).join(lines).encode("utf-8", "surrogateescape")
    for _ in range(random.choice([0, 0, 0, 1, 5, 50])):
        at = random.randrange(len(text) + 1)
        cut = random.choice([0, 1, 7])
        text = text[:at] + random.randbytes(random.choice([0, 1, 4, 1000])) + text[at + cut :]
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--files", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random, names = Random(arguments.seed), flags()
    read = refused = 0
    end = time.monotonic() + arguments.seconds
    with tempfile.NamedTemporaryFile() as file:
        while time.monotonic() < end and read + refused < arguments.files:
            text = made(random, names)
            Path(file.name).write_bytes(text)
            try:
                # It reads all flags before it says its version.
                done = subprocess.run([SERVER, f"--flagfile={file.name}", "--version"], capture_output=True, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                sys.exit(f"hangs: {text!r}")
            if done.returncode not in (0, 1) or (done.returncode == 1 and not done.stderr + done.stdout):
                sys.exit(f"ends with {done.returncode} and {done.stderr!r}: {text!r}")
            read, refused = read + (done.returncode == 0), refused + (done.returncode == 1)
    if 0 in (read, refused):
        sys.exit(f"{read} files read, {refused} refused: the files made show nothing")
    print(f"flag files: {read + refused} read by the server, {refused} of them refused, no crash")


if __name__ == "__main__":
    main()
