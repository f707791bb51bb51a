"""The records of the optimizations as a whole: valid, complete for the seed document, and found by any spelling of their names."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import optimizations as script
from bundle import ROOT, cli
from bundle.config import verdicts

SEED = (Path(__file__).parent / "data" / "seed.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "env" / "optimizations.schema.json").read_text(encoding="utf-8"))
RECORDS = verdicts.load()
RAW = yaml.safe_load((ROOT / "env" / "optimizations.yaml").read_text(encoding="utf-8"))
SUCCESSORS = ("PYTORCH_CUDA_ALLOC_CONF", "CUDA_CACHE_PATH", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
              "FLASHINFER_WORKSPACE_BASE", "--cudagraph-capture-sizes", "--max-cudagraph-capture-size", "--async-scheduling", "--kv-offloading-size",
              "--attention-backend", "VLLM_FLOAT32_MATMUL_PRECISION", "--performance-mode", "--speculative-config")


def valid(records: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(records))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run(script.main, words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_file_is_what_its_schema_says() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RAW, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_schema_and_the_code_know_the_same_fields_and_verdicts() -> None:
    fields = SCHEMA["items"]["properties"]
    assert set(fields) == set(verdicts.Record.__dataclass_fields__)
    assert tuple(fields["verdict"]["enum"]) == verdicts.VERDICTS


@pytest.mark.parametrize("change", [
    {"verdict": "great"}, {"name": "swap space"}, {"reference": "somewhere"}, {"measured": ""}, {"typo": "x"}, {"successor": "nothing"}, {"value": 8},
    {"scope": {"targets": ["cuda"], "gpus": ["all"], "engines": ["0.33.0"]}}, {"scope": {"targets": ["cuda"], "gpus": [], "engines": ["0.33.0"]}},
    {"scope": {"targets": ["cuda"], "gpus": ["ada"], "engines": ["newest"]}}, {"gone": ""}, {"read_by": "vLLM"}, {"readers": ["x.so"]},
    {"reason": "two\nlines"}, {"valid": {"minimum": 1}, "expects": "x"}, {"valid": {"pattern": "x"}},
], ids=str)
def test_the_schema_refuses_what_is_wrong_in_a_record(change: dict[str, Any]) -> None:
    good = copy.deepcopy(next(record for record in RAW if record["name"] == "--swap-space"))
    assert valid([good])
    assert not valid([{**good, **change}])


@pytest.mark.parametrize("field", SCHEMA["items"]["required"])
def test_the_schema_refuses_a_record_without(field: str) -> None:
    assert not valid([{key: value for key, value in RAW[0].items() if key != field}])


def test_a_variable_that_is_read_names_a_file_that_the_audit_can_look_into() -> None:
    assert not valid([{key: value for key, value in RAW[0].items() if key != "readers"}])


def test_the_seed_document_is_the_one_with_its_nine_variables_and_seventeen_flags() -> None:
    assert len(set(re.findall(r"^ENV (\w+)=", SEED, re.MULTILINE))) == 9
    assert len(re.findall(r'"--[a-z-]+"', SEED)) == 17


@pytest.mark.parametrize("name", sorted({*re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", SEED), *re.findall(r"^ENV (\w+)=", SEED, re.MULTILINE)}))
def test_no_setting_of_the_seed_is_without_a_record_that_quotes_it(name: str) -> None:
    assert any(record.name == name and name in record.seed for record in RECORDS)


@pytest.mark.parametrize("record", [record for record in RECORDS if record.seed], ids=lambda record: f"{record.name} {record.match}".strip())
def test_what_a_record_quotes_stands_in_the_seed(record: verdicts.Record) -> None:
    assert record.seed in SEED


@pytest.mark.parametrize("name", re.findall(r"^ENV (\w+)=", SEED, re.MULTILINE))
def test_a_pending_variable_is_judged_with_the_seeds_own_value(name: str) -> None:
    assert f"ENV {name}={next(record.value for record in RECORDS if record.name == name)}" in SEED.splitlines()


@pytest.mark.parametrize("name", SUCCESSORS)
def test_what_really_does_what_the_seed_hoped_for_has_a_record(name: str) -> None:
    assert any(record.name == name and record.verdict in ("effective", "neutral") for record in RECORDS)


@pytest.mark.parametrize("record", [record for record in RECORDS if record.successor.startswith("ENGINE_")], ids=lambda record: record.name)
def test_a_record_about_both_images_is_about_both_engines(record: verdicts.Record) -> None:
    assert ("0.32.0" in record.scope["engines"]) == ("cpu" in record.targets)


@pytest.mark.parametrize("name", ["--swap-space", "ENGINE_SWAP_SPACE", "swap-space", "--swap-space=4"])
def test_explain_takes_any_spelling_of_a_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", name)
    assert code == 0
    assert out.startswith("--swap-space=8: removed\n")
    assert "ENGINE_KV_OFFLOADING_SIZE=8" in out


def test_explain_shows_every_record_of_a_name_or_of_its_off_form(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "--no-enable-prefix-caching")
    assert (code, out.splitlines()[0]) == (0, "--enable-prefix-caching=true: neutral")
    code, out, _ = run(capsys, "explain", "gpu-memory-utilization", "--json")
    assert code == 0
    assert [(record["key"], record["value"], record["verdict"]) for record in json.loads(out)] == [
        ("ENGINE_GPU_MEMORY_UTILIZATION", "0.99", "harmful"), ("ENGINE_GPU_MEMORY_UTILIZATION", "0.93", "effective")]


@pytest.mark.parametrize(("typo", "meant"), [("CUDA_TENSOR_CORE", "CUDA_TENSOR_CORES"), ("--swap-spaces", "--swap-space"),
                                             ("ENGINE_SWAP_SPAC", "ENGINE_SWAP_SPACE"), ("cudnn_tensor_op", "CUDNN_TENSOR_OPS")])
def test_explain_names_the_nearest_record(typo: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "explain", typo)
    assert code == 2
    assert f"Did you mean {meant}?" in err


def test_explain_says_so_when_vllm_has_a_flag_that_was_never_judged(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "explain", "--seed")
    assert code == 2
    assert "vLLM 0.33.0 has it" in err


@pytest.mark.parametrize("words", [["explain"], ["explain", "--swap-space", "--task"], ["list", "--jso"], ["list", "--verdict", "great"], []])
def test_a_wrong_call_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize("verdict", verdicts.VERDICTS)
def test_list_shows_the_records_of_one_verdict_and_no_others(verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--verdict", verdict)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [[record.verdict, record.name] for record in RECORDS if record.verdict == verdict]
    code, out, _ = run(capsys, "list", "--verdict", verdict, "--json")
    assert {record["verdict"] for record in json.loads(out)} == {verdict}


def test_what_was_measured_is_what_the_published_run_says() -> None:
    said = re.compile(r"([a-z0-9-]+) on an .*: ([\d.]+) times the control's output tokens/s "
                      r"\(95 % interval ([\d.]+) to ([\d.]+), ([a-z ]+), nothing under ([\d.]+)% would show\).*; (reports/published/\S+)")
    measured = [record.measured for record in verdicts.load(ROOT) if record.measured != "not measured"]
    assert len(measured) >= 9
    for text in measured:
        found = said.fullmatch(text)
        assert found, text
        result = json.loads((ROOT / found[7] / "result.json").read_text(encoding="utf-8"))
        row = next(row for row in result["comparisons"] if (row["cell"], row["metric"]) == (found[1], "output_tokens_per_s"))
        assert found.group(2, 3, 4, 5, 6) == (f"{row['ratio']:.3f}", f"{row['low']:.3f}", f"{row['high']:.3f}", row["verdict"],
                                              f"{100 * row['smallest']:.1f}"), text
