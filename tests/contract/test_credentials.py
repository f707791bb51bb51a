"""Keys and certificates of a gateway that runs: what bundle.service.credentials tells it, tried on the real container."""

import http.client
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle.base import files
from bundle.base.errors import BundleError, ConfigurationError
from bundle.service import credentials
from bundle.service.deployment import Container, Deployment
from support.gateway import CONFIG, KEY, Door, Site, docker, operational
from support.project import wait_until


@dataclass(frozen=True, kw_only=True)
class Around(Deployment):
    """A deployment of one gateway that a test has opened."""

    door: Door
    settings: dict[str, str]

    @property
    def is_written(self) -> bool:
        return True

    def values(self, service: str = "engine") -> dict[str, str]:
        return self.settings

    def containers(self) -> dict[str, Container]:
        return {"gateway": Container(id=self.door.name, service="gateway", state="running", health="healthy", restarts=0, exit_code=0,
                                     out_of_memory=False, started="", image="", memory_bytes=0, probe="", published=None)}

    def feed(self, container: Container, text: str, *argv: str) -> str | None:
        assert not any(secret in " ".join(argv) for secret in ("sk-", "PRIVATE")), "arguments show in `docker top`"
        return super().feed(container, text, *argv)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    mine = Site(folder=tmp_path)
    try:
        mine.start_engine()
        yield mine
    finally:
        mine.close()


def opened(site: Site, *, keys: str | None = None, certificate: str | None = None) -> tuple[Around, Path]:
    """A ready gateway, and the file of its secret on the host."""
    door = site.open(keys=keys, certificate=certificate)
    wait_until(lambda: operational(door), deadline_s=30, what="the gateway sees its engine")
    sources = json.loads(docker("inspect", "--format", "{{json .HostConfig.Binds}}", door.name))
    (file,) = [Path(source.split(":")[0]) for source in sources if CONFIG not in source]
    return Around(door=door, settings={"GATEWAY_API_KEYS_FILE" if keys else "GATEWAY_TLS_CERT_FILE": str(file)}), file


def status(door: Door, key: str) -> int:
    return door.ask("GET", "/v1/models", key=key).status


def test_keys_come_and_go_in_one_step_and_outlive_a_restart(site: Site) -> None:
    deployment, file = opened(site, keys=f"# ours\n{KEY}\nsk-second-4f1d0c bob\n")
    door = deployment.door
    assert not credentials.apply(deployment)
    over = threading.Event()
    seen: list[int] = []

    def ask() -> None:
        while not over.is_set():
            seen.append(status(door, KEY))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        carol = credentials.add(file, "carol").secret
        assert status(door, carol) == 401
        assert str(credentials.apply(deployment)) == "1 key added (carol)"
        assert status(door, carol) == 200
        scraper = credentials.add(file, "prometheus", metrics_only=True).secret
        credentials.revoke(file, "bob")
        assert str(credentials.apply(deployment)) == "1 key added (prometheus metrics-only), 1 key revoked (bob)"
        assert [status(door, key) for key in (carol, scraper, "sk-second-4f1d0c")] == [200, 403, 401]
        assert not credentials.apply(deployment)
    finally:
        over.set()
        asking.join()
    assert set(seen) == {200}
    docker("restart", door.name)
    door = Door(name=door.name, port=int(docker("port", door.name, "8005/tcp").strip().rpartition(":")[2]))
    wait_until(lambda: operational(door), deadline_s=30, what="the gateway is back")
    assert [status(door, key) for key in (KEY, carol, scraper, "sk-second-4f1d0c")] == [200, 200, 403, 401]
    assert file.read_text().startswith("# ours\n")


def test_a_broken_key_file_changes_nothing(site: Site) -> None:
    deployment, file = opened(site, keys=f"{KEY} alice\n")
    files.write_whole(file, f"{KEY} alice\nshort bob\n")
    with pytest.raises(ConfigurationError, match=f"{file}:2: this key has 5 characters"):
        credentials.apply(deployment)
    assert status(deployment.door, KEY) == 200


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pem")
    for name in ("old", "new"):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                        "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")], check=True, capture_output=True)
    return {name: (folder / f"{name}.crt").read_text() + "\n\n" + (folder / f"{name}.key").read_text() for name in ("old", "new")}


def test_a_certificate_is_renewed_while_a_stream_runs_and_a_broken_one_is_refused(site: Site, certificates: dict[str, str]) -> None:
    deployment, file = opened(site, certificate=certificates["old"])
    port = deployment.door.port

    def shown() -> bytes:
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    body = {"model": "fake", "prompt": "x", "max_tokens": 3, "stream": True, "fake": {"pause_s": 1}}
    with closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)) as stream:
        stream.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = stream.getresponse()
        assert reply.readline().startswith(b"data:")
        assert not credentials.apply(deployment)
        files.write_whole(file, certificates["new"])
        assert str(credentials.apply(deployment)) == "the certificate renewed"
        assert shown() == ssl.PEM_cert_to_DER_cert(certificates["new"].partition("\n\n")[0])
        assert reply.read().rstrip().endswith(b"data: [DONE]")

    mixed = certificates["old"].partition("\n\n")[0] + "\n\n" + certificates["new"].partition("\n\n")[2]
    files.write_whole(file, mixed)
    with pytest.raises(BundleError, match="refuses the renewed certificate"):
        credentials.apply(deployment)
    assert shown() == ssl.PEM_cert_to_DER_cert(certificates["new"].partition("\n\n")[0])
