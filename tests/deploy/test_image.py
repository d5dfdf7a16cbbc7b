"""The image: small, without a shell, and its server runs with a read-only root as nobody in particular."""

import hashlib
import json
import os
import re
import stat

import pytest

from container import Container, Files, image_config
from programs import REPOSITORY, port_of, run, server_flags, server_version

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and namespaces"),
]

LISTEN = {"listen": "grpc", "health_listen": "health", "metrics_listen": "metrics"}
BUILD_S = 1800
# Four times today's; what gets there has taken in something it doesn't need.
MOST_BYTES = 160e6
MOST_BYTES_OF_OURS = 120e6


@pytest.fixture(scope="module")
def tag():
    name = f"nsa-metadata-server:test-{os.getpid()}"
    # A machine that has a CUDA toolkit hides it, as if it had none.
    path = ":".join(folder for folder in os.environ["PATH"].split(":") if "cuda" not in folder)
    environment = {key: value for key, value in os.environ.items() if key not in ("LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH")}
    hidden = 'for folder in /usr/local/cuda*; do if [ -d "$folder" ]; then mount -t tmpfs none "$(readlink -f "$folder")"; fi; done; exec "$@"'
    build = ["unshare", "--mount", "sh", "-c", hidden, "sh", REPOSITORY / "deploy/container/build.sh", name]
    print(run(*build, timeout_s=BUILD_S, env={**environment, "PATH": path}))
    yield name
    run("buildah", "rmi", name)


@pytest.fixture(scope="module")
def config(tag):
    return image_config(tag)


@pytest.fixture(scope="module")
def files(tag):
    with Files(tag) as folder:
        yield folder


@pytest.fixture(scope="module")
def container(files, config, tmp_path_factory):
    with Container(files, tmp_path_factory.mktemp("root"), config) as running:
        yield running


@pytest.fixture(scope="module")
def environment(config):
    return dict(variable.split("=", 1) for variable in config["Env"])


def test_user_is_numeric_and_not_root(config):
    assert config["User"] == "10001:10001"


def test_entrypoint_is_the_server_without_a_shell(config):
    assert config["Entrypoint"] == ["/usr/local/bin/nsa-metadata-server"]
    assert not config.get("Cmd")


def test_labels_say_what_it_is(config):
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["title"] == "nsa-metadata-server"
    assert labels["description"]
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == server_version()
    assert labels["revision"] == run("git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip()


def test_it_listens_where_it_exposes(config, environment):
    flags = server_flags()
    addresses = [environment[f"NSA_METADATA_{flag.upper()}"] for flag in LISTEN]
    assert all(address.startswith("0.0.0.0:") for address in addresses)
    assert [port_of(address) for address in addresses] == [port_of(flags[flag]) for flag in LISTEN]
    assert set(config["ExposedPorts"]) == {f"{port_of(address)}/tcp" for address in addresses}


def test_its_only_programs_are_ours(files):
    programs = [
        str(path.relative_to(files))
        for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin")
        for path in (files / folder).glob("*")
    ]
    assert sorted(programs) == ["usr/local/bin/nsa-metadata", "usr/local/bin/nsa-metadata-server"]


def test_it_is_small(files):
    def size(folder):
        found = [path.lstat() for path in folder.rglob("*")]
        return sum(one.st_size for one in found if stat.S_ISREG(one.st_mode))

    ours = size(files / "usr/local/bin")
    print(f"{size(files) / 1e6:.0f} MB, of it the programs {ours / 1e6:.0f} MB")
    assert ours < MOST_BYTES_OF_OURS
    assert size(files) < MOST_BYTES


def test_nothing_in_it_gives_rights_or_belongs_to_its_user(files):
    for path in files.rglob("*"):
        found = path.lstat()
        assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID) or stat.S_ISDIR(found.st_mode), path
        assert found.st_uid == 0, path


def test_it_keeps_nothing_of_the_machine_that_built_it(files):
    for path in ("etc/apt", "etc/hostname", "etc/resolv.conf", "var/lib/apt", "var/cache"):
        assert not any(one.is_file() for one in (files / path).rglob("*")), path
        assert not (files / path).is_file(), path


def test_scanners_find_release_packages_and_licences(files):
    assert (files / "etc/os-release").resolve().name == "os-release"
    packages = [path.name for path in (files / "var/lib/dpkg/status.d").iterdir()]
    assert {"libc6", "libssl3", "libgrpc++1.51"} <= set(packages)
    for package in packages:
        assert (files / "usr/share/doc" / package).exists(), package


def test_it_says_what_it_was_made_of(files):
    bill = json.loads((files / "usr/share/doc/nsa-metadata-server/sbom.spdx.json").read_text())
    named = {package["name"]: package["versionInfo"] for package in bill["packages"]}
    installed = {path.name: re.search(r"^Version: (.*)$", path.read_text(), re.MULTILINE)[1] for path in (files / "var/lib/dpkg/status.d").iterdir()}
    assert {"libgrpc29", "libprotobuf32", "libssl3"} <= installed.keys()
    assert {name: named.get(name) for name in installed} == installed
    assert named["nsa-metadata-server"] == server_version()
    sums = {file["fileName"]: {one["checksumValue"] for one in file["checksums"]} for file in bill["files"]}
    for program in ("nsa-metadata", "nsa-metadata-server"):
        assert hashlib.sha256((files / "usr/local/bin" / program).read_bytes()).hexdigest() in sums[f"./{program}"], program


def test_certificate_authorities_are_those_of_the_distribution(files):
    bundle = (files / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert bundle.count("BEGIN CERTIFICATE") == len(list((files / "usr/share/ca-certificates/mozilla").glob("*.crt")))


def test_server_runs_without_rights_on_a_read_only_root(container):
    status = container.status()
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert status["Groups"] == ""
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert "ro" in container.mounts()["/"]
    # The first process of its tree: signals without a handler would not reach it.
    assert status["NSpid"].split()[-1] == "1"


def test_client_in_the_container_gets_the_right_bytes(container, environment):
    target = f"--target=127.0.0.1:{port_of(environment['NSA_METADATA_LISTEN'])}"
    lengths = ["--extend_seq_lens=3,2", "--seq_lens=10,4", "--mode=causal"]
    container.execute("/usr/local/bin/nsa-metadata", "expand", target, *lengths, "--outputs=all", "--verify")


@pytest.mark.parametrize("service", [[], ["--service=nsa.metadata.v1.MetadataService"]], ids=["process", "service"])
def test_probes_find_it_healthy(container, environment, service):
    target = f"--target=127.0.0.1:{port_of(environment['NSA_METADATA_HEALTH_LISTEN'])}"
    container.execute("/usr/local/bin/nsa-metadata", "health", target, *service)


def test_metrics_say_what_it_was_built_from(container, environment):
    url = f"http://127.0.0.1:{port_of(environment['NSA_METADATA_METRICS_LISTEN'])}/metrics"
    metrics = container.outside("curl", "--silent", "--show-error", "--fail", url)
    (build,) = re.findall(r"^nsa_metadata_build_info\{(.*)\} 1$", metrics, re.MULTILINE)
    assert f'version="{server_version()}"' in build
    # The compiler's, so that one image serves with and without a card.
    assert 'cuda="13.0' in build


def test_sigterm_drains_and_ends_with_0(container):
    assert container.stop() == 0
    assert "draining" in container.log[-2]
    assert "drained" in container.log[-1]
