"""The autoscaler's metrics: what prometheus-adapter would ask a Prometheus that scrapes a server, and what it would get."""

import threading

import grpc
import yaml

from calls import TIMEOUT_S
from programs import REPOSITORY, TEST_SERVER, Server, eventually
from prometheus import Prometheus
from reference import MODES

ADAPTER = REPOSITORY / "deploy" / "kubernetes" / "components" / "autoscaling" / "queue" / "prometheus-adapter.yaml"
RULES = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]


def put(template):
    # A pod's label comes from Kubernetes; here an instance is one.
    return template.replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", 'job=~".*"')


def test_a_loaded_server_has_the_metrics_and_a_full_queue_raises_them(stubs, pb, tmp_path):
    # Each batch takes 100 ms, so that calls wait for the lane, with their blocks.
    with Server("--batch_time=100ms", "--lanes=1", program=TEST_SERVER) as server, Prometheus([server.metrics_address], tmp_path) as prometheus:
        queries = {rule["name"]["as"]: put(rule["metricsQuery"]) for rule in RULES}
        for rule in RULES:
            series = rule["seriesQuery"].replace(',namespace!="",pod!=""', "")
            eventually(lambda: prometheus.query(series), f"{series} is discovered", 30)

        def value(name):
            (answer,) = prometheus.query(queries[name])
            return answer

        for name in queries:
            eventually(lambda: prometheus.query(queries[name]), f"{name} has a value without any load", 30)
            assert value(name) == 0
        stop = threading.Event()
        request = pb.ExpandRequest(extend_seq_lens=[3, 2], seq_lens=[10, 4], nsa_index_topk=2048, mode=MODES["CAUSAL"])

        def load():
            with grpc.insecure_channel(server.address) as channel:
                while not stop.is_set():
                    stubs.rpc.MetadataServiceStub(channel).Expand(request, timeout=TIMEOUT_S)

        callers = [threading.Thread(target=load) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            eventually(lambda: value("nsa_metadata_queue_wait_milliseconds") > 10, "calls wait longer than 10 ms", 60)
            eventually(lambda: value("nsa_metadata_output_budget_used_ratio") > 0, "blocks are in use", 60)
        finally:
            stop.set()
            for caller in callers:
                caller.join()
