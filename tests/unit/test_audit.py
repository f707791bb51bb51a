"""The audit of an image: the search for whole words in files, its controls, and where records and image disagree."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import optimizations as script
from bundle import cli
from bundle.base.errors import CheckFailedError, PrerequisiteError
from bundle.config import catalogue, verdicts
from bundle.config.verdicts import Record
from bundle.tuning import audit, search
from bundle.tuning.search import Search

KNOWN = catalogue.load("cuda")
NOBODY = "NOBODY_READS_THIS"
TEXT = b"CUDA_A CUDA_AB xCUDA_A CUDA_A_ CUDA_A1 \x00CUDA_A\x00CUDA_AB1 -CUDA_A"


def record(name: str, verdict: str = "neutral", **fields: object) -> Record:
    """A record about the CUDA image."""
    about = {"group": "g", "reason": "r", "evidence": "e", "read_by": "x", "reference": "https://x", "measured": "not measured", "value": "1",
             "scope": {"targets": ["cuda"], "gpus": ["ada"], "engines": [KNOWN.version]}}
    return Record(name=name, verdict=verdict, **{**about, **fields})  # type: ignore[arg-type]


def found(**hits: list[str]) -> Search:
    return Search(files=1, bytes=1, hits={name: dict.fromkeys(paths, 1) for name, paths in hits.items()},
                  drivers=tuple({path for paths in hits.values() for path in paths if "libcuda.so." in path}))


def judged(about: Record, seen: Search) -> tuple[str, str]:
    """State and text of the only finding about one record."""
    (finding,) = audit.judge("image", KNOWN, seen, [about], NOBODY).findings
    return finding.state, finding.found


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in an image's place, in which every record finds its reader; the search in it is the real one."""
    folder = tmp_path / "image" / "site-packages"
    names = [(about.name, pattern) for about in audit.in_scope(verdicts.load(), KNOWN) for pattern in about.readers if pattern != audit.DRIVER]
    for name, pattern in (*names, *audit.CONTROLS["cuda"]):
        file = folder / pattern.replace("*", "9")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            stream.write(b"\x7fELF\0" + name.encode() + b"\0")
    monkeypatch.setattr(audit, "image_catalogue", lambda name: KNOWN)
    monkeypatch.setattr(search, "image", lambda name, names, limit_s: search.host(names, [str(folder)], limit_s))
    monkeypatch.setattr(search, "driver_libraries", list)
    return folder


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """A driver's library that holds what the records say that the driver reads."""
    names = [name for name, _ in audit.DRIVER_CONTROLS] + [about.name for about in verdicts.load() if audit.DRIVER in about.readers]
    file = tmp_path / "libcuda.so.1"
    file.write_bytes(b"\0".join(name.encode() for name in names))
    return file


def run(*words: str) -> int:
    return cli.run(script.main, ["audit", *words])


def test_a_name_counts_only_as_a_whole_word(tmp_path: Path) -> None:
    file = tmp_path / "a.so"
    file.write_bytes(TEXT)
    assert search.host(["CUDA_A", "CUDA_AB", "A"], [str(file)], 60).hits == {"CUDA_A": {str(file): 3}, "CUDA_AB": {str(file): 1}, "A": {}}


@pytest.mark.parametrize("text", [b"", b"CUDA_", b"xCUDA_A", b"CUDA_A_MB", b"cuda_a", b"C\0UDA_A", b"CUDA.A"])
def test_what_only_resembles_a_name_is_not_found(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(text)
    assert search.host(["CUDA_A"], [str(tmp_path)], 60).hits == {"CUDA_A": {}}


def test_each_file_is_read_once_and_bytecode_is_not(tmp_path: Path) -> None:
    (tmp_path / "a b.so").write_bytes(b"\0CUDA_A\0")
    (tmp_path / "link.so").symlink_to("a b.so")
    (tmp_path / "b.pyc").write_bytes(b"CUDA_A")
    (tmp_path / "libcuda.so.1").write_bytes(b"x")
    seen = search.host(["CUDA_A"], [str(tmp_path)], 60)
    assert seen == Search(files=2, bytes=9, drivers=(str(tmp_path / "libcuda.so.1"),), hits={"CUDA_A": {str(tmp_path / "a b.so"): 1}})


def test_a_library_that_is_named_by_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.580").write_bytes(b"CUDA_A")
    link = tmp_path / "libcuda.so.1"
    link.symlink_to("libcuda.so.580")
    assert search.host(["CUDA_A"], [str(link)], 60) == Search(files=1, bytes=6, drivers=(str(link),), hits={"CUDA_A": {str(link): 1}})


def test_a_search_ends_when_its_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(CheckFailedError, match=r"did not end in 0\.2 s"):
        search.host(["CUDA_A"], [str(tmp_path / "endless")], 0.2)


def test_the_driver_of_this_host_is_found_in_the_first_of_its_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in ("none", "one", "two")]
    monkeypatch.setattr(search, "DRIVER_FOLDERS", folders)
    assert search.driver_libraries() == []
    for folder in folders[1:]:
        folder.mkdir()
        (folder / "libcuda.so.1").write_bytes(b"x")
    assert search.driver_libraries() == [str(tmp_path / "one" / "libcuda.so.1")]


def test_a_library_that_is_not_there_is_named(image: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"/no/libcuda.so.1"):
        search.host(["CUDA_A"], ["/no/libcuda.so.1"], 60)
    assert run("--library", "/no/libcuda.so.1") == 3


def test_nothing_is_said_about_files_that_could_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grep").write_text("#!/bin/sh\necho 'grep: /lib/x.so: Permission denied' >&2\nexit 2\n")
    (tmp_path / "grep").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CheckFailedError, match=r"this host: not all of it could be searched, so nothing can be said: grep: /lib/x.so"):
        search.host(["CUDA_A"], [str(tmp_path)], 60)


def test_an_image_that_agrees_exits_0_and_leaves_only_the_driver_open(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["agrees"] is True
    assert {finding["name"] for finding in answer["findings"] if finding["state"] == "open"} == {
        about.name for about in verdicts.load() if audit.DRIVER in about.readers}
    assert {control["state"] for control in answer["controls"]} == {"ok"}
    assert len(answer["findings"]) + answer["out_of_scope"] == len(verdicts.load())


def test_with_a_drivers_library_nothing_stays_open(image: Path, driver: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--library", str(driver), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert {line["state"] for line in (*answer["findings"], *answer["controls"])} == {"ok"}
    assert answer["drivers"] == [str(driver)]


@pytest.mark.parametrize(("name", "file"), audit.CONTROLS["cuda"])
def test_a_search_that_misses_a_control_is_not_trusted(name: str, file: str, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = image / file.replace("*", "9")
    path.write_bytes(path.read_bytes().replace(name.encode(), b"x" * len(name)))
    assert run() == 5
    said = capsys.readouterr()
    assert f"the search itself is not to be trusted: {name}" in said.err
    assert [line.split()[3] for line in said.out.splitlines() if line.startswith(name) and file in line.split()] == ["fail"]


def test_a_driver_without_its_control_is_not_trusted(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"hollow")
    assert run("--library", str(tmp_path / "libcuda.so.1")) == 5
    assert "not to be trusted: CUDA_VISIBLE_DEVICES" in capsys.readouterr().err


def test_a_search_that_finds_what_is_nowhere_is_not_trusted(image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    everything: Callable[..., Search] = lambda name, names, limit_s: found(**{word: ["/lib/any.so"] for word in names})  # noqa: E731
    monkeypatch.setattr(search, "image", everything)
    assert run() == 5
    assert "NOBODY_READS_" in capsys.readouterr().err


def test_a_record_that_says_inert_of_a_name_that_is_read_exits_5(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image / "libnew.so").write_bytes(b"\0CUDA_TENSOR_CORES\0")
    assert run() == 5
    said = capsys.readouterr()
    assert "1 records of env/optimizations.yaml disagree" in said.err
    assert "CUDA_TENSOR_CORES 1" in said.err
    assert "libnew.so" in said.out


@pytest.mark.parametrize(("about", "seen", "state", "text"), [
    (record("CUDA_X", "inert"), found(), "ok", "in no file (driver not looked at)"),
    (record("CUDA_X", "inert"), found(CUDA_Y=["/d/libcuda.so.1"]), "ok", "in no file"),
    (record("CUDA_X", "inert"), found(CUDA_X=["/d/libcuda.so.1"]), "fail", "/d/libcuda.so.1"),
    (record("CUDA_X", readers=["libx.so"]), found(CUDA_X=["/a/libx.so"]), "ok", "/a/libx.so"),
    (record("CUDA_X", readers=["libx.so"]), found(CUDA_X=["/a/otherlibx.so"]), "fail", "not in libx.so; /a/otherlibx.so"),
    (record("CUDA_X", readers=["libx.so", audit.DRIVER]), found(CUDA_X=["/a/b.so"]), "fail", "not in libx.so; /a/b.so"),
    (record("CUDA_X", readers=[audit.DRIVER]), found(CUDA_Y=["/d/libcuda.so.1"]), "fail", f"not in {audit.DRIVER}; in no file"),
    (record("VLLM_NO_SUCH", readers=["envs.py"]), found(VLLM_NO_SUCH=["/vllm/envs.py"]), "fail", "not in vLLM's variables; /vllm/envs.py"),
    (record("VLLM_CACHE_ROOT", "removed"), found(), "fail", "among vLLM's variables; in no file"),
    (record("VLLM_USE_V1", "removed"), found(VLLM_USE_V1=["/a.py"]), "ok", "not among vLLM's variables; /a.py"),
    (record("--swap-space", "removed"), found(), "ok", "the parser does not know it"),
    (record("--swap-space"), found(), "fail", "the parser does not know it"),
    (record("--max-num-seqs", "removed"), found(), "fail", "the parser knows it as --max-num-seqs"),
    (record("--no-enable-prefix-caching", "removed"), found(), "fail", "the parser knows it as --enable-prefix-caching"),
    (record("--max-num-seqs", value="0"), found(), "fail", "0 is outside the engine's range (≥ 1)."),
    (record("--max-num-seqs", value="8"), found(), "ok", "the parser takes it"),
    (record("--swap-space", "removed", successor="ENGINE_NO_SUCH={value}"), found(), "fail",
     "its successor ENGINE_NO_SUCH=1: the parser does not know it"),
], ids=lambda value: value.name if isinstance(value, Record) else None)
def test_record_and_image_are_compared(about: Record, seen: Search, state: str, text: str) -> None:
    assert judged(about, seen) == (state, text)


def test_readers_and_libraries_are_named_before_files_that_only_mention_a_name() -> None:
    seen = found(CUDA_X=[f"/s/site-packages/{name}" for name in ("a.h", "b.py", "c.py", "d.py", "lib.so.1", "reads.py")])
    assert judged(record("CUDA_X", readers=["reads.py"]), seen) == ("ok", "reads.py, lib.so.1, a.h, b.py and 2 more")


@pytest.mark.parametrize("scope", [{"targets": ["cpu"]}, {"engines": ["0.1.0"]}])
def test_a_record_about_another_image_says_nothing_about_this_one(scope: dict[str, list[str]]) -> None:
    about = record("CUDA_X", "inert")
    other = replace(about, scope={**about.scope, **scope})
    answer = audit.judge("image", KNOWN, found(CUDA_X=["/a.so"]), [other], NOBODY)
    assert (answer.findings, answer.out_of_scope) == ((), 1)
    with pytest.raises(CheckFailedError, match=f"no record is about the cuda image with vLLM {KNOWN.version}"):
        audit.require(answer)
