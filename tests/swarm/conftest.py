"""Two nodes in a Swarm of their own, and the bundle's stack on them: real daemons, the real engine."""

from collections.abc import Iterator

import pytest

from support.cluster import Cluster, wait_for
from support.stack import KEY, Stack, images


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one Swarm, the first its manager. The second lacks what the written page asks of each node's daemon.json."""
    with Cluster(2) as made:
        first, second = made.nodes
        first.configure(**{"no-new-privileges": True, "node-generic-resources": ["GPU=GPU-first", "GPU=GPU-other"]})
        made.copy_images(images())
        for node in made.nodes:
            node.start()
        first.docker("swarm", "init", "--advertise-addr", first.address, "--listen-addr", first.address)
        token = first.docker("swarm", "join-token", "--quiet", "worker").stdout.strip()
        second.docker("swarm", "join", "--advertise-addr", second.address, "--listen-addr", second.address, "--token", token, first.address)
        first.docker("node", "update", "--label-add", "vllm.gateway=true", first.name)
        yield made


@pytest.fixture(scope="session")
def written(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """What `make swarm` writes, not deployed."""
    folder = tmp_path_factory.mktemp("swarm")
    keys = folder / "keys.txt"
    keys.write_text(f"{KEY} tester\n")
    stack = Stack(cluster=cluster, folder=folder / "stack", keys=keys)
    stack.write()
    return stack


@pytest.fixture(scope="session")
def stack(written: Stack) -> Stack:
    """Deployed, with one engine that answers."""
    written.deploy()
    written.wait_for_engines(1)
    wait_for("an answer", written.answers, 60, 1)
    return written
