"""The benchmark matrix: what is wrong in it is named by line, suites narrow, and every cell of the shipped one is a deployment without errors."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.bench import matrix
from bundle.bench.matrix import Cell, Matrix, Slo, Suite, Workload
from bundle.config import catalogue, settings, verdicts
from bundle.config.settings import Settings
from support import verbs

SHIPPED = matrix.load()
NINE = {record.name: record for record in verdicts.load() if record.seed.startswith("ENV ")}

GOOD = """workloads:
  chat:
    about: short
    load: {dataset-name: random, random-input-len: 230, random-output-len: 200, num-prompts: 64, max-concurrency: 8}
    slo: {ttft_ms_p99: 2000, itl_ms_p99: 99.5, success: 0.99, start: 4, most: 64}
  prefix:
    about: >-
      two
      lines
    load:
      dataset-name: prefix_repetition
      prefix-repetition-prefix-len: 256
      prefix-repetition-suffix-len: 16
      prefix-repetition-num-prefixes: 4
      prefix-repetition-output-len: 16
      num-prompts: 64
      request-rate: 0.50
      ignore-eos: true
cells:
  base:
    axis: profile
    about: the profile
    profile: throughput
  small:
    axis: sequences
    about: fewer
    profile: throughput
    set: [ENGINE_MAX_NUM_SEQS=8, 'ENGINE_COMPILATION_CONFIG={"cudagraph_mode": "NONE"}', CUDA_CACHE_MAXSIZE=]
  bits:
    axis: quantization
    about: more
    profile: throughput
    set: [ENGINE_QUANTIZATION=]
    outputs: may differ
suites:
  both:
    about: both
    control: base
    cells: [small, bits]
    workloads: [chat, prefix]
    rounds: 2
    repeats: 3
  one:
    about: one
    control: small
    cells: [base]
    workloads: [chat]
    rounds: 1
    repeats: 2
"""


def loaded(tmp_path: Path, text: str) -> Matrix:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return matrix.load(path)


@pytest.fixture
def good(tmp_path: Path) -> Matrix:
    return loaded(tmp_path, GOOD)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without the site.env that this host may have."""
    root = tmp_path_factory.mktemp("bundle")
    shutil.copytree(ROOT / "env", root / "env", ignore=shutil.ignore_patterns("site.env"))
    (root / "docker" / "engine").mkdir(parents=True)
    (root / "docker" / "engine" / "catalogue").symlink_to(ROOT / "docker" / "engine" / "catalogue")
    return root


def of(cell: Cell, root: Path) -> Settings:
    return settings.load(cell.profile, (), cell.sets, root=root, environ={})


def members(suite: Suite) -> tuple[Cell, ...]:
    return (suite.control, *suite.cells)


def test_a_matrix_is_read_as_it_is_written(good: Matrix) -> None:
    assert good.workloads["chat"] == Workload(
        name="chat", about="short", slo=Slo(ttft_ms_p99=2000, itl_ms_p99=99.5, success=0.99, start=4, most=64),
        load={"dataset-name": "random", "random-input-len": "230", "random-output-len": "200", "num-prompts": "64", "max-concurrency": "8"})
    assert good.workloads["prefix"].slo is None
    assert good.workloads["prefix"].about == "two lines"
    assert good.workloads["prefix"].load["request-rate"] == "0.50"
    assert good.workloads["prefix"].load["ignore-eos"] == "true"
    assert good.cells["small"] == Cell(
        name="small", axis="sequences", about="fewer", profile="throughput", outputs="same",
        sets=("ENGINE_MAX_NUM_SEQS=8", 'ENGINE_COMPILATION_CONFIG={"cudagraph_mode": "NONE"}', "CUDA_CACHE_MAXSIZE="))
    assert good.cells["bits"].outputs == "may differ"
    assert good.suites["both"] == Suite(
        name="both", about="both", control=good.cells["base"], cells=(good.cells["small"], good.cells["bits"]),
        workloads=(good.workloads["chat"], good.workloads["prefix"]), rounds=2, repeats=3)
    assert list(good.suites) == ["both", "one"]
    assert good.text_sha256 == hashlib.sha256(GOOD.encode()).hexdigest()


@pytest.mark.parametrize(("old", "new", "answer"), [
    # the file
    (GOOD[:GOOD.index("cells:")], "workloads:\n", "1: workloads: holds no workloads: write `name:` with its fields below"),
    (GOOD[:GOOD.index("cells:")], "workloads: {}\n", "1: workloads: holds no workloads: write `name:` with its fields below"),
    (GOOD[:GOOD.index("cells:")], "", "1: has no workloads"),
    ("suites:\n", "extra: 1\nsuites:\n", "35: extra: unknown. Known are: workloads, cells, suites"),
    ("    about: fewer\n", "    about:\n", "26: cells.small.about: needs a text"),
    ("    about: fewer\n", "    about: ~\n", "26: cells.small.about: needs a text"),
    ("  base:\n", "  Base:\n", "20: cells.Base: a name is lower-case letters, digits and dashes: files are named after it"),
    ("  bits:\n", "  together:\n",
     "29: cells.together: the bench itself makes a cell of this name, of what was faster each for itself. Give this one another"),
    # keys that YAML would drop without a word
    ("    rounds: 2\n", "    rounds: 2\n    rounds: 5\n", "42: suites.both.rounds: stands twice (first in line 41)"),
    ("  bits:\n", "  small:\n", "29: cells.small: stands twice (first in line 24)"),
    ("num-prompts: 64, max-concurrency: 8", "num-prompts: 64, num-prompts: 9, max-concurrency: 8",
     "4: workloads.chat.load.num-prompts: stands twice (first in line 4)"),
    # cells
    ("    profile: throughput\n  small", "    profil: throughput\n  small",
     "23: cells.base.profil: unknown. Did you mean profile? Known are: axis, about, profile, set, outputs"),
    ("    axis: sequences\n", "", "24: cells.small: has no axis"),
    ("    profile: throughput\n  small", "    profile: troughput\n  small",
     "23: cells.base.profile: no profile 'troughput' (env/troughput.env). Did you mean throughput?"),
    ("[ENGINE_QUANTIZATION=]", "ENGINE_QUANTIZATION=",
     "33: cells.bits.set: needs a list of texts: [a, b]. A text with ` #`, `: `, a comma or braces stands in single quotes"),
    ("[ENGINE_QUANTIZATION=]", "{ENGINE_QUANTIZATION: fp8}",
     "33: cells.bits.set: needs a list of texts: [a, b]. A text with ` #`, `: `, a comma or braces stands in single quotes"),
    ("[ENGINE_QUANTIZATION=]", "[]",
     "33: cells.bits.set: needs a list of texts: [a, b]. A text with ` #`, `: `, a comma or braces stands in single quotes"),
    ("[ENGINE_QUANTIZATION=]", "[ENGINE_QUANTIZATION]", "33: cells.bits.set: 'ENGINE_QUANTIZATION': not of the form KEY=VALUE"),
    ("[ENGINE_QUANTIZATION=]", "[engine_seed=1]", "33: cells.bits.set: 'engine_seed=1': keys are upper-case; write ENGINE_SEED"),
    ("[ENGINE_QUANTIZATION=]", "\n      - ENGINE_SEED=1\n      - ENGINE_SEED=2", "35: cells.bits.set: sets ENGINE_SEED twice"),
    ("outputs: may differ", "outputs: may-differ", "34: cells.bits.outputs: 'may-differ' is none of: same, may differ. Did you mean may differ?"),
    # suites
    ("cells: [small, bits]", "cells: [smal, bits]", "39: suites.both.cells: no cell 'smal'. Did you mean small?"),
    ("cells: [small, bits]", "cells: [small, bits, small]", "39: suites.both.cells: 'small' stands twice in this list"),
    ("cells: [small, bits]", "cells: [small, base]",
     "39: suites.both.cells: 'base' is the control: it is measured beside every cell, and stands in no list"),
    ("workloads: [chat]", "workloads: [chatt]", "47: suites.one.workloads: no workload 'chatt'. Did you mean chat?"),
    ("    control: small\n", "    control: smal\n", "45: suites.one.control: no cell 'smal'. Did you mean small?"),
    ("    control: small\n", "", "43: suites.one: has no control"),
    ("    rounds: 2\n", "    rounds: two\n", "41: suites.both.rounds: 'two' is not a whole number of at least 1."),
    ("    repeats: 3\n", "    repeats: 0\n", "42: suites.both.repeats: '0' is not a whole number of at least 1."),
    ("    repeats: 3\n", "    repeats: 2.5\n", "42: suites.both.repeats: '2.5' is not a whole number of at least 1."),
    ("    repeats: 2\n", "    repeats: 1\n",
     "49: suites.one.repeats: one load of each workload shows no spread, and nothing could be compared. Use 2 or more."),
    # workloads
    ("dataset-name: random,", "dataset-name: randm,",
     "4: workloads.chat.load.dataset-name: dataset-name is one of random, prefix_repetition. Did you mean random?"),
    ("dataset-name: random, ", "", "4: workloads.chat.load: dataset-name is one of random, prefix_repetition."),
    ("random-output-len: 200, ", "", "4: workloads.chat.load: has no random-output-len"),
    ("random-input-len: 230", "random-input-len: -1", "4: workloads.chat.load.random-input-len: '-1' is not a whole number of at least 1."),
    ("num-prompts: 64,", "random-range-ratio: 1.0, num-prompts: 64,",
     "4: workloads.chat.load.random-range-ratio: '1.0' is not a number from 0 to 0.99."),
    ("random-output-len: 200", "random-output-length: 200, random-output-len: 200",
     "4: workloads.chat.load.random-output-length: not an option that a workload may set. Did you mean random-output-len? It may set: dataset-name, "
     "num-prompts, max-concurrency, request-rate, burstiness, random-input-len, random-output-len, random-range-ratio, ignore-eos"),
    ("num-prompts: 64,", "seed: 1, num-prompts: 64,", "4: workloads.chat.load.seed: the bench sets this option itself. Delete the line."),
    ("num-prompts: 64,", "metric-percentiles: 99, num-prompts: 64,",
     "4: workloads.chat.load.metric-percentiles: the bench sets this option itself. Delete the line."),
    ("num-prompts: 64,", "--num-prompts: 9, num-prompts: 64,",
     "4: workloads.chat.load.--num-prompts: options stand without dashes. Use num-prompts."),
    ("num-prompts: 64,", "prefix-repetition-prefix-len: 9, num-prompts: 64,",
     "4: workloads.chat.load.prefix-repetition-prefix-len: an option of the dataset prefix_repetition, and this load is of random. Delete the line."),
    ("ignore-eos: true", "ignore-eos: yes", "18: workloads.prefix.load.ignore-eos: is a switch: true, or no line"),
    (", max-concurrency: 8", "",
     "4: workloads.chat.load: needs one of max-concurrency (closed loop: so many requests always under way) and request-rate (open loop: so many "
     "come in a second)"),
    ("max-concurrency: 8", "max-concurrency: 100",
     "4: workloads.chat.load: num-prompts=64 requests are never max-concurrency=100 at once. Use num-prompts=200 or more."),
    ("max-concurrency: 8", "max-concurrency: 8, burstiness: 0.5",
     "4: workloads.chat.load: burstiness is about when requests come: it needs request-rate"),
    ("      num-prompts: 64\n", "      num-prompts: 66\n",
     "10: workloads.prefix.load: num-prompts=66 is no multiple of prefix-repetition-num-prefixes=4, and vLLM would leave out the rest"),
    ("      request-rate: 0.50\n", "      request-rate: inf\n", "17: workloads.prefix.load.request-rate: 'inf' is not a number of at least 0.001."),
    # limits
    ("success: 0.99", "success: 99", "5: workloads.chat.slo.success: '99' is not a number from 0.001 to 1."),
    (", most: 64", "", "5: workloads.chat.slo: has no most"),
    ("most: 64", "most: 2", "5: workloads.chat.slo: the search would start at 4 and end at 2. Use a start that is not above `most`."),
    ("ttft_ms_p99", "ttft_p99", "5: workloads.chat.slo.ttft_p99: unknown. Did you mean ttft_ms_p99? Known are: ttft_ms_p99, itl_ms_p99, success, "
     "start, most"),
    ("max-concurrency: 8", "request-rate: 8",
     "5: workloads.chat.slo: the search decides how many requests are under way, and request-rate when they come. Delete one of the two."),
], ids=lambda value: value.strip()[:30])
def test_a_mistake_is_named_with_its_line(old: str, new: str, answer: str, tmp_path: Path) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    with pytest.raises(ConfigurationError) as refused:
        loaded(tmp_path, text)
    assert f"  {tmp_path}/x.yaml:{answer}" in refused.value.message.splitlines()


def test_every_mistake_comes_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = GOOD.replace("rounds: 2", "rounds: x").replace("axis: sequences", "axes: 1").replace("230", "many")
    with pytest.raises(ConfigurationError) as refused:
        loaded(tmp_path, text)
    first, *rest = refused.value.message.splitlines()
    assert first == f"4 errors in {tmp_path}/x.yaml"
    assert [re.sub(r".*x\.yaml:(\d+: [\w.-]+).*", r"\1", line) for line in rest] == [
        "4: workloads.chat.load.random-input-len", "24: cells.small", "25: cells.small.axes", "41: suites.both.rounds"]


@pytest.mark.parametrize(("text", "answer"), [
    ("", "an error in {file}\n  {file}:1: needs fields: workloads, cells, suites"),
    ("- a\n", "an error in {file}\n  {file}:1: needs fields: workloads, cells, suites"),
    ("cells:\n  a: [1\n", "{file}:3: not YAML: expected ',' or ']', but got '<stream end>'"),
    ("cells:\n\tbase:\n", "{file}:2: not YAML: found character '\\t' that cannot start any token"),
    ("a: 1\n---\nb: 2\n", "{file}:2: not YAML: but found another document"),
])
def test_a_file_that_is_no_matrix_is_named(text: str, answer: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        loaded(tmp_path, text)
    assert refused.value.message == answer.format(file=tmp_path / "x.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"x\.yaml: cannot be read: No such file"):
        matrix.load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"cells: \xff\n")
    with pytest.raises(ConfigurationError, match=r"x\.yaml: not UTF-8"):
        matrix.load(tmp_path / "x.yaml")


def test_a_suite_narrows_to_some_of_its_own_in_its_own_order(good: Matrix) -> None:
    def names(*, cells: tuple[str, ...] = (), workloads: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
        found = good.suite("both", cells=cells, workloads=workloads)
        assert (found.control, found.rounds, found.repeats) == (good.cells["base"], 2, 3)
        return [cell.name for cell in found.cells], [workload.name for workload in found.workloads]

    assert names() == (["small", "bits"], ["chat", "prefix"])
    assert names(cells=("bits",)) == (["bits"], ["chat", "prefix"])
    assert names(cells=("bits", "small"), workloads=("prefix", "chat")) == (["small", "bits"], ["chat", "prefix"])
    assert names(workloads=("prefix",)) == (["small", "bits"], ["prefix"])
    assert names(cells=("base",)) == ([], ["chat", "prefix"]), "the control alone: its starts are worth measuring too"


@pytest.mark.parametrize(("suite", "cells", "workloads", "message", "fix"), [
    ("bot", (), (), r"no suite 'bot' in .*x\.yaml\. Did you mean both\?", "suites: both, one"),
    ("one", ("bits",), (), "cell 'bits' is not in the suite one", "cells of the suite one: small, base"),
    ("both", ("smal",), (), r"cell 'smal' is not known\. Did you mean small\?", "cells of the suite both: base, small, bits"),
    ("one", (), ("prefix",), "workload 'prefix' is not in the suite one", "workloads of the suite one: chat"),
    ("both", (), ("chatt",), r"workload 'chatt' is not known\. Did you mean chat\?", "workloads of the suite both: chat, prefix"),
])
def test_a_choice_that_the_suite_does_not_have_is_refused(good: Matrix, suite: str, cells: tuple[str, ...], workloads: tuple[str, ...], message: str,
                                                          fix: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        good.suite(suite, cells=cells, workloads=workloads)
    assert refused.value.fix == fix


@pytest.mark.parametrize("cell", SHIPPED.cells.values(), ids=lambda cell: cell.name)
def test_a_shipped_cell_is_a_deployment_without_errors(cell: Cell, pristine: Path) -> None:
    found = of(cell, pristine)
    assert found.errors == ()
    # What `make check` warns of is what the cell is there to show.
    assert {problem.key for problem in found.warnings} == ({"ENGINE_GPU_MEMORY_UTILIZATION"} if cell.name.endswith("utilization-99") else set())


def test_everything_that_is_shipped_stands_in_a_suite() -> None:
    assert {cell.name for suite in SHIPPED.suites.values() for cell in members(suite)} == set(SHIPPED.cells)
    assert {workload.name for suite in SHIPPED.suites.values() for workload in suite.workloads} == set(SHIPPED.workloads)


@pytest.mark.parametrize("suite", SHIPPED.suites.values(), ids=lambda suite: suite.name)
def test_a_suite_stays_with_one_image_and_every_request_fits_every_cell(suite: Suite, pristine: Path) -> None:
    deployments = [of(cell, pristine) for cell in members(suite)]
    assert {one.image_engine for one in deployments} == {deployments[0].image_engine}
    limits = [catalogue.parse_number(one.value("ENGINE_MAX_MODEL_LEN"), "human_int") for one in deployments]
    shortest = min(limit for limit in limits if limit)
    for workload in suite.workloads:
        assert workload.longest < shortest, workload.name


def test_the_longest_request_is_prompt_and_answer_with_their_spread(good: Matrix) -> None:
    assert good.workloads["chat"].longest == 430
    assert good.workloads["prefix"].longest == 256 + 16 + 16
    spread = Workload(name="s", about="", slo=None, load={"random-input-len": "100", "random-output-len": "50", "random-range-ratio": "0.25"})
    assert spread.longest == 188


@pytest.mark.parametrize(("axis", "key", "values"), [
    ("memory utilization", "ENGINE_GPU_MEMORY_UTILIZATION", {"0.85", "0.92", "auto", "0.99"}),
    ("sequences", "ENGINE_MAX_NUM_SEQS", {"128", "256", "512", "1024"}),
    ("batched tokens", "ENGINE_MAX_NUM_BATCHED_TOKENS", {"2048", "8192", "16384", "65536"}),
    ("KV cache and caching", "ENGINE_KV_CACHE_DTYPE", {"fp8", "fp8_per_token_head"}),
    ("KV cache and caching", "ENGINE_ENABLE_PREFIX_CACHING", {"false"}),
    ("KV cache and caching", "ENGINE_KV_OFFLOADING_SIZE", {"8"}),
    ("quantization", "ENGINE_QUANTIZATION", {""}),
    ("attention backend", "ENGINE_ATTENTION_BACKEND", {"FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"}),
])
def test_the_suite_axes_holds_every_value_of_an_axis(axis: str, key: str, values: set[str]) -> None:
    cells = [cell for cell in SHIPPED.suites["axes"].cells if cell.axis == axis]
    assert {value for cell in cells for name, _, value in (text.partition("=") for text in cell.sets) if name == key} == values


def test_stock_is_vllms_own_defaults_written_out(pristine: Path) -> None:
    assert of(SHIPPED.cells["stock"], pristine).argv[3:] == (
        "--host", "0.0.0.0", "--port", "8000", "--shutdown-timeout", "30", "--middleware", "requestlog.RequestLog", "--disable-uvicorn-access-log",
        "--gpu-memory-utilization",
        "0.92", "--max-model-len", "16K", "--max-num-seqs", "256", "--max-num-batched-tokens", "2048", "--served-model-name", "selftest")
    assert "--max-model-len" not in of(SHIPPED.cells["stock-as-is"], pristine).argv


def test_each_of_the_nine_variables_is_alone_over_its_control(pristine: Path) -> None:
    suite = SHIPPED.suites["nine-variables"]
    control = of(suite.control, pristine)

    def added(cell: Cell) -> dict[str, str]:
        found = of(cell, pristine)
        assert found.argv == control.argv
        assert control.environment.items() <= found.environment.items()
        assert cell.outputs == "same"
        return dict(found.environment.items() - control.environment.items())

    cells = {cell.name: added(cell) for cell in suite.cells}
    assert not NINE.keys() & control.environment.keys()
    assert cells.pop("nine-all") == {name: record.value for name, record in NINE.items()}
    assert cells.pop("nine-real") == {name: record.value for name, record in NINE.items() if record.verdict != "inert"}
    assert cells == {name.lower().replace("_", "-"): {name: record.value} for name, record in NINE.items()}


def test_the_three_groups_of_the_seeds_expectations_are_the_nine_variables() -> None:
    groups = {"seed-memory-pool": "memory pool", "seed-tensor-cores": "tensor cores", "seed-blackwell": "Blackwell"}
    for cell, group in groups.items():
        assert SHIPPED.cells[cell].sets == tuple(f"{record.name}={record.value}" for record in NINE.values() if record.group == group)


def test_the_cell_that_is_commented_out_would_be_right(tmp_path: Path, pristine: Path) -> None:
    text = SHIPPED.path.read_text(encoding="utf-8")
    made = loaded(tmp_path, re.sub(r"^  # (quantization-int8:|  \w+: .*)$", r"  \1", text, flags=re.MULTILINE))
    assert made.cells.keys() - SHIPPED.cells.keys() == {"quantization-int8"}
    found = of(made.cells["quantization-int8"], pristine)
    assert found.errors == ()
    assert "--quantization" not in found.argv


def test_the_list_of_what_can_be_measured_fits_a_terminal() -> None:
    shown = verbs.call("bench", "--list")
    assert max(map(len, shown.stdout.splitlines())) <= 100
    known = matrix.load()
    for kind, names in (("suite", known.suites), ("cell", known.cells), ("workload", known.workloads)):
        assert [line.split()[1] for line in shown.stdout.splitlines() if line.startswith(f"{kind} ")] == list(names)
