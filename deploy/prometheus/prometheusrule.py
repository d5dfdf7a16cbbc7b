#!/usr/bin/env python3
"""Writes rules.yaml, or proxy-rules.yaml, anew as the Prometheus operator's PrometheusRule: kustomize can't put a file's content into an object."""

import argparse
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COMPONENTS = FOLDER.parent / "kubernetes" / "components"
# Whose rules: the file, and the object that is made of it.
OF = {
    "server": (FOLDER / "rules.yaml", COMPONENTS / "monitoring" / "prometheusrule.yaml"),
    "edge-proxy": (FOLDER / "proxy-rules.yaml", COMPONENTS / "edge-proxy" / "monitoring" / "prometheusrule.yaml"),
}
RUNBOOK = "RUNBOOK.md"
HEAD = """\
# Written by deploy/prometheus/prometheusrule.py from FILE, which explains it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nsa-metadata-OF
  labels:
    app.kubernetes.io/name: nsa-metadata-OF
spec:
"""


def operator_rules(of="server", runbook=RUNBOOK):
    """of: a key of OF. runbook: where the people who are called read RUNBOOK.md, which each runbook_url then begins with."""
    rules = OF[of][0]
    lines = rules.read_text().splitlines(keepends=True)
    start = lines.index("groups:\n")
    text = HEAD.replace("FILE", rules.name).replace("OF", of) + "".join(f"  {line}" if line.strip() else line for line in lines[start:])
    return text.replace(f"runbook_url: {RUNBOOK}#", f"runbook_url: {runbook}#")


def address(text):
    # Each alert adds its section: "#" and a heading.
    if not re.fullmatch(r"https?://[^\s#]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no http:// or https:// address without #")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=OF, default="server", help="whose rules (unless given: the server's)")
    parser.add_argument("--runbook", type=address, metavar="URL",
                        help="where RUNBOOK.md is read; each runbook_url becomes URL#SECTION (unless given: RUNBOOK.md#SECTION)")
    parser.add_argument("--output", metavar="FILE", help="what is written; - for standard output (unless given: the component's)")
    arguments = parser.parse_args()
    rules = operator_rules(arguments.of, arguments.runbook or RUNBOOK)
    if arguments.output == "-":
        sys.stdout.write(rules)
    else:
        Path(arguments.output or OF[arguments.of][1]).write_text(rules)


if __name__ == "__main__":
    main()
