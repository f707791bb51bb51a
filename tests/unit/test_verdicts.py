"""The records of the optimizations: complete, consistent with the flag catalogues, and turned on only by what a profile sets."""

import re
from pathlib import Path

import pytest

from bundle.base.errors import ConfigurationError
from bundle.config import catalogue, envfile, verdicts
from bundle.config.envfile import Entry
from bundle.config.keys import HOST_KEYS
from bundle.config.rules import Rules

SEED_VARIABLES = {
    "CUDA_CACHE_MAXSIZE": "neutral", "CUDA_ALLOCATOR_BACKEND": "inert", "CUDA_MALLOC_ASYNC_POOLS": "inert", "CUDA_TENSOR_CORES": "inert",
    "CUBLAS_WORKSPACE_CONFIG": "neutral", "CUDNN_TENSOR_OPS": "inert", "CUDA_L2_PERSISTING_SIZE": "inert", "CUDA_DEVICE_MAX_CONNECTIONS": "neutral",
    "CUDA_COPY_SPLIT_THRESHOLD": "inert",
}
REMOVED_FLAGS = ("--swap-space", "--max-seq-len-to-capture", "--num-scheduler-steps", "--speculative-model", "--num-speculative-tokens",
                 "--quantized-kv-cache", "--preemption-mode", "--calculate-kv-scales", "--cuda-graph-sizes", "--device", "--use-v2-block-manager",
                 "--guided-decoding-backend", "--rope-scaling", "--task")

RECORDS = verdicts.load()
GONE = [record for record in RECORDS if record.verdict == "removed"]


def entries(**values: str) -> dict[str, Entry]:
    return {key: Entry(key=key, value=value, file="x.env", line=1) for key, value in values.items()}


def test_each_of_the_nine_seed_variables_has_one_record_with_its_verdict() -> None:
    assert {record.name: record.verdict for record in RECORDS if record.seed.startswith("ENV ")} == SEED_VARIABLES


@pytest.mark.parametrize("name", REMOVED_FLAGS)
def test_a_removed_flag_has_a_record(name: str) -> None:
    assert [record.name for record in GONE].count(name) == 1


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.name} {record.match}".strip())
def test_a_record_says_all_that_an_operator_needs(record: verdicts.Record) -> None:
    for field in ("group", "value", "read_by", "reason", "evidence", "risk", "measured", "reference"):
        assert getattr(record, field), field
    assert record.reference.startswith("https://")
    assert set(record.scope) == {"targets", "gpus", "engines"}
    assert set(record.targets) <= set(catalogue.TARGETS)
    assert (record.verdict == "removed") == bool(record.gone)
    assert (record.verdict in ("inert", "removed")) == (record.read_by == "nothing")
    assert "\n" not in record.reason
    assert record.verdict == "removed" or record.applies(record.value)
    assert record.fault(record.value) == ""


@pytest.mark.parametrize("record", GONE, ids=lambda record: record.name)
def test_what_is_gone_is_in_no_image_of_its_scope(record: verdicts.Record) -> None:
    for target in record.targets:
        known = catalogue.load(target)
        assert known.find(record.key) is None
        assert record.name not in known.environment


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.name} {record.match}".strip())
def test_what_is_not_gone_is_known_to_the_cuda_image(record: verdicts.Record) -> None:
    if record.name.startswith("--"):
        assert (catalogue.load("cuda").find(record.key) is None) == (record.verdict == "removed")
    elif record.name.startswith("VLLM_"):
        assert (record.name in catalogue.load("cuda").environment) == (record.verdict != "removed")


@pytest.mark.parametrize("record", [record for record in RECORDS if record.successor], ids=lambda record: f"{record.name} {record.match}".strip())
def test_a_successor_is_a_line_that_can_be_pasted(record: verdicts.Record) -> None:
    found, problems = envfile.parse_text(record.use(record.value), "x.env")
    assert not problems
    assert len(found) == 1
    assert Rules(catalogue=catalogue.load("cuda"), records=RECORDS).fault(found[0]) == ""
    assert found[0].key in HOST_KEYS or verdicts.removed(RECORDS).get(found[0].key) is None


def test_no_two_records_speak_of_the_same_value() -> None:
    # The first record that applies counts: an earlier one with a pattern may narrow a later one, never repeat it.
    for record in RECORDS:
        first = next(other for other in RECORDS if other.key == record.key and other.applies(record.value))
        assert first is record, record.name


def test_only_what_is_set_is_turned_on_and_in_the_order_of_the_files() -> None:
    on = verdicts.turned_on(entries(CUDA_TENSOR_CORES="1", ENGINE_ENFORCE_EAGER="false", CUDNN_TENSOR_OPS="", CUDA_CACHE_MAXSIZE="2147483648",
                                    ENGINE_SWAP_SPACE="4"), RECORDS, "cuda")
    assert [(verdict.entry.key, verdict.verdict) for verdict in on] == [("CUDA_TENSOR_CORES", "inert"), ("CUDA_CACHE_MAXSIZE", "neutral")]
    assert on[0].successor == "VLLM_FLOAT32_MATMUL_PRECISION=high"


def test_a_gpu_variable_is_inert_in_the_cpu_image() -> None:
    (verdict,) = verdicts.turned_on(entries(CUDA_CACHE_MAXSIZE="2147483648"), RECORDS, "cpu")
    assert (verdict.verdict, verdict.reason) == ("inert", "nothing in the cpu image reads it")


@pytest.mark.parametrize(("value", "verdict"), [("backend:cudaMallocAsync", "harmful"), ("expandable_segments:True", "effective")])
def test_a_verdict_may_depend_on_the_value(value: str, verdict: str) -> None:
    assert [on.verdict for on in verdicts.turned_on(entries(PYTORCH_CUDA_ALLOC_CONF=value), RECORDS, "cuda")] == [verdict]


@pytest.mark.parametrize(("value", "verdict"), [("0.99", "harmful"), ("0.985", "harmful"), ("1", "harmful"), ("1.0", "harmful"),
                                                ("0.98", "effective"), ("0.9", "effective"), ("0.85", "effective")])
def test_a_share_of_memory_that_cannot_start_is_harmful(value: str, verdict: str) -> None:
    assert [on.verdict for on in verdicts.turned_on(entries(ENGINE_GPU_MEMORY_UTILIZATION=value), RECORDS, "cuda")] == [verdict]


@pytest.mark.parametrize(("text", "message"), [
    ("- {name: X}", "cannot be used"), ("- [", "cannot be used"), ("a: b", "cannot be used"),
    ("- {name: X, group: g, verdict: great, reason: r, evidence: e, read_by: n, reference: r, scope: {}, measured: m}", "verdict great is none of"),
])
def test_a_broken_file_of_records_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "optimizations.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=f"optimizations.yaml: {re.escape(message)}"):
        verdicts.load(tmp_path)
