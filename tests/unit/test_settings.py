"""Settings: layers, derivations, the mapping to a command line, and one exact message for each bad input."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from bundle import ROOT
from bundle.base.errors import ConfigurationError
from bundle.choice import profile
from bundle.choice.profile import Wanted
from bundle.config import catalogue, profiles, settings, verdicts
from bundle.config.envfile import Entry
from bundle.config.keys import DERIVED
from bundle.config.rules import Rules
from bundle.config.settings import Settings
from support.bad_inputs import BAD, Bad
from support.entrypoint import load_entrypoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle with the shipped env files and catalogues, and no site.env."""
    shutil.copytree(ROOT / "env", tmp_path / "env", ignore=shutil.ignore_patterns("site.env"))
    (tmp_path / "docker" / "engine").mkdir(parents=True)
    (tmp_path / "docker" / "engine" / "catalogue").symlink_to(ROOT / "docker" / "engine" / "catalogue")
    return tmp_path


@pytest.fixture(scope="module")
def entrypoint() -> ModuleType:
    return load_entrypoint()


def load(root: Path, profile: str | None = "cpu", *sets: str, files: tuple[Path, ...] = (), environ: dict[str, str] | None = None) -> Settings:
    return settings.load(profile, files, sets, root=root, environ=environ or {})


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_input_has_one_exact_answer(bad: Bad, root: Path) -> None:
    (root / "x.env").write_text(bad.text + "\n", encoding="utf-8")
    found = load(root, bad.profile, files=(root / "x.env",))
    assert [(p.line if p.file == "x.env" else -1, p.key, p.severity, p.message) for p in found.problems] == list(bad.problems)
    if found.errors:
        with pytest.raises(ConfigurationError) as refused:
            found.require()
        assert refused.value.exit_code == 2
        for line, key, severity, message in bad.problems:
            assert (f"  x.env:{line}: {key}: {message}" in refused.value.message) == (severity == "error")
    else:
        found.require()


def test_a_removed_flag_answers_as_the_design_shows(root: Path) -> None:
    (root / "env" / "site.env").write_text("#\n" * 6 + "ENGINE_SWAP_SPACE=8\n")
    assert [str(problem) for problem in load(root, "throughput").problems] == [
        "env/site.env:7: ENGINE_SWAP_SPACE: vLLM 0.33.0 has no --swap-space (removed in 0.18.0). Use ENGINE_KV_OFFLOADING_SIZE=8."]


def test_all_problems_come_at_once_in_the_order_of_files_and_lines(root: Path) -> None:
    (root / "env" / "cpu.env").write_text((root / "env" / "cpu.env").read_text() + "GATEWAY_PORT=x\n")
    (root / "env" / "site.env").write_text("ENGINE_NOPE=1\nexport A=1\nENGINE_SEED=x\n")
    (root / "a.env").write_text("ENGINE_DTYPE=x\nHOST_STOP_GRACE_S=1\n")
    found = load(root, "cpu", "ENGINE_BLOCK_SIZE=x", files=(root / "a.env", root / "gone.env"))
    assert [(p.file, p.key) for p in found.problems] == [
        ("env/cpu.env", "GATEWAY_PORT"), ("env/site.env", "ENGINE_NOPE"), ("env/site.env", ""), ("env/site.env", "ENGINE_SEED"),
        ("a.env", "ENGINE_DTYPE"), ("a.env", "HOST_STOP_GRACE_S"), ("gone.env", ""), ("--set", "ENGINE_BLOCK_SIZE")]
    with pytest.raises(ConfigurationError, match=r"^8 errors in the settings \(profile cpu\)"):
        found.require()


def test_only_the_value_that_counts_is_checked(root: Path) -> None:
    (root / "a.env").write_text("ENGINE_SEED=x\n")
    assert load(root, "cpu", "ENGINE_SEED=1", files=(root / "a.env",)).problems == ()
    assert load(root, "cpu", "ENGINE_SEED=", files=(root / "a.env",)).problems == ()
    assert load(root, "cpu", "ENGINE_SWAP_SPACE=").problems == ()


def test_each_layer_lies_over_the_one_before(root: Path) -> None:
    def seed() -> tuple[str, str]:
        found = load(root, "cpu", *sets, files=files)
        return found.value("ENGINE_SEED"), found.origin["ENGINE_SEED"]

    files: tuple[Path, ...] = ()
    sets: tuple[str, ...] = ()
    (root / "env" / "base.env").write_text((root / "env" / "base.env").read_text() + "ENGINE_SEED=1\n")
    assert seed() == ("1", f"env/base.env:{len((root / 'env' / 'base.env').read_text().splitlines())}")
    (root / "env" / "cpu.env").write_text("ENGINE_SEED=2\n" + (root / "env" / "cpu.env").read_text())
    assert seed() == ("2", "env/cpu.env:1")
    (root / "env" / "site.env").write_text("\nENGINE_SEED=3\n")
    assert seed() == ("3", "env/site.env:2")
    (root / "a.env").write_text("ENGINE_SEED=4\n")
    (root / "b.env").write_text("ENGINE_SEED=5\n")
    files = (root / "a.env", root / "b.env")
    assert seed() == ("5", "b.env:1")
    sets = ("ENGINE_SEED=6",)
    assert seed() == ("6", "--set")


def test_an_empty_value_is_not_set(root: Path) -> None:
    found = load(root, "cpu", "ENGINE_ENFORCE_EAGER=", "VLLM_CPU_KVCACHE_SPACE=")
    assert "--enforce-eager" not in found.argv
    assert "VLLM_CPU_KVCACHE_SPACE" not in found.environment
    assert "ENGINE_ENFORCE_EAGER" not in found.origin
    assert found.value("ENGINE_ENFORCE_EAGER") == ""


def test_flags_follow_the_model_in_the_order_of_the_files(root: Path) -> None:
    (root / "env" / "base.env").write_text((root / "env" / "base.env").read_text() + "ENGINE_SEED=1\n")
    found = load(root, "cpu", "ENGINE_MODEL=/m", "ENGINE_STREAM_INTERVAL=2", "ENGINE_SEED=7")
    flags = [word for word in found.argv if word.startswith("--")]
    assert found.argv[:3] == ("vllm", "serve", "/m")
    assert flags == ["--quantization", "--host", "--port", "--shutdown-timeout", "--middleware", "--disable-uvicorn-access-log", "--seed",
                     "--enforce-eager", "--dtype", "--max-model-len",
                     "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization", "--stream-interval", "--served-model-name"]
    assert found.argv[found.argv.index("--seed") + 1] == "7"


def test_the_engine_gets_its_environment_and_nothing_of_the_bundle(root: Path) -> None:
    found = load(root, "cpu", "OMP_NUM_THREADS=2", "HF_HUB_OFFLINE=1")
    assert dict(found.environment) == {
        "VLLM_MAX_N_SEQUENCES": "128", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def test_a_refused_secret_is_in_nothing_that_is_shown(root: Path) -> None:
    found = load(root, "cpu", "ENGINE_API_KEY=canary-1", "HF_TOKEN=canary-2", "VLLM_API_KEY=canary-3")
    assert len(found.errors) == 3
    assert "canary" not in repr((found.argv, found.environment, found.origin, found.problems))


@pytest.mark.parametrize(("sets", "model", "name", "origin"), [
    ((), "/opt/bundle/selftest-model", "selftest", "derived: MODEL_DIR is not set"),
    (("MODEL_DIR=/srv/models/Qwen3-8B",), "/model", "Qwen3-8B", "derived: MODEL_DIR is set (--set)"),
    (("MODEL_DIR=models/My Model (v2)/",), "/model", "My-Model--v2-", "derived: MODEL_DIR is set (--set)"),
    (("ENGINE_MODEL=Qwen/Qwen3-0.6B", "HOST_ENGINE_OFFLINE=false"), "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "--set"),
    (("ENGINE_MODEL=/cache/somewhere/m1",), "/cache/somewhere/m1", "m1", "--set"),
    (("MODEL_DIR=/srv/m", "ENGINE_SERVED_MODEL_NAME=one two"), "/model", "one", "derived: MODEL_DIR is set (--set)"),
])
def test_the_model_and_its_name_are_derived_where_no_file_sets_them(sets: tuple[str, ...], model: str, name: str, origin: str, root: Path) -> None:
    found = load(root, "cpu", *sets)
    found.require()
    assert found.argv[2] == model
    assert found.served_model_name == name
    assert found.origin["ENGINE_MODEL"] == origin


def test_paths_start_at_the_bundle_and_know_the_home_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = load(root, "cpu", "MODEL_DIR=models/m", "GATEWAY_API_KEYS_FILE=~/keys", "GATEWAY_TLS_CERT_FILE=/etc/tls.pem")
    assert (found.model_dir, found.api_keys_file, found.tls_cert_file) == (root / "models" / "m", Path("/home/me/keys"), Path("/etc/tls.pem"))
    nothing = load(root)
    assert (nothing.model_dir, nothing.api_keys_file, nothing.tls_cert_file) == (None, None, None)


def test_build_knobs_may_come_from_the_environment_under_every_file_but_base(root: Path) -> None:
    environ = {"BASE_IMAGE": "debian:trixie", "HOST_SETUP": "never", "WHEELHOUSE": "", "GATEWAY_PORT": "1", "ENGINE_SEED": "1"}
    found = load(root, environ=environ)
    assert (found.value("BASE_IMAGE"), found.origin["BASE_IMAGE"]) == ("debian:trixie", "environment")
    assert found.value("HOST_SETUP") == "never"
    assert found.value("GATEWAY_PORT") == "8005"
    assert "ENGINE_SEED" not in found.entries
    (root / "env" / "site.env").write_text("HOST_SETUP=auto\n")
    assert load(root, environ=environ).value("HOST_SETUP") == "auto"


def test_a_profile_that_is_not_there_names_those_that_are(root: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(root, "thrughput")
    assert refused.value.message == "no profile 'thrughput' (env/thrughput.env). Did you mean throughput?"
    assert refused.value.fix.startswith("profiles: cpu, ")
    for name in ("base", "site", "../env/cpu"):
        with pytest.raises(ConfigurationError):
            load(root, name)


@pytest.mark.parametrize(("visible", "expected"), [(True, "throughput"), (False, "cpu")])
def test_without_a_profile_the_hardware_decides_and_the_choice_is_said(visible: bool, expected: str, root: Path, monkeypatch: pytest.MonkeyPatch,
                                                                        capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program, card = tmp_path / "bin" / "nvidia-smi", "0, NVIDIA GeForce RTX 5090, 12.0, 32607, 32110, 580.95.05, GPU-1"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + (f"echo '{card}'" if visible else "echo 'No devices were found'; exit 6"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    found = profile.load(Wanted(), root=root, environ={})
    said = capsys.readouterr().err
    assert found.profile == found.value("HOST_PROFILE") == expected
    assert found.origin["HOST_PROFILE"] == "chosen for this host"
    assert f"profile {expected}: " in said
    assert ("NVIDIA GeForce RTX 5090 (compute capability 12.0, 31.4 GiB)" in said) == visible
    assert "latency, long-context, memory" in said


@pytest.mark.parametrize("profile", profiles.names())
def test_a_flattened_file_stands_alone_and_means_the_same(profile: str, root: Path) -> None:
    sets = ("ENGINE_SERVED_MODEL_NAME=a 'b c'", "MODEL_DIR=models/m", "ENGINE_MODEL=", "ENGINE_MAX_NUM_SEQS=", "GATEWAY_PORT=0",
            "HF_HOME=/cache/it's", 'ENGINE_HF_OVERRIDES={"a": "$x # y"}')
    first = load(root, profile, *sets)
    first.require()
    elsewhere = root / "elsewhere"
    (elsewhere / "docker" / "engine").mkdir(parents=True)
    (elsewhere / "docker" / "engine" / "catalogue").symlink_to(ROOT / "docker" / "engine" / "catalogue")
    (elsewhere / "env").mkdir()
    shutil.copy(ROOT / "env" / "optimizations.yaml", elsewhere / "env")
    flat = elsewhere / "handoff.env"
    flat.write_text(first.flatten("handoff.env"), encoding="utf-8")
    again = settings.load(None, [flat], root=elsewhere, environ={"HOST_SETUP": "never"})
    again.require()
    assert again.problems == first.problems
    assert (again.profile, again.argv, again.environment) == (first.profile, first.argv, first.environment)
    assert again.value("HOST_ENV_FILE") == "handoff.env"
    assert again.model_dir == root / "models" / "m"
    assert again.value("HOST_SETUP") == "auto"
    assert {line for line in again.flatten("handoff.env").splitlines() if not line.startswith("#")} == {
        line for line in first.flatten("handoff.env").splitlines() if not line.startswith("#")}


@pytest.mark.parametrize("profile", profiles.names())
def test_the_entrypoint_makes_the_same_command_and_environment_of_it(profile: str, root: Path, entrypoint: ModuleType) -> None:
    found = load(root, profile, "ENGINE_SERVED_MODEL_NAME=a 'b c'", "ENGINE_ENABLE_PREFIX_CACHING=false", "ENGINE_CUDAGRAPH_CAPTURE_SIZES=1 2 4",
                 'ENGINE_LIMIT_MM_PER_PROMPT={"image": 1}', "ENGINE_ENFORCE_EAGER=true", "ENGINE_MAX_NUM_SEQS=", "OMP_NUM_THREADS=2",
                 "ENGINE_MAX_CUDAGRAPH_CAPTURE_SIZE=")
    found.require()
    (root / "flat.env").write_text(found.flatten("flat.env"))
    values = entrypoint.parse_env_file(root / "flat.env")
    flags = entrypoint.load_catalogue(found.image_target, root / "docker" / "engine" / "catalogue")
    assert tuple(entrypoint.arguments(values, flags)) == found.argv[1:]
    assert entrypoint.engine_environment(values) == found.environment


def test_a_flattened_file_names_the_origin_of_each_value(root: Path) -> None:
    lines = load(root, "cpu", "ENGINE_SEED=3").flatten("x.env").splitlines()
    assert lines[lines.index("ENGINE_SEED=3") - 1] == "# --set"
    assert lines[lines.index("IMAGE_TARGET=cpu") - 1].startswith("# env/cpu.env:")
    assert "HOST_ENV_FILE=x.env" in lines
    assert "GATEWAY_API_KEYS_FILE=" in lines


def test_the_engines_part_does_not_change_with_the_gateway(root: Path) -> None:
    first, second = load(root, "cpu"), load(root, "cpu", "GATEWAY_PORT=9", "HOST_PROJECT=other")
    assert first.flatten_engine() == second.flatten_engine()
    assert "GATEWAY_" not in first.flatten_engine()
    assert "ENGINE_MODEL=" in first.flatten_engine()


def test_a_flattened_file_may_be_overlaid_but_not_with_another_profile(root: Path) -> None:
    flat = root / "flat.env"
    flat.write_text(load(root, "cpu").flatten("flat.env"))
    (root / "site2.env").write_text("GATEWAY_PORT=9\n")
    assert load(root, None, files=(flat, root / "site2.env")).gateway_port == 9
    assert load(root, "cpu", files=(flat,)).problems == ()
    (problem,) = load(root, "throughput", files=(flat,)).problems
    assert problem.key == "HOST_PROFILE"
    assert problem.message == "this file is a whole deployment, and the profile throughput was asked for. Leave one of the two out."


def test_the_properties_are_typed(root: Path) -> None:
    found = load(root, "cpu", "GATEWAY_PORT=0", "HOST_PROJECT=p1")
    assert (found.project, found.image_target, found.gateway_bind, found.gateway_port) == ("p1", "cpu", "127.0.0.1", 0)
    assert (found.image_engine, found.image_gateway) == ("vllm-bundle/engine:cpu-0.32.0", "vllm-bundle/gateway:3.0")
    assert found.ready_timeout_s == 600.0


def test_replicas_become_services_and_gpus(root: Path) -> None:
    def derived(*sets: str) -> dict[str, str]:
        found = load(root, "throughput", *sets)
        assert not found.errors
        return {key: found.value(key) for key in DERIVED if found.value(key)}

    assert derived() == {"HOST_GPUS_1": "0"}
    assert derived("HOST_REPLICAS=2") == {"COMPOSE_PROFILES": "replica-2", "HOST_GPUS_1": "0", "HOST_GPUS_2": "1"}
    assert derived("HOST_REPLICAS=2", "HOST_GPU_COUNT=2", "HOST_GPUS=7,GPU-a,5,0") == {
        "COMPOSE_PROFILES": "replica-2", "HOST_GPUS_1": "7,GPU-a", "HOST_GPUS_2": "5,0"}
    assert not [key for key in DERIVED if load(root, "cpu").value(key)], "a CPU engine gets no GPU"


def test_a_whole_file_with_another_number_of_replicas_is_derived_anew(root: Path) -> None:
    flat = root / "whole.env"
    flat.write_text(load(root, "throughput", "HOST_REPLICAS=2").flatten("whole.env"))
    assert load(root, None, "HOST_REPLICAS=1", files=(flat,)).value("COMPOSE_PROFILES") == ""
    assert load(root, None, files=(flat,)).value("HOST_GPUS_2") == "1"


def test_remarks_name_what_does_nothing_and_what_to_use(root: Path) -> None:
    assert load(root, "throughput", "CUDA_TENSOR_CORES=1", "ENGINE_TRUST_REMOTE_CODE=true").remarks() == [
        "--set: CUDA_TENSOR_CORES is inert: no library reads this name; bf16, fp16 and fp8 always use tensor cores, and only float32 has a switch. "
        "Use VLLM_FLOAT32_MATMUL_PRECISION=high.",
        "--set: ENGINE_TRUST_REMOTE_CODE is harmful: runs Python from the model's directory in the engine; Qwen3 needs none."]


def test_remarks_say_a_thing_once(root: Path) -> None:
    (remark,) = load(root, "throughput", "ENGINE_GPU_MEMORY_UTILIZATION=0.99").remarks()
    assert remark.startswith("--set: ENGINE_GPU_MEMORY_UTILIZATION: 0.99 × 31.36 GiB")


def test_without_a_catalogue_nothing_is_guessed(root: Path) -> None:
    (root / "docker" / "engine" / "catalogue").unlink()
    with pytest.raises(ConfigurationError, match=r"cpu\.json: no flag catalogue for the cpu image"):
        load(root)


def test_every_flag_of_the_engine_can_be_set() -> None:
    # The rule needs no table: whatever the catalogue lists has a key.
    for target in catalogue.TARGETS:
        rules = Rules(catalogue=catalogue.load(target), records=verdicts.load())
        for flag in rules.catalogue.flags.values():
            assert "no such flag" not in rules.fault(Entry(key=flag.key, value="x", file="x.env", line=1))
