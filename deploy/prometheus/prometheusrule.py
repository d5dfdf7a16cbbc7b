#!/usr/bin/env python3
"""Writes rules.yaml anew as the Prometheus operator's PrometheusRule: kustomize can't put a file's content into an object."""

import argparse
import re
import sys
from pathlib import Path

RULES = Path(__file__).resolve().parent / "rules.yaml"
OBJECT = RULES.parents[1] / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"
RUNBOOK = "RUNBOOK.md"
HEAD = """\
# Written by deploy/prometheus/prometheusrule.py from rules.yaml, which explains it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nsa-metadata-server
  labels:
    app.kubernetes.io/name: nsa-metadata-server
spec:
"""


def operator_rules(runbook=RUNBOOK):
    """runbook: where the people who are called read RUNBOOK.md, which each runbook_url then begins with."""
    lines = RULES.read_text().splitlines(keepends=True)
    start = lines.index("groups:\n")
    text = HEAD + "".join(f"  {line}" if line.strip() else line for line in lines[start:])
    return text.replace(f"runbook_url: {RUNBOOK}#", f"runbook_url: {runbook}#")


def address(text):
    # Each alert adds its section: "#" and a heading.
    if not re.fullmatch(r"https?://[^\s#]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no http:// or https:// address without #")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runbook", type=address, metavar="URL",
                        help="where RUNBOOK.md is read; each runbook_url becomes URL#SECTION (unless given: RUNBOOK.md#SECTION)")
    parser.add_argument("--output", default=OBJECT, metavar="FILE", help="what is written; - for standard output (unless given: components/monitoring's)")
    arguments = parser.parse_args()
    rules = operator_rules(arguments.runbook or RUNBOOK)
    if arguments.output == "-":
        sys.stdout.write(rules)
    else:
        Path(arguments.output).write_text(rules)


if __name__ == "__main__":
    main()
