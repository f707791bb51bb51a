"""The flag catalogue: numbers as the engine reads them, and what it takes for each flag."""

import json
from pathlib import Path

import pytest

import entrypoint
from bundle.base.errors import ConfigurationError
from bundle.config import catalogue
from bundle.config.catalogue import Flag


@pytest.fixture(scope="module")
def cuda() -> catalogue.Catalogue:
    return catalogue.load("cuda")


@pytest.mark.parametrize(("value", "kind", "number"), [
    ("8192", "int", 8192), ("-1", "int", -1), ("8K", "human_int", 8192), ("8k", "human_int", 8000), ("25.6k", "human_int", 25600),
    ("1G", "human_int", 2**30), ("0.92", "float", 0.92), ("1e-3", "float", 0.001),
])
def test_numbers_are_read_as_the_engine_reads_them(value: str, kind: str, number: float) -> None:
    assert catalogue.parse_number(value, kind) == number


@pytest.mark.parametrize(("value", "kind"), [
    ("8K", "int"), ("1.5", "int"), ("", "int"), ("1_000", "int"), ("٣", "int"), ("1.5K", "human_int"), ("8KB", "human_int"), ("K", "human_int"),
    ("nan", "float"), ("inf", "float"), ("0,9", "float"), ("", "float"),
])
def test_what_is_no_number_is_none(value: str, kind: str) -> None:
    assert catalogue.parse_number(value, kind) is None


def test_keys_and_flags_are_spelled_by_one_rule(cuda: catalogue.Catalogue) -> None:
    for name, flag in cuda.flags.items():
        assert catalogue.option(flag.key) == name
        assert cuda.find(flag.key) is flag


def test_every_flag_of_both_images_is_of_a_type_that_is_checked() -> None:
    for target in catalogue.TARGETS:
        for flag in catalogue.load(target).flags.values():
            assert flag.type in ("int", "float", "str", "bool", "json", "human_int"), flag.name
            assert isinstance(flag.fault("1"), str)


def test_every_default_that_is_a_value_is_accepted() -> None:
    # The engine's own defaults are the best list of values that must not be refused.
    for target in catalogue.TARGETS:
        for flag in catalogue.load(target).flags.values():
            if flag.default is not None and flag.type != "bool" and not flag.nargs and flag.default not in ("None", "", "[]", "{}") \
                    and not flag.default.endswith("()"):
                assert flag.fault(flag.default) == "", (flag.name, flag.default)


@pytest.mark.parametrize(("key", "value", "arguments"), [
    ("ENGINE_MAX_NUM_SEQS", "256", ("--max-num-seqs", "256")),
    ("ENGINE_ENFORCE_EAGER", "true", ("--enforce-eager",)),
    ("ENGINE_ENABLE_PREFIX_CACHING", "false", ("--no-enable-prefix-caching",)),
    ("ENGINE_CUDAGRAPH_CAPTURE_SIZES", "1 2 4", ("--cudagraph-capture-sizes", "1", "2", "4")),
    ("ENGINE_SERVED_MODEL_NAME", "a 'b c'", ("--served-model-name", "a", "b c")),
    ("ENGINE_SPECULATIVE_CONFIG", '{"method": "ngram"}', ("--speculative-config", '{"method": "ngram"}')),
    ("ENGINE_DEVICE_MEMORY_UTILIZATION", "0.9", ("--device-memory-utilization", "0.9")),
])
def test_a_value_becomes_these_arguments(cuda: catalogue.Catalogue, key: str, value: str, arguments: tuple[str, ...]) -> None:
    flag = cuda.find(key)
    assert flag
    assert flag.fault(value) == ""
    assert flag.arguments(key, value) == arguments


def test_ranges_are_named_in_the_message() -> None:
    flag = Flag(name="--x", type="float", exclusive_minimum=0, maximum=1)
    assert flag.fault("1") == ""
    assert flag.fault("0") == "0 is outside the engine's range (> 0 and ≤ 1)."
    assert flag.fault("1.01") == "1.01 is outside the engine's range (> 0 and ≤ 1)."
    half_open = Flag(name="--y", type="int", minimum=1, exclusive_maximum=8)
    assert half_open.fault("8") == "8 is outside the engine's range (≥ 1 and < 8)."
    assert half_open.fault("7") == ""


def test_words_stand_for_numbers_only_where_the_parser_takes_them() -> None:
    assert Flag(name="--x", type="human_int", words=("auto",)).fault("auto") == ""
    assert Flag(name="--x", type="int").fault("auto") == "'auto' is not a whole number."


def test_a_known_value_may_be_spelled_in_any_case_and_a_class_path_is_left_to_the_engine() -> None:
    flag = Flag(name="--x", type="str", known=("FLASH_ATTN", "TRITON_ATTN"))
    assert flag.fault("triton_attn") == ""
    assert flag.fault("my.module.Backend") == ""
    assert "Did you mean FLASH_ATTN?" in flag.fault("FLASH_ATN")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "1", "target": "cpu", "flags": [], "environment": []}'])
def test_a_broken_catalogue_is_named(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "docker" / "engine" / "catalogue"
    folder.mkdir(parents=True)
    (folder / "cpu.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"cpu\.json: not a flag catalogue"):
        catalogue.load("cpu", root=tmp_path)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cuda\.json: no flag catalogue for the cuda image"):
        catalogue.load("cuda", root=tmp_path)


def test_fields_that_a_later_writer_adds_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "docker" / "engine" / "catalogue"
    folder.mkdir(parents=True)
    flags = {"--x": {"type": "int", "minimum": 1, "since": "0.40.0"}}
    text = {"version": "1", "target": "cpu", "flags": flags, "environment": {"VLLM_X": "int"}, "engine": "vllm"}
    (folder / "cpu.json").write_text(json.dumps(text))
    loaded = catalogue.load("cpu", root=tmp_path)
    assert loaded.flags["--x"].minimum == 1
    assert loaded.environment == {"VLLM_X": "int"}


@pytest.mark.parametrize(("value", "expected"), [
    ('{"name": "a b", "path": "/x"} {"name": "c", "path": "/y"}', ['{"name": "a b", "path": "/x"}', '{"name": "c", "path": "/y"}']),
    ("a=/x 'b=/y z'", ["a=/x", "b=/y z"]), ('{"a": 1}  ', ['{"a": 1}'])])
def test_a_list_is_split_on_the_host_as_in_the_container(value: str, expected: list[str]) -> None:
    assert catalogue.elements(value) == entrypoint.elements(value) == expected


@pytest.mark.parametrize("value", ['[{"a": 1}]', "[1, 2]", 'a=/x {"a": 1}', '{"a": 1},{"b": 2}', '{"a": 1}{"b": 2}', '{"a": 1} b=/x', '{"a": ', "'a"])
def test_what_is_no_list_is_refused_on_the_host_as_in_the_container(value: str) -> None:
    for split in (catalogue.elements, entrypoint.elements):
        with pytest.raises(ValueError, match=r"\w"):
            split(value)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("VLLM_ENGINE_READY_TIMEOUT_S", "1800", ""), ("VLLM_ENGINE_READY_TIMEOUT_S", "1e3", "not a whole number"),
    ("VLLM_LOG_STATS_INTERVAL", "0.5", ""), ("VLLM_LOG_STATS_INTERVAL", "x", "not a number"),
    ("VLLM_FLOAT32_MATMUL_PRECISION", "HIGH", ""), ("VLLM_FLOAT32_MATMUL_PRECISION", "hgh", "Did you mean high?"),
    ("VLLM_CACHE_ROOT", "/x", ""), ("OMP_NUM_THREADS", "x", "")])
def test_a_variable_takes_what_the_engines_own_reader_takes(key: str, value: str, said: str) -> None:
    found = catalogue.load("cuda").variable_fault(key, value)
    assert said in found if said else found == ""
