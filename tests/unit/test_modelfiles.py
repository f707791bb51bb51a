"""What keeps an engine from loading a model directory is found, and named by its file."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bundle.models.folder import faults, misfits, summary
from support import verbs

UID = 2000


def safetensors(path: Path, tensors: Mapping[str, int]) -> None:
    """A whole file that holds `tensors` (name → bytes)."""
    header, start = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(start))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A complete model of two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    safetensors(folder / "model-00001-of-00002.safetensors", {"a": 100, "b": 50})
    safetensors(folder / "model-00002-of-00002.safetensors", {"c": 10})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}))
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def found(folder: Path, *, weights: bool = True, tokenizer: bool = True) -> list[str]:
    return [fault.found for fault in faults(folder, uid=UID, weights=weights, tokenizer=tokenizer)]


def test_a_complete_model_has_no_fault(model: Path) -> None:
    assert found(model) == []
    assert summary(model).startswith("Qwen3ForCausalLM, ")
    assert summary(model).endswith(" in 2 files")


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert found(tmp_path / "gone") == [f"{tmp_path}/gone: no such directory"]


def test_a_file_in_place_of_the_directory_is_named(model: Path) -> None:
    assert "MODEL_DIR is the folder that holds config.json" in found(model / "config.json")[0]


def test_a_missing_configuration_is_named(model: Path) -> None:
    (model / "config.json").unlink()
    assert found(model) == ["no config.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "not json"])
def test_a_configuration_that_is_no_json_object_is_named(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert found(model) == ["config.json: not a JSON object, or an empty one"]


def test_mistrals_own_configuration_counts(model: Path) -> None:
    (model / "config.json").rename(model / "params.json")
    assert found(model) == []


def test_a_missing_tokenizer_is_named(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert found(model) == ["no tokenizer (tokenizer.json, tokenizer.model, vocab.json + merges.txt, or tekken.json)"]
    assert found(model, tokenizer=False) == []


@pytest.mark.parametrize("names", [("tokenizer.model",), ("tokenizer.model.v3",), ("tekken.json",), ("vocab.json", "merges.txt")])
def test_every_form_of_tokenizer_counts(model: Path, names: tuple[str, ...]) -> None:
    (model / "tokenizer.json").unlink()
    for name in names:
        (model / name).write_text("x")
    assert found(model) == []


def test_half_a_tokenizer_does_not_count(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "vocab.json")
    assert found(model)[0].startswith("no tokenizer")


def test_a_shard_that_the_index_lists_and_that_is_not_there_is_named(model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()
    assert found(model) == ["model-00002-of-00002.safetensors: listed in model.safetensors.index.json, and not there (1 of 2 shards)"]


def test_a_download_that_was_cut_off_is_named_with_both_sizes(model: Path) -> None:
    shard = model / "model-00001-of-00002.safetensors"
    whole = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-60])
    assert found(model) == [f"{shard.name}: {whole - 60} bytes, and its header describes {whole}: the download was cut off"]


def test_a_shard_that_is_too_long_is_named(model: Path) -> None:
    shard = model / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b"x")
    assert found(model)[0].endswith("it is damaged")


@pytest.mark.parametrize(("content", "text"), [
    (b"", "not a safetensors file (0 bytes)"),
    (b"<html>404 not found</html>", "not a safetensors file (26 bytes)"),
    ((500).to_bytes(8, "little") + b"{}", "cut off inside its header (10 bytes)"),
    ((2).to_bytes(8, "little") + b"[]", "its header is not safetensors' JSON"),
    ((13).to_bytes(8, "little") + b'{"a": {"b":1}', "its header is not safetensors' JSON"),
])
def test_a_shard_that_is_no_safetensors_file_is_named(model: Path, content: bytes, text: str) -> None:
    (model / "model-00002-of-00002.safetensors").write_bytes(content)
    assert found(model) == [f"model-00002-of-00002.safetensors: {text}"]


def test_a_shard_of_another_revision_is_named_by_the_tensor_that_it_lacks(model: Path) -> None:
    safetensors(model / "model-00002-of-00002.safetensors", {"other": 10})
    assert found(model) == ["model-00002-of-00002.safetensors: lacks 1 tensors that the index places in it (first: c)"]


def test_a_git_lfs_pointer_is_named_once_and_with_its_remedy(model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n")
    (fault,) = faults(model, uid=UID)
    assert fault.found == "model-00002-of-00002.safetensors: a Git LFS pointer, not the file"
    assert fault.fix == f"git -C {model} lfs pull"


def test_an_index_without_a_map_is_named(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{}")
    assert found(model) == ["model.safetensors.index.json: no weight_map in it"]


def test_one_file_needs_no_index(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    (model / "model-00002-of-00002.safetensors").unlink()
    (model / "model-00001-of-00002.safetensors").rename(model / "model.safetensors")
    assert found(model) == []
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1])
    assert "cut off" in found(model)[0]


def test_no_weights_at_all_are_a_fault_unless_the_engine_makes_them_up(model: Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()
    assert found(model) == ["no weights (*.safetensors)"]
    assert found(model, weights=False) == []


@pytest.mark.parametrize(("name", "mode"), [("config.json", 0o600), ("model-00001-of-00002.safetensors", 0o640)])
def test_a_file_that_only_its_owner_may_read_is_named(model: Path, name: str, mode: int) -> None:
    (model / name).chmod(mode)
    (fault,) = faults(model, uid=UID)
    assert fault.found == f"{name}: not readable by the engine's user 2000"
    assert fault.fix == f"chmod -R o+rX {model}"


@pytest.mark.parametrize("mode", [0o700, 0o754])
def test_a_folder_that_others_may_not_enter_is_named(model: Path, mode: int) -> None:
    model.chmod(mode)
    assert found(model) == [f"{model}: not readable by the engine's user 2000"]


def test_the_files_owner_may_read_by_the_owners_bits(model: Path) -> None:
    uid = (model / "config.json").stat().st_uid
    (model / "config.json").chmod(0o400)
    assert faults(model, uid=uid) == []
    (model / "config.json").chmod(0o044)  # the owner's bits decide for the owner, whatever the others may
    assert faults(model, uid=uid) != []


def test_links_out_of_the_folder_are_named_because_only_the_folder_is_mounted(model: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (model / "config.json").rename(blob)
    (model / "config.json").symlink_to(blob)
    (fault,) = faults(model, uid=UID)
    assert fault.found.startswith("config.json: a link out of the folder")
    assert f"cp -rL {model}" in fault.fix


def test_links_inside_the_folder_are_fine(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "real.json")
    (model / "tokenizer.json").symlink_to("real.json")
    assert found(model) == []


def test_an_entry_of_the_hubs_cache_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "0123").mkdir(parents=True)
    tmp_path.chmod(0o755)
    assert found(tmp_path) == [f"{tmp_path} is an entry of the hub's cache, not a model"]


def test_several_faults_are_told_at_once(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "config.json").chmod(0o600)
    (model / "model-00001-of-00002.safetensors").unlink()
    assert len(found(model)) == 3


# --- other things than one model

def only(model: Path, *names: str) -> Path:
    """`model` with these files in place of its weights."""
    for file in model.glob("*.safetensors*"):
        file.unlink()
    for name in names:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
        (model / name).chmod(0o644)
    return model


@pytest.mark.parametrize("configured", [True, False])
def test_gguf_alone_is_refused_with_what_to_fetch(model: Path, configured: bool) -> None:
    only(model, "model.Q4_K_M.gguf")
    if not configured:
        (model / "config.json").unlink()
    (fault,) = faults(model, uid=UID)
    assert fault.found == f"{model} holds GGUF (model.Q4_K_M.gguf), which is llama.cpp's format: this engine has no loader for it"
    assert "the repository with the *.safetensors" in fault.fix


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_alone_are_refused(model: Path, name: str) -> None:
    (fault,) = faults(only(model, name), uid=UID)
    assert f"pickles alone ({name})" in fault.found
    assert "REVISION=" in fault.fix


def test_pickles_or_gguf_beside_the_model_are_fine(model: Path) -> None:
    for name in ("pytorch_model.bin", "model.Q4_K_M.gguf"):
        (model / name).write_text("x")
    assert found(model) == []


@pytest.mark.parametrize("configured", [True, False])
def test_an_adapter_alone_is_refused_with_the_model_that_it_belongs_to(model: Path, configured: bool) -> None:
    only(model, "adapter_model.safetensors")
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    if not configured:
        (model / "config.json").unlink()
    (fault,) = faults(model, uid=UID)
    assert fault.found == f"{model} is a LoRA adapter, not a model"
    assert fault.fix.startswith("make model NAME=Qwen/Qwen3-8B, and add the adapter to it with ENGINE_ENABLE_LORA=true")


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"base_model_name_or_path": 3}'])
def test_an_adapter_that_does_not_name_its_model_is_refused_too(model: Path, text: str) -> None:
    only(model, "adapter_model.bin")
    (model / "adapter_config.json").write_text(text)
    assert found(model) == [f"{model} is a LoRA adapter, not a model"]


def test_a_folder_of_models_says_how_to_serve_one_of_them(model: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (fault,) = faults(tmp_path, uid=UID)
    assert (fault.found, fault.fix) == (f"{tmp_path} holds the model in its folder model", f"MODEL_DIR={model}")
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text("{}")
    (fault,) = faults(tmp_path, uid=UID)
    assert fault.found == f"{tmp_path} holds 2 models, each in its folder (draft, model)"
    assert fault.fix == f"ENGINE_MODEL=/model/draft beside MODEL_DIR={tmp_path} serves one of them; or MODEL_DIR={tmp_path}/draft"


def test_an_index_that_another_edition_left_behind_is_named(model: Path) -> None:
    for file in model.glob("model-*.safetensors"):
        file.unlink()
    safetensors(model / "model.safetensors", {"a": 5})
    (fault,) = faults(model, uid=UID)
    assert fault.found == ("model.safetensors.index.json: left over from another edition: none of the 2 files that it lists is here, and the engine "
                           "would look for them instead of model.safetensors")
    assert fault.fix == f"rm {model}/model.safetensors.index.json"


def test_without_an_index_a_stray_file_is_named_because_the_engine_would_load_it(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    assert found(model) == []
    safetensors(model / "adapter_model.safetensors", {"lora_A": 5})
    (model / "adapter_config.json").write_text("{}")
    (fault,) = faults(model, uid=UID)
    assert fault.found.startswith("adapter_model.safetensors: beside the model's own files")
    assert fault.fix == f"move it out of {model}"


def test_mistrals_own_edition_is_loaded_alone(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    safetensors(model / "consolidated.safetensors", {"a": 5})
    assert found(model) == []


def test_without_an_index_a_missing_shard_is_told_by_the_numbers(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    (model / "model-00001-of-00002.safetensors").unlink()
    assert found(model) == ["1 of 2 shards are not there (first: number 1)"]


def test_a_configuration_that_is_a_folder_a_pipe_or_endless_is_named_and_nobody_waits(model: Path) -> None:
    said = ["config.json: not a JSON object, or an empty one"]
    (model / "config.json").write_text("[" * 100_000)
    assert found(model) == said
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    assert found(model) == said
    (model / "config.json").rmdir()
    os.mkfifo(model / "config.json")
    assert found(model) == said


@pytest.mark.parametrize("text", ['{"architectures": 5}', '{"architectures": [1, null]}', '{"architectures": {}}', '{"architectures": "x"}', "[", ""])
def test_a_summary_stands_whatever_the_architectures_are(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert summary(model).endswith(" in 2 files")


# --- one verdict

def adapter(model: Path) -> None:
    (only(model, "adapter_model.safetensors") / "adapter_config.json").write_text("{}")


def stray(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    safetensors(model / "adapter_model.safetensors", {"lora_A": 5})


def left_over(model: Path) -> None:
    for file in model.glob("model-*.safetensors"):
        file.rename(model / file.name.replace("model-", "other-"))


def gguf(model: Path) -> None:
    only(model, "model.Q4_K_M.gguf")


def pickle(model: Path) -> None:
    only(model, "pytorch_model.bin")


def several(model: Path) -> None:
    for name in ("a", "b"):
        (model / name).mkdir()
        (model / name / "config.json").write_text("{}")
    (model / "config.json").unlink()


def bitsandbytes(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}')


def mlx(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama", "quantization_config": {"group_size": 64, "bits": 4}}')


@pytest.mark.parametrize("spoil", [adapter, stray, left_over, gguf, pickle, several, bitsandbytes, mlx])
def test_model_check_fit_and_doctor_say_the_same_of_a_folder(spoil: Callable[[Path], None], model: Path) -> None:
    spoil(model)
    said = misfits(model)[0].found
    named = ("--profile", "cpu", "--set", f"MODEL_DIR={model}")
    for verb, arguments, code in (("model", ("--from", str(model)), 3), ("check", named, 2), ("fit", (str(model), "--profile", "cpu"), 3),
                                  ("doctor", named, 3)):
        done = verbs.call(verb, *arguments)
        assert done.returncode == code, (verb, done.stderr)
        assert said in " ".join((done.stdout + done.stderr).split()), verb
