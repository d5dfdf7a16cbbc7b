"""TLS, callers' certificates, and the policy of who may call what, as callers and operators meet them."""

import datetime
import itertools
import json
import os
import queue
import re
import socket
import ssl
import threading
import time

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from calls import TIMEOUT_S, refusal_of
from certificates import DAY, Authority
from nsa_metadata import Client, Unreachable, tls_credentials
from programs import SERVER, Server, eventually, run
from reference import assert_right

SERVER_NAME = "metadata.test"
ENGINE = "spiffe://cluster.test/ns/inference/sa/engine"
POLICY = {"rules": [{"methods": ["*"], "callers": ["spiffe://cluster.test/ns/inference/*"]}]}
SMALL = {"extend_seq_lens": [3, 2], "seq_lens": [10, 4], "nsa_index_topk": 2048}


class Pki:
    """One root for the server and one for its callers, in files."""

    def __init__(self, folder):
        self.folder = folder
        self.server_root, self.caller_root = Authority("Server Root"), Authority("Caller Root")
        self.ca, self.client_ca = folder / "ca.crt", folder / "client-ca.crt"
        self.ca.write_bytes(self.server_root.certificate)
        self.client_ca.write_bytes(self.caller_root.certificate)
        self.policy = folder / "policy.json"
        self.write_policy(POLICY)
        # As Kubernetes mounts a secret: a link to a folder, which is replaced at once.
        self._versions = itertools.count()
        self.link = folder / "secret"
        self.rotate()
        self.certificate, self.key = self.link / "tls.crt", self.link / "tls.key"

    def rotate(self, lasts=DAY, **more):
        pair = self.server_root.issue(SERVER_NAME, lasts=lasts, **more)
        self.place(pair.certificate, pair.key)
        return pair

    def place(self, certificate, key):
        made = self.folder / f"version-{next(self._versions)}"
        made.mkdir()
        (made / "tls.crt").write_bytes(certificate)
        (made / "tls.key").write_bytes(key)
        new = self.folder / "new"
        new.symlink_to(made)
        os.replace(new, self.link)

    def write_policy(self, policy):
        new = self.folder / "policy.new"
        new.write_text(policy if isinstance(policy, str) else json.dumps(policy))
        os.replace(new, self.policy)

    def tls(self):
        return [f"--tls_certificate={self.certificate}", f"--tls_key={self.key}", "--reload_period=20ms"]

    def mutual(self):
        return [*self.tls(), f"--tls_client_ca={self.client_ca}"]

    def with_policy(self):
        return [*self.mutual(), f"--authorization_policy={self.policy}"]

    def channel(self, address, pair=None):
        credentials = grpc.ssl_channel_credentials(
            self.server_root.certificate, pair and pair.key, pair and pair.certificate
        )
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", SERVER_NAME)]
        return grpc.secure_channel(address, credentials, options)


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path)


def served_certificate(address):
    host, port = address.rsplit(":", 1)
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())


def reloads(server, what="tls"):
    return server.metrics().by("result", f"nsa_metadata_{what}_reloads_total")


def call(stubs, on, method, timeout=TIMEOUT_S):
    stub = stubs.rpc.MetadataServiceStub(on)
    item = stubs.pb.ExpandRequest(**SMALL)
    if method == "Expand":
        assert_right(stub.Expand(item, timeout=timeout), item, "REPEAT")
    elif method == "ExpandStream":
        [answer] = stub.ExpandStream(iter([stubs.pb.ExpandStreamRequest(expand=item)]), timeout=timeout)
        assert_right(answer.expansion, item, "REPEAT")
    else:
        assert stub.GetServerInfo(stubs.pb.GetServerInfoRequest(), timeout=timeout).version


METHODS = ["Expand", "ExpandStream", "GetServerInfo"]


@pytest.mark.parametrize("method", METHODS)
def test_only_callers_with_a_sound_certificate_that_the_policy_names_may_call(method, stubs, pki):
    pairs = {
        "none": None,
        "of another root": Authority("Caller Root").issue(ENGINE),
        "expired": pki.caller_root.issue(ENGINE, lasts=-DAY),
    }
    with Server(*pki.with_policy()) as server:
        for kind, pair in pairs.items():
            with pki.channel(server.address, pair) as on, pytest.raises(grpc.RpcError) as ended:
                call(stubs, on, method)
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE, kind
        with pki.channel(server.address, pki.caller_root.issue("spiffe://cluster.test/ns/web/sa/page")) as on:
            with pytest.raises(grpc.RpcError) as ended:
                call(stubs, on, method)
            refusal = refusal_of(ended.value)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
            assert refusal.message == (
                f"the authorization policy does not allow spiffe://cluster.test/ns/web/sa/page to call {method}"
            )
        with pki.channel(server.address, pki.caller_root.issue(ENGINE)) as on:
            call(stubs, on, method)
        wanted = {"PermissionDenied": 1, "OK": 1}
        eventually(lambda: server.metrics().by("grpc_code", "grpc_server_handled_total") == wanted, "nobody else's is begun")


@pytest.mark.parametrize("method", ["ModelConfig", "ModelInfer", "ModelMetadata", "ModelReady", "ModelStatistics", "ServerLive", "ServerMetadata", "ServerReady"])
def test_the_policy_holds_for_the_open_inference_protocol_too(method, pki):
    strangers = [None, Authority("Caller Root").issue(ENGINE), pki.caller_root.issue(ENGINE, lasts=-DAY)]
    known = [pki.caller_root.issue(name) for name in ("spiffe://cluster.test/ns/web/sa/page", ENGINE)]
    codes = []
    with Server(*pki.with_policy()) as server:
        for pair in [*strangers, *known]:
            with pki.channel(server.address, pair) as on:
                try:
                    on.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"", timeout=TIMEOUT_S)
                    codes.append(grpc.StatusCode.OK)
                except grpc.RpcError as ended:
                    codes.append(ended.code())
    *unknown, denied, allowed = codes
    assert unknown == [grpc.StatusCode.UNAVAILABLE] * 3
    assert denied == grpc.StatusCode.PERMISSION_DENIED
    # These three are for one model, which is not named.
    assert allowed == (grpc.StatusCode.NOT_FOUND if method in ("ModelConfig", "ModelInfer", "ModelMetadata") else grpc.StatusCode.OK)


def test_an_expired_pair_does_not_take_the_place_of_one_that_is_not(stubs, pki):
    with Server(*pki.mutual()) as server:
        before = served_certificate(server.address)
        pki.rotate(lasts=-DAY)
        eventually(lambda: reloads(server).get("error") == 1, "the pair is refused")
        assert served_certificate(server.address) == before
        eventually(lambda: f"--tls_certificate={pki.certificate} has expired" in server.log, "the log says why")
        assert server.metrics().total("nsa_metadata_tls_reload_failed") == 1
        with pki.channel(server.address, pki.caller_root.issue(ENGINE)) as on:
            call(stubs, on, "Expand")
        pki.rotate()
        eventually(lambda: reloads(server).get("ok") == 1, "a good one is taken")
        assert server.metrics().total("nsa_metadata_tls_reload_failed") == 0
        assert "PRIVATE KEY" not in server.log


def test_a_pair_that_is_not_valid_yet_is_taken_once_it_is(stubs, pki):
    with Server(*pki.tls()) as server:
        before = served_certificate(server.address)
        begin = time.time()
        new = pki.rotate(begins=datetime.timedelta(seconds=8))
        server.wait_for_log(f"the old certificates stay in use: --tls_certificate={pki.certificate} is not valid before 20")
        assert served_certificate(server.address).serial_number == before.serial_number
        assert server.metrics().total("nsa_metadata_tls_reload_failed") == 1
        eventually(lambda: served_certificate(server.address).serial_number == new.serial, "it is taken", timeout_s=30)
        assert time.time() > begin + 7, "it was not valid"
        with pki.channel(server.address) as on:
            call(stubs, on, "Expand")
        eventually(lambda: reloads(server) == {"error": 1, "ok": 1}, "its refusal is counted once")
        assert server.metrics().total("nsa_metadata_tls_reload_failed") == 0


def test_a_policy_allows_methods_one_by_one_and_a_common_name_where_there_is_no_other(stubs, pki):
    pki.write_policy({"rules": [
        {"methods": ["Expand"], "callers": ["*.inference.test"]},
        {"methods": ["GetServerInfo"], "callers": ["monitor"]},
    ]})
    allowed = {
        ("engine-7.inference.test",): {"Expand"},
        ("other.test", "engine-7.inference.test"): {"Expand"},
        ("inference.test",): set(),
        (): {"GetServerInfo"},  # its common name
    }
    with Server(*pki.with_policy()) as server:
        for names, methods in allowed.items():
            with pki.channel(server.address, pki.caller_root.issue(*names, common_name="monitor")) as on:
                for method in METHODS:
                    if method in methods:
                        call(stubs, on, method)
                        continue
                    with pytest.raises(grpc.RpcError) as ended:
                        call(stubs, on, method)
                    assert ended.value.code() == grpc.StatusCode.PERMISSION_DENIED, (names, method)


def test_a_hundred_rotations_fail_no_new_connection(stubs, pki):
    engine = pki.caller_root.issue(ENGINE)
    calls, faults, stop = [0], [], threading.Event()

    def connect_and_call():
        while not stop.is_set():
            try:
                with pki.channel(server.address, engine) as on:
                    call(stubs, on, "Expand")
                calls[0] += 1
            except grpc.RpcError as fault:
                faults.append(fault)

    with Server(*pki.mutual()) as server:
        callers = [threading.Thread(target=connect_and_call) for _ in range(2)]
        for caller in callers:
            caller.start()
        try:
            for rotation in range(1, 101):
                pair = pki.rotate()
                eventually(lambda: reloads(server).get("ok", 0) >= rotation, f"rotation {rotation} is taken")
        finally:
            stop.set()
            for caller in callers:
                caller.join()
        assert not faults, f"{len(faults)} of {calls[0]} failed, the first: {faults[0]}"
        assert calls[0] >= 100
        assert reloads(server) == {"ok": 100}
    with Server(*pki.tls()) as server:
        assert served_certificate(server.address).serial_number == pair.serial
        serials = {pair.serial}
        with pki.channel(server.address) as on:
            call(stubs, on, "Expand")
            serials.add(pki.rotate().serial)
            eventually(lambda: served_certificate(server.address).serial_number in serials - {pair.serial}, "a new one")
            call(stubs, on, "Expand")  # over the connection that began with the old one


def test_a_broken_pair_is_not_taken_and_counted_until_a_sound_one_comes(stubs, pki):
    old = pki.rotate(lasts=2 * DAY)
    with Server(*pki.tls()) as server:
        def expiry():
            return server.metrics().total("nsa_metadata_tls_certificate_expiry_timestamp_seconds")

        assert expiry() == pytest.approx(time.time() + 2 * DAY.total_seconds(), abs=60)
        broken = [(b"nonsense", old.key), (b"", b""), (old.certificate, pki.server_root.issue("x").key)]
        for count, (certificate, key) in enumerate(broken, 1):
            pki.place(certificate, key)
            eventually(lambda: reloads(server) == {"error": count}, "it is counted")
            assert served_certificate(server.address).serial_number == old.serial
            with pki.channel(server.address) as on:
                call(stubs, on, "Expand")
        server.wait_for_log(f"the old certificates stay in use: --tls_key={pki.key} is not the key of the certificate in")
        new = pki.rotate(lasts=9 * DAY)
        eventually(lambda: reloads(server) == {"error": 3, "ok": 1}, "the sound one is taken")
        assert served_certificate(server.address).serial_number == new.serial
        assert expiry() == pytest.approx(time.time() + 9 * DAY.total_seconds(), abs=60)


def test_a_new_policy_holds_for_open_connections_and_a_broken_one_changes_nothing(stubs, pki):
    with Server(*pki.with_policy()) as server, pki.channel(server.address, pki.caller_root.issue(ENGINE)) as on:
        call(stubs, on, "Expand")
        pki.write_policy('{"rules": [{"methods": ["*"]')
        eventually(lambda: reloads(server, "policy") == {"error": 1}, "it is counted")
        call(stubs, on, "Expand")
        pki.write_policy({"rules": []})
        eventually(lambda: reloads(server, "policy") == {"error": 1, "ok": 1}, "the new one is taken")
        with pytest.raises(grpc.RpcError) as ended:
            call(stubs, on, "Expand")
        assert ended.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_new_policy_holds_for_the_next_item_of_an_open_stream(stubs, pki):
    items = queue.Queue()
    item = stubs.pb.ExpandStreamRequest(expand=stubs.pb.ExpandRequest(**SMALL))
    with Server(*pki.with_policy()) as server, pki.channel(server.address, pki.caller_root.issue(ENGINE)) as on:
        answers = stubs.rpc.MetadataServiceStub(on).ExpandStream(iter(items.get, None), timeout=TIMEOUT_S)
        items.put(item)
        assert next(answers).HasField("expansion")
        pki.write_policy({"rules": []})
        eventually(lambda: reloads(server, "policy") == {"ok": 1}, "the new one is taken")
        items.put(item)
        assert next(answers).refusal.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
        items.put(None)


def rule(**changed):
    return json.dumps({"rules": [{"methods": ["*"], "callers": ["*"], **changed}]})


UNFIT = {
    "no such certificate": ("certificate", None, r"--tls_certificate=\S+ can't be read: No such file or directory"),
    "no certificate in it": ("certificate", b"nonsense", r"--tls_certificate=\S+ has to hold certificates in PEM form"),
    "a folder": ("certificate", "folder", r"--tls_certificate=\S+ can't be read: Is a directory"),
    "a weak key": ("certificate", "weak", r"--tls_certificate=\S+ can't be used: ee key too small"),
    "no such key": ("key", None, r"--tls_key=\S+ can't be read: No such file"),
    "no key in it": ("key", b"nonsense", r"--tls_key=\S+ has to hold a key in PEM form, without a passphrase"),
    "a passphrase": ("key", "secret", r"--tls_key=\S+ has to hold a key in PEM form, without a passphrase"),
    "another's key": ("key", "other", r"--tls_key=\S+ is not the key of the certificate in \S+"),
    "no such roots": ("client_ca", None, r"--tls_client_ca=\S+ can't be read: No such file"),
    "no roots in it": ("client_ca", b"", r"--tls_client_ca=\S+ has to hold certificates in PEM form"),
    "no such policy": ("policy", None, r"--authorization_policy=\S+ can't be read: No such file"),
    "no JSON": ("policy", b"allow all", r"--authorization_policy=\S+: .*allow all"),
    "no such field": ("policy", rule(users=["x"]).encode(), r"--authorization_policy=\S+: .*users"),
    "no such method": ("policy", rule(methods=["expand"]).encode(), r'rules\[0\]\.methods: there is no "expand"'),
    "no method": ("policy", rule(methods=[]).encode(), r"rules\[0\]\.methods is empty"),
    "no caller": ("policy", rule(callers=[]).encode(), r"rules\[0\]\.callers is empty"),
    "a star amid a name": ("policy", rule(callers=["a*b"]).encode(), r'rules\[0\]\.callers: "a\*b" has to be a name'),
}


@pytest.mark.parametrize(("which", "content", "says"), UNFIT.values(), ids=list(UNFIT))
def test_the_server_does_not_start_with_files_that_are_not_what_they_should_be(which, content, says, pki):
    path = getattr(pki, which)
    if content == "secret":
        pair = pki.server_root.issue(SERVER_NAME, passphrase=b"secret")
        pki.place(pair.certificate, pair.key)
    elif content == "folder":
        path.unlink()
        path.mkdir()
    elif content == "weak":
        pair = pki.server_root.issue(SERVER_NAME, key=rsa.generate_private_key(65_537, 1_024))
        pki.place(pair.certificate, pair.key)
    elif content == "other":
        path.write_bytes(pki.server_root.issue(SERVER_NAME).key)
    elif content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    done = run(SERVER, *pki.with_policy(), "--listen=127.0.0.1:0", "--health_listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0")
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert re.search(says, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("drop", "add", "says"),
    [
        ("--tls_key", [], "--tls_certificate and --tls_key need each other"),
        ("--tls_client_ca", [], "--authorization_policy needs --tls_client_ca"),
        (None, ["--reflection"], "--reflection can't be served with --authorization_policy"),
    ],
)
def test_the_server_does_not_start_with_half_of_what_it_needs(drop, add, says, pki):
    flags = [flag for flag in pki.with_policy() if drop is None or not flag.startswith(drop)]
    done = run(SERVER, *flags, *add, "--listen=127.0.0.1:0")
    assert done.returncode == 1
    assert says in done.stderr


def test_an_address_that_is_not_loopback_needs_tls_or_allow_plaintext(pki):
    done = run(SERVER, "--listen=0.0.0.0:0")
    assert done.returncode == 1
    assert "--listen=0.0.0.0:0 is not loopback: that needs --tls_certificate, or --allow_plaintext" in done.stderr
    # Loopback all the same: tests listen nowhere else. What is looked at is the flag.
    with Server(*pki.tls(), listen="127.0.0.1:0"):
        pass


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize(("newest", "connects"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_1_2_is_the_least(newest, connects, pki):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pki.ca)
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[newest]
    with Server(*pki.tls()) as server:
        host, port = server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured:
                    assert connects, f"{secured.version()} was spoken"
            # The server ends it; this side would have spoken it.
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError, ConnectionResetError) as fault:
                assert not connects, fault


def test_what_does_not_speak_tls_is_turned_away_and_others_are_served(stubs, pki):
    with Server(*pki.tls()) as server:
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as on:
            with pytest.raises(grpc.RpcError) as ended:
                call(stubs, on, "Expand")
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        with pki.channel(server.address) as on:
            call(stubs, on, "Expand")


def test_a_unix_socket_speaks_tls_too(stubs, pki):
    path = pki.folder / "s"
    with Server(*pki.mutual(), listen=f"127.0.0.1:0,unix:{path}"):
        with pki.channel(f"unix:{path}", pki.caller_root.issue(ENGINE)) as on:
            call(stubs, on, "Expand")
        with pki.channel(f"unix:{path}") as on, pytest.raises(grpc.RpcError):
            call(stubs, on, "Expand")


def test_calls_over_tls_are_answered_though_the_server_drains(stubs, pki):
    with Server(*pki.tls(), "--batch_delay=500ms") as server, pki.channel(server.address) as on:
        item = stubs.pb.ExpandRequest(**SMALL)
        pending = [stubs.rpc.MetadataServiceStub(on).Expand.future(item, TIMEOUT_S) for _ in range(20)]
        eventually(lambda: server.metrics().total("nsa_metadata_queue_requests") == 20, "20 calls are in flight")
        server.terminate()
        for answer in pending:
            assert_right(answer.result(), item, "REPEAT")
        assert server.wait() == 0, server.log


def expand(client_program, server, *flags):
    return run(
        client_program, "expand", f"--target={server.address}", "--extend_seq_lens=3,2", "--seq_lens=10,4",
        "--nsa_index_topk=2048", "--mode=causal", "--verify", *flags,
    )


def test_the_client_program_takes_the_same_files(client_program, pki):
    certificate, key = pki.caller_root.issue(ENGINE).write(pki.folder, "engine")
    own = [f"--tls_certificate={certificate}", f"--tls_key={key}", f"--tls_server_name={SERVER_NAME}"]
    with Server(*pki.with_policy()) as server:
        done = expand(client_program, server, f"--tls_ca={pki.ca}", *own)
        assert (done.returncode, done.stderr) == (0, "")
        bench = run(client_program, "bench", f"--target={server.address}", "--duration=200ms", "--warm_up=0", "--json",
                    f"--tls_ca={pki.ca}", *own)
        assert bench.returncode == 0 and json.loads(bench.stdout)["ok"] > 0, bench.stderr
        health = run(client_program, "health", f"--target={server.address}", f"--tls_ca={pki.ca}", *own)
        assert (health.returncode, health.stdout) == (0, "SERVING\n")
        assert expand(client_program, server, f"--tls_ca={pki.client_ca}", *own).returncode == 3, "not its root"
        missing = expand(client_program, server, "--tls_ca=/nowhere", *own)
        assert missing.returncode == 2
        assert "the roots /nowhere can't be read: No such file or directory" in missing.stderr


def test_the_python_client_takes_the_same_files(pki):
    certificate, key = pki.caller_root.issue(ENGINE).write(pki.folder, "engine")
    with Server(*pki.with_policy()) as server:
        credentials = tls_credentials(pki.ca, certificate, key)
        with Client(server.address, credentials=credentials, server_name=SERVER_NAME) as client:
            expansion = client.expand([3, 2], [10, 4], nsa_index_topk=2048, mode="causal")
            assert list(expansion.seqlens_expanded) == [8, 9, 10, 3, 4]
        with Client(server.address, credentials=credentials, max_attempts=1) as client, pytest.raises(Unreachable):
            client.expand([3], [10], nsa_index_topk=1, mode="causal")  # the certificate has another name
    with pytest.raises(ValueError, match="need each other"):
        tls_credentials(certificate=certificate)
    with pytest.raises(ValueError, match=r"ca\.crt has to hold a PRIVATE KEY in PEM form"):
        tls_credentials(pki.ca, certificate, pki.ca)
