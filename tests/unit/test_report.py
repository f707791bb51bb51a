"""The archive for a bug report holds what every verb says, and no secret of any kind that is planted."""

import sys
import tarfile
from pathlib import Path

import pytest

from bundle.observe import dashboards, report
from bundle.service import lifecycle
from support.fakedeployment import World

PLANTED = {"the key": "sk-canary-0123456789abcdef", "a key of no usual form": "7d1f0c9aa1b2c3d4e5", "the webhook": "https://hooks.test/services/T0/B0/s3cr3t",
           "a bearer": "Authorization: Bearer abcdef0123456789", "a hub token": "hf_AbCdEfGhIjKlMnOp", "a proxy": "http://u:pa55w0rd@proxy.test:3128"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "keys").write_text(f"# a comment\n{PLANTED['the key']} alice\n{PLANTED['a key of no usual form']} bob metrics-only\n")
    (tmp_path / "hook").write_text(PLANTED["the webhook"] + "\n")
    world = World(tmp_path)
    lifecycle.apply(world.deployment(), world.env(GATEWAY_API_KEYS_FILE=str(tmp_path / "keys"), MONITORING_WEBHOOK_FILE=str(tmp_path / "hook"),
                                                  HTTPS_PROXY=PLANTED["a proxy"]))
    return world


def test_the_archive_has_every_part_and_nothing_that_was_planted(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def said(*command: str) -> str:
        asked.append(command)
        return "\n".join(PLANTED.values())

    monkeypatch.setattr(report, "_said", said)
    out = tmp_path / "r.tar.gz"
    names = report.write(world.deployment(), out)
    assert {"versions.json", "doctor.txt", "check.txt", "fit.txt", "status.txt", "top.txt", "env/fake.env", "logs/engine.log", "logs/gateway.log",
            "metrics/engine.txt"} <= set(names)
    assert out.stat().st_mode & 0o077 == 0
    of_it = {Path(words[1]).stem: words[2:] for words in asked if words[0] == sys.executable}
    brought_up, runs = ("--env-file", str(world.deployment().env_file), "--json"), ("--project", "fake", "--json")
    assert of_it == {"doctor": brought_up, "check": brought_up, "fit": brought_up, "status": runs, "top": runs}, "not of this host's own choice"
    with tarfile.open(out) as archive:
        texts = {member.name: (archive.extractfile(member) or pytest.fail(member.name)).read().decode() for member in archive.getmembers()}
    assert len(texts) == len(names)
    assert "[REDACTED]" in texts["r/doctor.txt"]
    for name, text in texts.items():
        for what in ("canary", "7d1f0c9aa1b2c3d4e5", "s3cr3t", "abcdef0123456789", "hf_AbC", "pa55w0rd"):
            assert what not in text, f"{what} in {name}"


@pytest.mark.parametrize("text", ["request sk-", "max_tokens=4096", "hf_hub 1.0", "http://127.0.0.1:8005/v1", "task-force-of-many-words"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert report.redacted(text, []) == text


def test_the_dashboards_are_those_that_the_panels_make() -> None:
    there = {path.name: path.read_text() for path in dashboards.FOLDER.glob("*.json")}
    assert there == dashboards.rendered(), "python3 scripts/bundle/observe/dashboards.py writes them"
