"""The shipped env files: they have no errors, every line says why, and the nine pending optimizations stand in each GPU profile."""

import re
import shutil
from pathlib import Path

import pytest

from bundle import ROOT
from bundle.config import catalogue, envfile, profiles, settings, verdicts

FILES = [*(f"{name}.env" for name in ("base", *profiles.names())), "site.env.example"]
PENDING = [record for record in verdicts.load() if record.seed.startswith("ENV ")]


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    """A bundle without the site.env that this host may have."""
    shutil.copytree(ROOT / "env", tmp_path / "env", ignore=shutil.ignore_patterns("site.env"))
    (tmp_path / "docker" / "engine").mkdir(parents=True)
    (tmp_path / "docker" / "engine" / "catalogue").symlink_to(ROOT / "docker" / "engine" / "catalogue")
    return tmp_path


def test_these_profiles_are_shipped() -> None:
    assert {"cpu", "cpu-embed", "embed", "latency", "long-context", "memory", "pending", "seed", "speculative", "throughput"} <= set(profiles.names())


@pytest.mark.parametrize("profile", profiles.names())
def test_a_shipped_profile_has_no_problem_and_nothing_that_harms(profile: str, pristine: Path) -> None:
    loaded = settings.load(profile, root=pristine, environ={})
    assert loaded.problems == ()
    wrong = {verdict.entry.key: verdict.verdict for verdict in loaded.verdicts if verdict.verdict in ("inert", "harmful")}
    assert wrong == ({record.name: "inert" for record in PENDING if record.verdict == "inert"} if profile == "pending" else {})


def test_the_pending_profile_turns_all_nine_on_and_six_are_inert(pristine: Path) -> None:
    loaded = settings.load("pending", root=pristine, environ={})
    on = [verdict for verdict in loaded.verdicts if verdict.entry.key in {record.name for record in PENDING}]
    assert {verdict.entry.key: verdict.entry.value for verdict in on} == {record.name: record.value for record in PENDING}
    assert len([verdict for verdict in on if verdict.verdict == "inert"]) == 6
    assert loaded.argv[loaded.argv.index("--gpu-memory-utilization") + 1] == "auto"


def test_the_seeds_configuration_stands_in_its_profile_line_by_line() -> None:
    text = (ROOT / "env" / "seed.env").read_text(encoding="utf-8")
    for flag, value in re.findall(r'"(--[a-z-]+)"(?:, "([^"-][^"]*)")?', SEED):
        original = f'"{flag}", "{value}"' if value else f'"{flag}"'
        assert f"# {original}" in text or f"and {original}" in text, original


SEED = """"--model", "/app/models/hf/DeepSeek-R1-0528-Qwen3-8b", "--host", "0.0.0.0", "--port", "8005", "--tensor-parallel-size", "1",
"--gpu-memory-utilization", "0.85", "--max-model-len", "32768", "--max-num-seqs", "512", "--max-num-batched-tokens", "65536",
"--enable-chunked-prefill", "--enable-prefix-caching", "--disable-log-stats", "--trust-remote-code", "--download-dir", "/app/cache",
"--dtype", "auto", "--kv-cache-dtype", "auto", "--quantization", "fp8", "--tokenizer-mode", "auto\""""
"""The seed document's CMD."""


@pytest.mark.parametrize("name", FILES)
def test_every_value_stands_under_a_comment(name: str) -> None:
    lines = (ROOT / "env" / name).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"(# )?[A-Z][A-Z0-9_]*=", line):
            # Lines that belong together (an image and its name) may share one comment.
            above = next(other for other in reversed(lines[:number]) if not re.match(r"(# )?[A-Z][A-Z0-9_]*=", other))
            assert above.startswith("# "), f"{name}:{number + 1}"


@pytest.mark.parametrize("name", FILES)
def test_no_line_is_longer_than_a_screen(name: str) -> None:
    for number, line in enumerate((ROOT / "env" / name).read_text(encoding="utf-8").splitlines(), start=1):
        assert len(line) <= 150, f"{name}:{number}"


@pytest.mark.parametrize("name", FILES)
def test_a_value_that_is_commented_out_would_be_right(name: str, pristine: Path) -> None:
    text = (ROOT / "env" / name).read_text(encoding="utf-8")
    off = re.findall(r"^# ([A-Z][A-Z0-9_]*=.*)$", text, re.MULTILINE)
    # Example paths of site.env.example need not exist; its GATEWAY_BIND stands with the keys file that it needs.
    loaded = settings.load("cpu" if name == "site.env.example" else "throughput", (), off, root=pristine, environ={})
    assert loaded.errors == ()


@pytest.mark.parametrize("profile", [name for name in profiles.names() if name != "cpu" and "embed" not in name])
@pytest.mark.parametrize("record", PENDING, ids=lambda record: record.name)
def test_a_gpu_profile_holds_each_pending_optimization_on_or_off_with_the_reason(profile: str, record: verdicts.Record) -> None:
    text = (ROOT / "env" / f"{profile}.env").read_text(encoding="utf-8")
    section = text[text.index("#### Pending optimizations"):]
    comment, off = re.findall(rf"^# (.*)\n(# )?{re.escape(f'{record.name}={record.value}')}$", section, re.MULTILINE)[0]
    assert ("Read by nothing; use" in comment) == (record.verdict == "inert")
    assert bool(off) != (profile == "pending") or record.verdict == "neutral"


def test_site_env_stays_out_of_git() -> None:
    assert "/env/site.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_both_catalogues_know_what_base_sets() -> None:
    for entry in envfile.parse(ROOT / "env" / "base.env")[0]:
        if entry.key.startswith(catalogue.PREFIX):
            assert all(catalogue.load(target).find(entry.key) for target in catalogue.TARGETS), entry.key
