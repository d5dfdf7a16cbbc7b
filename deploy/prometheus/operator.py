#!/usr/bin/env python3
"""Writes rules.yaml anew as the Prometheus operator's PrometheusRule: kustomize can't put a file's content into an object."""

from pathlib import Path

RULES = Path(__file__).resolve().parent / "rules.yaml"
OBJECT = RULES.parents[1] / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = """\
# Written by deploy/prometheus/operator.py from rules.yaml, which explains it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nsa-metadata-server
  labels:
    app.kubernetes.io/name: nsa-metadata-server
spec:
"""


def operator_rules():
    lines = RULES.read_text().splitlines(keepends=True)
    start = lines.index("groups:\n")
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in lines[start:])


if __name__ == "__main__":
    OBJECT.write_text(operator_rules())
