"""A handoff goes to a second, empty place and runs there: with Docker alone, and with `receive`."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from bundle.machine.daemon import client_environment
from support.project import ON_CPU, Project, wait_until

SELFTEST = "selftest"


@pytest.fixture(scope="module")
def built(no_leftovers: None) -> None:
    """The CPU images are here; nothing is done where they are current."""
    build = Project(name="unused").script("build", "--profile", "cpu", timeout_s=880)
    assert build.returncode == 0, build.stderr


@pytest.fixture
def tiny(project: Project) -> Iterator[Callable[[str], str]]:
    """Makes images of a few bytes that stand for the real ones: what is saved and loaded, not what runs. Gone at the end."""
    made = []

    def make(content: str) -> str:
        name = f"{project.name}/{content}:1"
        imported = docker("import", "-", name, stdin=tar(content))
        made.append(imported.strip())
        return name

    yield make
    subprocess.run(["docker", "image", "rm", "--force", *made], capture_output=True, check=False)


def tar(content: str) -> bytes:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(content)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content.encode()))
    return out.getvalue()


def docker(*arguments: str, cwd: Path | None = None, stdin: bytes | None = None, timeout_s: float = 600) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, check=False, timeout=timeout_s, cwd=cwd, env=client_environment(), input=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def completion(url: str) -> int:
    reply = requests.post(f"{url}/v1/completions", json={"model": SELFTEST, "prompt": "Hello", "max_tokens": 4}, timeout=60)
    assert reply.status_code == 200, reply.text
    return int(reply.json()["usage"]["completion_tokens"])


def test_a_folder_moved_elsewhere_runs_with_docker_alone_and_then_with_receive(built: None, project: Project, tmp_path: Path) -> None:
    handoff = project.script("handoff", *ON_CPU, "--out", str(tmp_path / "sent"), "--json")
    assert handoff.returncode == 0, handoff.stderr
    assert [image["id"] for image in json.loads(handoff.stdout)["images"]] == [
        docker("image", "inspect", "--format", "{{.Id}}", name).strip() for name in ("vllm-bundle/gateway:3.0", "vllm-bundle/engine:cpu-0.32.0")]
    home = tmp_path / "another host" / "received"
    home.parent.mkdir()
    (tmp_path / "sent").rename(home)

    docker("compose", "--env-file", "handoff.env", "up", "--detach", "--wait", cwd=home)
    alone = project.containers()
    wait_until(lambda: requests.get(f"{project.url}/health", timeout=30).status_code == 200, deadline_s=10, what="the gateway has found the engine")
    assert {name: c.healthy for name, c in alone.items()} == {"gateway": True, "engine": True}
    assert completion(project.url) == 4
    address = docker("compose", "--env-file", "handoff.env", "port", "gateway", "8005", cwd=home).strip()
    assert completion(f"http://{address}") == 4
    docker("compose", "--env-file", "handoff.env", "down", cwd=home)
    assert project.containers() == {}

    received = project.script("receive", str(home), "--json", "--set", "GATEWAY_TIMEOUT_S=1800")
    assert received.returncode == 0, received.stderr
    answer = json.loads(received.stdout)
    assert (answer["folder"], answer["loaded"], answer["model"]) == (str(home), [], SELFTEST)
    assert completion(answer["base_url"].removesuffix("/v1")) == 4
    folder = docker("inspect", "--format", '{{index .Config.Labels "com.docker.compose.project.working_dir"}}', project.containers()["engine"].id)
    assert folder.strip() == str(home)
    again = json.loads(project.script("receive", str(home), "--json", "--set", "GATEWAY_TIMEOUT_S=1800").stdout)
    assert again["changed"] is False
    down = project.script("down")
    assert down.returncode == 0, down.stderr
    assert project.containers() == {}


def test_images_travel_in_the_archive_and_are_loaded_where_they_are_missing(project: Project, tiny: Callable[[str], str], tmp_path: Path) -> None:
    engine, gateway = tiny("engine"), tiny("gateway")
    names = [*ON_CPU, "--set", f"IMAGE_ENGINE={engine}", "--set", f"IMAGE_GATEWAY={gateway}"]
    handoff = project.script("handoff", *names, "--with-images", "--out", str(tmp_path / "h.tar.gz"), "--json")
    assert handoff.returncode == 0, handoff.stderr
    sent = {image["name"]: image["id"] for image in json.loads(handoff.stdout)["images"]}
    docker("image", "rm", engine, gateway)

    received = project.script("receive", str(tmp_path / "h.tar.gz"), "--no-start", "--json")
    assert received.returncode == 0, received.stderr
    assert sorted(json.loads(received.stdout)["loaded"]) == sorted(sent)
    assert {name: docker("image", "inspect", "--format", "{{.Id}}", name).strip() for name in sent} == sent
    again = project.script("receive", str(tmp_path / "h"), "--no-start", "--json")
    assert json.loads(again.stdout)["loaded"] == []
    assert json.loads(again.stdout)["command"].endswith(f"receive.py {tmp_path / 'h'} --set HOST_PROJECT={project.name}")

    (tmp_path / "h" / "images" / "engine.tar").write_bytes(b"other")
    tampered = project.script("receive", str(tmp_path / "h"), "--no-start")
    assert tampered.returncode == 5
    assert "images/engine.tar: changed" in tampered.stderr


def test_images_that_are_missing_or_others_are_named_and_nothing_starts(project: Project, tiny: Callable[[str], str], tmp_path: Path) -> None:
    engine, gateway, other = tiny("engine"), tiny("gateway"), tiny("other")
    names = [*ON_CPU, "--set", f"IMAGE_ENGINE={engine}", "--set", f"IMAGE_GATEWAY={gateway}"]
    assert project.script("handoff", *names, "--out", str(tmp_path / "h")).returncode == 0
    docker("image", "rm", gateway)
    docker("tag", other, engine)

    received = project.script("receive", str(tmp_path / "h"))
    assert received.returncode == 3
    assert f"{gateway}: not there" in received.stderr
    assert f"{engine}: another image" in received.stderr
    docker("image", "rm", engine)
    alone = subprocess.run(["docker", "compose", "--env-file", "handoff.env", "up", "--detach"], cwd=tmp_path / "h", capture_output=True, text=True,
                           check=False, timeout=120, env=client_environment())
    assert alone.returncode != 0
    assert "No such image" in alone.stderr

    again = project.script("handoff", *names, "--out", str(tmp_path / "again"))
    assert again.returncode == 3
    assert gateway in again.stderr
    assert "make build PROFILE=cpu" in again.stderr
    assert not (tmp_path / "again").exists()
