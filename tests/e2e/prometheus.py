"""A real Prometheus that scrapes servers and evaluates rules each second."""

import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from programs import tool


class Prometheus:
    """From `with` on. targets: "host:port" of metrics pages, scraped as `job`. own_job: as which it scrapes itself, if at all.
    rules: the text of a rule file."""

    def __init__(self, targets, folder, *, job="nsa-metadata", own_job=None, rules=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                  "scrape_configs": [{"job_name": job, "static_configs": [{"targets": targets}]}]}
        if own_job is not None:
            config["scrape_configs"].append({"job_name": own_job, "static_configs": [{"targets": [self._address]}]})
        if rules is not None:
            (folder / "rules.yml").write_text(rules)
            config["rule_files"] = ["rules.yml"]
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))
        self._log_path = folder / "prometheus.log"
        self._command = [tool("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
                         f"--web.listen-address={self._address}"]

    def __enter__(self):
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def _get(self, path, **parameters):
        """The answer's data; None while Prometheus is starting."""
        assert self._process.poll() is None, f"Prometheus ended: {self._log_path.read_text()}"
        url = f"http://{self._address}/api/v1/{path}?" + urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as refused:
            if refused.code == 503:
                return None
            raise AssertionError(f"{parameters}: {refused.read().decode()}") from refused
        except OSError:
            return None

    def query(self, expression):
        """The instant vector's values; nothing while Prometheus is starting."""
        data = self._get("query", query=expression)
        return [float(series["value"][1]) for series in data["result"]] if data else []

    def label_values(self, label, selector):
        """The values that `label` has in what `selector` selects, as Grafana's label_values; none while Prometheus is starting."""
        return self._get(f"label/{label}/values", **{"match[]": selector}) or []

    def firing(self):
        """The alerts that fire: {name: labels of one of them}."""
        data = self._get("alerts")
        return {alert["labels"]["alertname"]: alert["labels"] for alert in data["alerts"] if alert["state"] == "firing"} if data else {}
