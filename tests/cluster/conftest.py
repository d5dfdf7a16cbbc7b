import pytest

from certificates import Authority
from cluster import BUILD, Cluster
from deployed import Deployed


@pytest.fixture(scope="session")
def cluster():
    with Cluster(BUILD / "run") as running:
        yield running


@pytest.fixture(scope="session")
def plain(cluster):
    with Deployed(cluster, "plain") as deployed:
        deployed.roll_out()
        yield deployed


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture(scope="session")
def secured(cluster, authority):
    """With components/tls."""
    with Deployed(cluster, "secured", "tls") as deployed:
        deployed.put_certificate(authority)
        deployed.roll_out()
        yield deployed
