"""The env-file parser: what it accepts reads alike in all three readers, and everything else is an error with file and line."""

from pathlib import Path
from types import ModuleType

import pytest

from bundle.config import envfile
from support.entrypoint import load_entrypoint
from support.env_lines import BAD, GOOD


@pytest.fixture(scope="module")
def entrypoint() -> ModuleType:
    return load_entrypoint()


@pytest.mark.parametrize("line", GOOD)
def test_an_accepted_line_has_this_value(line: str) -> None:
    entries, problems = envfile.parse_text(line + "\n", "f.env")
    assert not problems
    assert [entry.value for entry in entries] == [GOOD[line]]


@pytest.mark.parametrize("line", BAD)
def test_a_refused_line_says_where_and_why(line: str) -> None:
    entries, problems = envfile.parse_text(f"FIRST=1\n{line}\nLAST=2\n", "f.env")
    assert [entry.key for entry in entries] == ["FIRST", "LAST"]
    assert len(problems) == 1
    assert str(problems[0]).startswith("f.env:2: ")
    assert BAD[line] in problems[0].message
    assert problems[0].severity == "error"


@pytest.mark.parametrize("line", GOOD)
def test_the_entrypoint_reads_an_accepted_line_alike(line: str, entrypoint: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "f.env"
    file.write_text(f"# comment\n\n{line}\n", encoding="utf-8")
    assert entrypoint.parse_env_file(file) == {line.partition("=")[0]: GOOD[line]}


@pytest.mark.parametrize("line", BAD)
def test_the_entrypoint_refuses_a_refused_line_too(line: str, entrypoint: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "f.env"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(entrypoint.Refused):
        entrypoint.parse_env_file(file)


def test_an_unusual_blank_after_the_equals_sign_is_refused() -> None:
    # python-dotenv drops a no-break space there, Compose does not.
    assert [str(problem) for problem in envfile.parse_text("A=\u00a01", "f.env")[1]] == ["f.env:1: A: a blank after the `=`; write A=1"]


def test_comments_and_empty_lines_count_as_lines() -> None:
    entries, problems = envfile.parse_text("# one\n\n#A=2\nB=3\n\t\nC=4", "f.env")
    assert [(entry.key, entry.origin) for entry in entries] == [("B", "f.env:4"), ("C", "f.env:6")]
    assert not problems


def test_a_key_that_is_set_twice_names_both_lines() -> None:
    entries, problems = envfile.parse_text("A=1\nB=2\nA=3\n", "f.env")
    assert [(entry.key, entry.value) for entry in entries] == [("A", "1"), ("B", "2")]
    assert [str(problem) for problem in problems] == ["f.env:3: A: set twice in this file (first in line 1); delete one of the two lines"]


def test_windows_line_ends_are_one_problem_of_the_file() -> None:
    entries, problems = envfile.parse_text("# c\r\nA=1\r\nB=2\r\n", "f.env")
    assert [entry.value for entry in entries] == ["1", "2"]
    assert [str(problem) for problem in problems] == ["f.env:1: has carriage returns; save the file with Unix line ends (sed -i 's/\\r//' f.env)"]


def test_a_file_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "f.env").write_bytes(b"A=1\nB=gr\xf6sse\n")
    assert [str(problem) for problem in envfile.parse(tmp_path / "f.env", root=tmp_path)[1]] == [
        "f.env:2: not UTF-8; save the file as UTF-8 without a byte-order mark"]


def test_a_file_that_is_not_there_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    assert [str(problem) for problem in envfile.parse(tmp_path / "none.env", root=tmp_path)[1]] == ["none.env: no such file"]
    assert [str(problem) for problem in envfile.parse(tmp_path, root=tmp_path / "x")[1]] == [f"{tmp_path}: cannot be read: Is a directory"]


@pytest.mark.parametrize("value", sorted({*GOOD.values()} - {""}))
def test_what_is_rendered_parses_to_the_same_value(value: str) -> None:
    text = envfile.render([envfile.Entry(key="A", value=value, file="x.env", line=3)])
    entries, problems = envfile.parse_text(text, "f.env")
    assert not problems
    assert [entry.value for entry in entries] == [value]
    assert text.startswith("# x.env:3\n")


@pytest.mark.parametrize("value", ["it's $5", "a\\\\b $1", '"a\' #b', "line\nline"])
def test_an_assignment_that_no_env_file_can_hold_is_refused(value: str) -> None:
    entry, problem = envfile.parse_assignment(f"A={value}", "--set")
    assert entry is None
    assert problem is not None
    assert str(problem).startswith("--set: A: an env file cannot hold this value")


def test_an_assignment_needs_no_quotes() -> None:
    entry, problem = envfile.parse_assignment("A=$x # y", "--set")
    assert problem is None
    assert entry is not None
    assert entry.value == "$x # y"
    assert entry.origin == "--set"


@pytest.mark.parametrize("text", ["A", "a=1", "=1"])
def test_an_assignment_has_the_form_of_a_line(text: str) -> None:
    entry, problem = envfile.parse_assignment(text, "--set")
    assert entry is None
    assert problem is not None
