"""A server whose device fails, as whoever operates it sees it."""

import threading

from calls import TIMEOUT_S, channel
from programs import TEST_SERVER, Server, eventually
from reference import assert_right


class Callers:
    """Calls in some threads, each reply compared with the reference, until `with` ends or a call fails."""

    def __init__(self, address, stubs, threads=4):
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(address, stubs)) for _ in range(threads)]
        self.answered = 0
        self.failures = []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def await_more(self, answers):
        """Waits until so many more calls were answered, or one failed."""
        wanted = self.answered + answers
        eventually(lambda: self.answered >= wanted or self.failures, f"{answers} more calls are answered")

    def _call(self, address, stubs):
        with channel(address) as on:
            stub = stubs.rpc.MetadataServiceStub(on)
            request = stubs.pb.ExpandRequest(extend_seq_lens=[3, 2] * 50, seq_lens=[10, 4] * 50, nsa_index_topk=2048)
            while not self._stop.is_set():
                try:
                    assert_right(stub.Expand(request, timeout=TIMEOUT_S), request, "REPEAT")
                    self.answered += 1
                except Exception as failure:
                    self.failures.append(failure)
                    return


def test_on_gpu_fault_cpu_serves_on(stubs):
    with Server("--fail_at=100", program=TEST_SERVER) as server:
        with Callers(server.address, stubs) as callers:
            server.wait_for_log("the device has failed, the CPU computes from here on: an injected fault")
            callers.await_more(500)
        assert callers.failures == []
        assert server.get("/readyz")[0] == 200
        scrape = server.settled_metrics()
        assert scrape.by("backend", "nsa_metadata_backend_active") == {"cpu": 1}
        assert set(scrape.by("reason", "nsa_metadata_backend_faults_total")) == {"device"}
        assert scrape.by("grpc_code", "grpc_server_handled_total") == {"OK": callers.answered}


def test_on_gpu_fault_exit_drains_and_ends_with_a_failure(stubs):
    # It serves on long enough for the answers that the fault must not cost.
    with Server("--fail_at=100", "--on_gpu_fault=exit", "--lame_duck=3s", program=TEST_SERVER) as server:
        with Callers(server.address, stubs) as callers:
            server.wait_for_log("not ready; serving on for 3s")
            callers.await_more(20)
        assert callers.failures == []
        assert server.wait() == 1, server.log
        assert "the CPU computes from here on until the server has drained: an injected fault" in server.log
        assert server.log.rstrip().endswith("drained")
