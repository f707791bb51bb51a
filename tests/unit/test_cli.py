"""How every verb fails, and what none of them shows."""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bundle import ROOT, cli
from bundle.base import console
from bundle.service import lifecycle
from bundle.service.deployment import Deployment

PROXY = "http://operator:pa$$w0rd@proxy.test:3128"


def failing(error: BaseException) -> Callable[[Sequence[str]], int]:
    def main(_: Sequence[str]) -> int:
        raise error
    return main


def test_any_failure_of_the_system_is_exit_3_with_the_files_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: Sequence[str]) -> int:
        return len((tmp_path / "of another user").read_text())
    assert cli.run(main, []) == 3
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/of another user: No such file or directory")


def test_a_deployment_whose_files_are_another_users_is_exit_3_with_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vllm.lock").mkdir()  # root may open everything; nobody can open a folder as a file
    assert cli.run(lambda _: int(lifecycle.down(Deployment(state=tmp_path), volumes=False)), []) == 3
    assert f"{tmp_path}/vllm.lock: Is a directory" in capsys.readouterr().err


def test_a_failure_without_a_file_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(failing(ConnectionResetError(104, "Connection reset by peer")), []) == 3
    assert "Connection reset by peer" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_failure() -> None:
    assert cli.run(failing(KeyboardInterrupt()), []) == 130


@pytest.mark.parametrize("show", [console.result, console.note, console.warn, console.error, lambda text: console.error("x", text),
                                  lambda text: console.table(("a", "b"), [(text, 1)]), lambda text: console.emit_json({"a": [text]})])
def test_no_verb_shows_the_password_of_a_proxy(show: Callable[[str], object], capsys: pytest.CaptureFixture[str]) -> None:
    show(f"pip: cannot reach {PROXY} for 'x'")
    shown = capsys.readouterr()
    assert "w0rd" not in shown.out + shown.err
    assert "[REDACTED]@proxy.test:3128" in shown.out + shown.err


def test_what_is_no_password_stays(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit_json({"url": "http://127.0.0.1:8005/v1", "mail": "a@b", "image": "registry.test/x@sha256:12"})
    assert json.loads(capsys.readouterr().out) == {"url": "http://127.0.0.1:8005/v1", "mail": "a@b", "image": "registry.test/x@sha256:12"}


@pytest.mark.parametrize(("given", "expected"), [
    ("A_B=1", ["A_B=1"]), ("A=1 B=", ["A=1", "B="]), ("A=1 2 4  B=x", ["A=1 2 4", "B=x"]),
    ("""A={"n": "it's", "b": [1, 2]} B=/a b/c""", ["""A={"n": "it's", "b": [1, 2]}""", "B=/a b/c"])])
def test_makes_set_may_hold_blanks_quotes_and_braces(given: str, expected: list[str], tmp_path: Path) -> None:
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\nshift\nfor one; do printf "%s\\n" "$one"; done\n')
    show.chmod(0o755)
    made = subprocess.run(["make", "--no-print-directory", "check", f"PYTHON={show}", f"SET={given}"], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=30).stdout.splitlines()
    parser = cli.parser("")
    cli.add_sets(parser, "")
    assert parser.parse_args(made).sets == expected


def test_what_to_do_is_said_in_one_form() -> None:
    """`make verb`, which README begins with; a script is named only by its own usage, and by what repeats a run exactly."""
    mixed = [f"{path.relative_to(ROOT)}:{number}" for path in (ROOT / "scripts").rglob("*.py")
             for number, line in enumerate(path.read_text().splitlines(), start=1) if re.search(r"`python3? scripts/|fix=.*python3? ", line)]
    assert mixed == ["scripts/bundle/venv.py:3"]
