"""Several models in one deployment: what each takes from where, and what is refused before anything changes."""

import shutil
from pathlib import Path

import pytest

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.choice import profile
from bundle.choice.profile import Wanted
from bundle.config import settings
from bundle.config.settings import Settings
from bundle.service import lifecycle
from bundle.service.deployment import Deployment
from support.verbs import call

EMBED = "IMAGE_TARGET=cuda\nIMAGE_ENGINE=vllm-bundle/engine:cuda-0.33.0\nMODEL_DIR={folder}\nENGINE_GPU_MEMORY_UTILIZATION=0.2\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle without the site.env that this host may have, with a profile `small` beside the shipped ones."""
    shutil.copytree(ROOT / "env", tmp_path / "env", ignore=shutil.ignore_patterns("site.env"))
    (tmp_path / "docker" / "engine").mkdir(parents=True)
    (tmp_path / "docker" / "engine" / "catalogue").symlink_to(ROOT / "docker" / "engine" / "catalogue")
    (tmp_path / "env" / "small.env").write_text(EMBED.format(folder=tmp_path / "bge"))
    return tmp_path


def load(root: Path, names: str, *sets: str) -> tuple[Settings, ...]:
    return profile.load_all(Wanted(profile=names, sets=sets), root=root, environ={})


def refused(root: Path, names: str, *sets: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        settings.require(load(root, names, *sets))
    return error.value.message


def append(root: Path, name: str, *lines: str) -> None:
    file = root / "env" / f"{name}.env"
    file.write_text(file.read_text() + "".join(f"{line}\n" for line in lines))


def test_what_lies_over_the_first_profile_is_the_first_models_and_what_is_shared_is_everybodys(root: Path) -> None:
    (root / "env" / "site.env").write_text("ENGINE_MAX_NUM_SEQS=9\nGATEWAY_TIMEOUT_S=77\n")
    first, second = load(root, "cpu,cpu-embed", "HOST_PROJECT=mine", "ENGINE_MAX_MODEL_LEN=512")
    settings.require([first, second])
    assert (first.value("ENGINE_MAX_NUM_SEQS"), second.value("ENGINE_MAX_NUM_SEQS")) == ("9", "16")
    assert (first.value("ENGINE_MAX_MODEL_LEN"), second.value("ENGINE_MAX_MODEL_LEN")) == ("512", "2048")
    assert [each.value("GATEWAY_TIMEOUT_S") for each in (first, second)] == ["77", "77"]
    assert [each.project for each in (first, second)] == ["mine", "mine"]


def test_one_name_for_two_models_is_refused_an_adapters_too(root: Path) -> None:
    assert "selftest-embed is served by profile cpu already (--set)" in refused(root, "cpu,cpu-embed", "ENGINE_SERVED_MODEL_NAME=a selftest-embed")
    said = refused(root, "cpu,cpu-embed", "ENGINE_ENABLE_LORA=true", f"MODEL_ADAPTERS_DIR={root}", "ENGINE_LORA_MODULES=selftest-embed=/adapters/x")
    assert "env/cpu-embed.env:9: ENGINE_SERVED_MODEL_NAME: selftest-embed is served by profile cpu already (--set)" in said


def test_a_card_that_is_overbooked_is_refused_with_the_sum(root: Path) -> None:
    said = refused(root, "throughput,small")
    assert "env/small.env:4: ENGINE_GPU_MEMORY_UTILIZATION: GPU 0 is overbooked: 0.93 (throughput) + 0.2 (small) = 1.13 of its memory" in said
    assert "env/throughput.env:" in said
    settings.require(load(root, "throughput,small", "ENGINE_GPU_MEMORY_UTILIZATION=0.8"))
    settings.require(load(root, "throughput,small", "HOST_GPUS=1"))
    assert "GPU 0 is overbooked" in refused(root, "throughput,small", "HOST_REPLICAS=2")
    assert "0.92 (throughput) + 0.2 (small) = 1.12" in refused(root, "throughput,small", "ENGINE_GPU_MEMORY_UTILIZATION="), "vLLM's default counts"


def test_auto_on_a_shared_card_is_refused(root: Path) -> None:
    assert "GPU 0 is shared by throughput and small, and auto (throughput) takes all" in refused(
        root, "throughput,small", "ENGINE_GPU_MEMORY_UTILIZATION=auto")


def test_cards_that_are_named_in_two_ways_are_refused(root: Path) -> None:
    assert "by index for one model and by UUID for another" in refused(root, "throughput,small", "HOST_GPUS=GPU-aa")
    append(root, "small", "HOST_GPUS=GPU-bb")
    settings.require(load(root, "throughput,small", "HOST_GPUS=GPU-aa"))
    assert "GPU GPU-bb is overbooked" in refused(root, "throughput,small", "HOST_GPUS=GPU-bb")


@pytest.mark.parametrize("line", ["GATEWAY_TIMEOUT_S=60", "HOST_PROJECT=other", "ENGINE_SHUTDOWN_TIMEOUT=5", "GATEWAY_BIND=0.0.0.0"])
def test_a_further_model_may_not_say_otherwise_of_what_is_shared(root: Path, line: str) -> None:
    append(root, "small", line)
    key = line.partition("=")[0]
    assert f"env/small.env:5: {key}: is of the whole deployment, where the first model (profile throughput) has" in refused(
        root, "throughput,small", "HOST_GPUS=1")


def test_what_agrees_may_be_said_twice(root: Path) -> None:
    append(root, "small", "GATEWAY_TIMEOUT_S=3600")
    settings.require(load(root, "throughput,small", "HOST_GPUS=1"))


def test_a_further_model_has_to_be_named(root: Path) -> None:
    assert "MODEL_DIR: names no model, as a further one must. Set MODEL_DIR in env/embed.env." in refused(root, "throughput,embed", "HOST_GPUS=1")


def test_no_deployment_has_more_models_than_the_gateway_has_backends(root: Path) -> None:
    assert "5 models; one deployment serves at most 4" in refused(root, "cpu,cpu-embed,cpu,cpu,cpu")


def test_verbs_for_one_model_say_so_and_change_nothing(tmp_path: Path) -> None:
    for verb, options in (("handoff", ("--out", str(tmp_path / "h"))), ("fit", ())):
        done = call(verb, "--profile", "cpu,cpu-embed", *options)
        assert done.returncode == 2, verb
        assert "cpu,cpu-embed are several models, and this verb takes one" in done.stderr
    flat = call("check", "--profile", "cpu,cpu-embed", "--set", "ENGINE_MODEL=/opt/bundle/selftest-model", "--flatten")
    assert (flat.returncode, flat.stdout) == (2, "")
    assert "--flatten and --deep take one model" in flat.stderr
    assert not (tmp_path / "h").exists()


def test_check_shows_every_model() -> None:
    done = call("check", "--profile", "cpu,cpu-embed", "--set", "ENGINE_MODEL=/opt/bundle/selftest-model")
    assert done.returncode == 0, done.stderr
    assert "# profile cpu: " in done.stdout
    assert "# profile cpu-embed: " in done.stdout


def test_a_roll_needs_a_replica_of_every_model(root: Path) -> None:
    with pytest.raises(ConfigurationError, match="of cpu-embed there is one only"):
        lifecycle.up(load(root, "cpu,cpu-embed", "HOST_REPLICAS=2"), roll=True)


def test_the_files_of_a_deployment_hold_each_model_and_the_routes(root: Path) -> None:
    (root / "adapters" / "sql").mkdir(parents=True)
    (root / "adapters" / "sql" / "adapter_config.json").write_text("{}")
    models = load(root, "cpu,cpu-embed", "ENGINE_ENABLE_LORA=true", f"MODEL_ADAPTERS_DIR={root / 'adapters'}",
                  "ENGINE_LORA_MODULES=sql=/adapters/sql", "ENGINE_SCHEDULING_POLICY=priority", "ENGINE_SERVED_MODEL_NAME=chat assistant")
    settings.require(models)
    texts = Deployment(project="p", state=root).texts(models)
    assert set(texts) == {"models", "env", "engine.env", "b.env", "b.engine.env"}
    assert texts["models"] == "chat engine priority\nassistant engine priority\nsql engine priority\nselftest-embed engine-b\n"
    assert f"GATEWAY_MODELS_FILE={root / 'p.models'}\n" in texts["env"]
    assert "GATEWAY_BACKENDS='engine engine-b'\n" in texts["env"] or "GATEWAY_BACKENDS=engine engine-b\n" in texts["env"]
    assert "ENGINE_RUNNER=pooling" in texts["b.engine.env"]
    assert "MONITORING_ENGINES=\n" in texts["env"]


def test_monitoring_knows_every_engine_of_every_model(root: Path) -> None:
    embed = root / "env" / "cpu-embed.env"
    embed.write_text(embed.read_text() + "HOST_REPLICAS=3\n")
    models = load(root, "cpu,cpu-embed", "HOST_MONITORING=on", "HOST_REPLICAS=2", "ENGINE_MODEL=/opt/bundle/selftest-model")
    settings.require(models)
    assert models[0].value("MONITORING_ENGINES") == "engine engine-2"
    texts = Deployment(project="p", state=root).texts(models)
    assert "MONITORING_ENGINES=engine engine-2 engine-b engine-b-2 engine-b-3\n" in texts["env"]


@pytest.mark.parametrize(("modules", "said"), [
    ("sql=/adapters/sql", "sql: {root}/adapters/sql holds no adapter (adapter_config.json"),
    ("sql", "'sql' is not NAME=PATH"), ("selftest=/adapters/sql", "selftest is the model's own name"),
    ('{"name": "a b", "path": "/adapters/x"}', "'a b' is not NAME=PATH, or its name has a blank"),
])
def test_an_adapter_that_cannot_be_served_is_refused(root: Path, modules: str, said: str) -> None:
    message = refused(root, "cpu", "ENGINE_ENABLE_LORA=true", f"MODEL_ADAPTERS_DIR={root / 'adapters'}", f"ENGINE_LORA_MODULES={modules}")
    assert said.format(root=root) in message


def test_an_adapter_needs_its_folder_mounted(root: Path) -> None:
    assert "nothing is mounted at /adapters" in refused(root, "cpu", "ENGINE_ENABLE_LORA=true", "ENGINE_LORA_MODULES=sql=/adapters/sql")
