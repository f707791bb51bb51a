"""What is taken of a repository, and what a directory on this host is held against. No network: the hub is asked in tests/e2e/test_model.py."""

import hashlib
import json
from pathlib import Path

import pytest

from bundle.base import parallel
from bundle.base.errors import BundleError, CheckFailedError, ConfigurationError, PrerequisiteError
from bundle.config import envfile
from bundle.models import hub, store
from bundle.models.hub import File, Repository
from bundle.models.selection import wanted_files
from fake_hub import model

SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")

# Repository listings as they stand on the hub, shortened; `-` marks what is not to be taken.
REPOSITORIES = {
    "qwen3": (*SMALL, *SHARDS, "LICENSE", "merges.txt", "vocab.json", "-.gitattributes", "-README.md"),
    "llama-with-the-original": (*SMALL, *SHARDS, "LICENSE", "-USE_POLICY.md", "-original/consolidated.00.pth", "-original/params.json",
                                "-original/tokenizer.model"),
    "gpt-oss-with-metal": (*SMALL, *SHARDS, "chat_template.jinja", "-metal/model.bin", "-original/model.safetensors", "-original/config.json"),
    "mistral-with-both-editions": ("config.json", "params.json", "tekken.json", "consolidated.safetensors", "-model-00001-of-00002.safetensors",
                                   "-model-00002-of-00002.safetensors", "-model.safetensors.index.json"),
    "mistral-sharded-own-edition": ("params.json", "tekken.json", "consolidated-00001-of-00002.safetensors",
                                    "consolidated-00002-of-00002.safetensors", "consolidated.safetensors.index.json"),
    "consolidated-without-params": (*SMALL, *SHARDS, "-consolidated.safetensors"),
    "safetensors-and-pickles": (*SMALL, "model.safetensors", "-pytorch_model.bin", "-pytorch_model.bin.index.json", "-rust_model.ot"),
    "quantized-with-code": (*SMALL, "model.safetensors", "hf_quant_config.json", "modeling_x.py", "tokenization_x.py", "qwen.tiktoken"),
    "adapters-in-folders": (*SMALL, *SHARDS, "speech-lora/adapter_model.safetensors", "speech-lora/adapter_config.json"),
    "training-leftovers": (*SMALL, "model.safetensors", "-checkpoint-500/model.safetensors", "-checkpoint-500/config.json", "-rng_state.pth",
                           "-runs/events.out.tfevents.1", "-.cache/huggingface/download.json"),
    "other-formats-beside": (*SMALL, "model.safetensors", "-onnx/model.onnx", "-onnx/config.json", "-openvino/openvino_model.xml",
                             "-model.Q4_K_M.gguf", "-logo.png"),
}


def listing(*paths: str, size: int = 10) -> Repository:
    return Repository(name="acme/tiny", commit="0" * 40, files=tuple(File(path=path, size=size, checksum="sha256:" + "0" * 64) for path in paths))


@pytest.mark.parametrize("paths", REPOSITORIES.values(), ids=REPOSITORIES.keys())
def test_only_what_vllm_reads_is_taken(paths: tuple[str, ...]) -> None:
    taken = {file.path for file in wanted_files(listing(*(path.removeprefix("-") for path in paths)))}
    assert taken == {path for path in paths if not path.startswith("-")}


@pytest.mark.parametrize(("paths", "said"), [
    (("config.json", "tokenizer.json", "model.Q4_K_M.gguf"), r"has no \*\.safetensors"),
    (("config.json", "tokenizer.json", "tf_model.h5"), r"has no \*\.safetensors"),
    ((*SMALL, "pytorch_model.bin", "training_args.bin"), r"has no \*\.safetensors"),
    ((), "has no config.json"),
])
def test_a_repository_that_vllm_cannot_load_is_refused_with_what_to_look_for(paths: tuple[str, ...], said: str) -> None:
    with pytest.raises(PrerequisiteError, match=said) as refused:
        wanted_files(listing(*paths))
    assert "safetensors" in refused.value.fix


def test_an_adapters_repository_is_refused_with_what_to_do_with_it() -> None:
    with pytest.raises(PrerequisiteError, match="acme/tiny is a LoRA adapter, not a model") as refused:
        wanted_files(listing("README.md", "config.json", "adapter_model.safetensors", "adapter_config.json"))
    assert "ENGINE_LORA_MODULES" in refused.value.fix


def test_a_refused_repository_names_the_formats_that_it_holds() -> None:
    with pytest.raises(PrerequisiteError) as refused:
        wanted_files(listing("config.json", "a.gguf", "b.gguf", "c.onnx"))
    assert "it holds .gguf, .onnx" in refused.value.fix


def test_a_file_that_comes_through_xet_only_is_refused_with_the_command_that_fetches_it() -> None:
    with pytest.raises(PrerequisiteError, match=r"config.json has 50\.0 GB") as refused:
        wanted_files(listing("config.json", "model.safetensors", size=50 * 10**9 + 1))
    assert "hf download acme/tiny" in refused.value.fix


def test_small_files_come_first() -> None:
    files = (File(path="model.safetensors", size=9, checksum="sha256:0"), File(path="config.json", size=2, checksum="git:0"))
    assert [file.path for file in wanted_files(Repository(name="a/b", commit="0", files=files))] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["../../etc", "acme/../x", "/etc", "a/b/c", "", "acme/", "/b", "acme/.hidden", "-x/y", "acme/ti ny",
                                  "a/b--c", "a\nb"])
def test_a_name_that_is_no_models_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not a model's name"):
        hub.model_name(name)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-8B", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "01-ai/Yi_1.5"])
def test_names_as_the_hub_has_them_are_taken(name: str) -> None:
    assert hub.model_name(name) == name


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b" \n", "is empty"), (b"one two\n", "more than one word"), (b"\xff\xfe", "ASCII")])
def test_a_token_file_without_one_token_is_refused_and_not_shown(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as refused:
        hub.read_token(tmp_path / "token")
    assert "one two" not in refused.value.message + refused.value.fix


def test_a_token_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        hub.read_token(tmp_path / "nosuch")


def test_a_token_that_others_can_read_is_taken_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "token"
    path.write_text("hf_secret\n")
    path.chmod(0o644)
    assert hub.read_token(path) == "hf_secret"
    said = capsys.readouterr().err
    assert "other users of this host can read the token" in said
    assert "hf_secret" not in said
    path.chmod(0o600)
    hub.read_token(path)
    assert capsys.readouterr().err == ""


def test_a_token_is_in_no_representation_of_the_hub() -> None:
    assert "hf_secret" not in repr(hub.Hub(endpoint="https://hub.example", token="hf_secret"))


def stored(directory: Path, files: dict[str, bytes]) -> Path:
    """`files` as a fetched model: with the record that fetch writes."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    kept = [name for name in files if name.endswith((".json", ".safetensors"))]
    listed = [{"path": name, "size": len(files[name]), "checksum": f"sha256:{hashlib.sha256(files[name]).hexdigest()}"} for name in kept]
    (directory / store.RECORD).write_text(json.dumps({"name": "acme/tiny", "commit": "0" * 40, "files": listed}))
    directory.chmod(0o755)
    return directory


def test_a_complete_directory_verifies_by_its_record(tmp_path: Path) -> None:
    found = store.verify(stored(tmp_path / "store/acme/tiny", model()))
    assert (found.name, found.commit, found.verified, found.fetched_bytes) == ("acme/tiny", "0" * 40, 6, 0)


def test_a_file_with_one_wrong_byte_is_found(tmp_path: Path) -> None:
    directory = stored(tmp_path / "store/acme/tiny", model())
    shard = directory / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckFailedError, match="model-00002-of-00002") as refused:
        store.verify(directory)
    assert "model-00001" not in refused.value.message
    assert f"NAME=acme/tiny INTO={tmp_path / 'store'}" in refused.value.fix


def test_a_missing_file_of_the_record_is_found(tmp_path: Path) -> None:
    directory = stored(tmp_path / "tiny", model())
    (directory / "tokenizer_config.json").unlink()
    with pytest.raises(PrerequisiteError, match=r"lacks 1 of 6 files: tokenizer_config\.json") as refused:
        store.verify(directory)
    assert "INTO=" not in refused.value.fix


def adopted(directory: Path, **changes: bytes | None) -> Path:
    """A model that someone else put there: no record."""
    files = {**model(), **{name: content for name, content in changes.items() if content is not None}}
    stored(directory, {name: content for name, content in files.items() if name not in changes or changes[name] is not None})
    (directory / store.RECORD).unlink()
    return directory


def test_a_complete_local_model_is_adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.verify(adopted(tmp_path / "mine")).directory == tmp_path / "mine"
    assert "the checksums are not known" in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "said"), [
    ({"model-00002-of-00002.safetensors": None}, "model-00002-of-00002.safetensors: listed in model.safetensors.index.json, and not there"),
    ({"model-00001-of-00002.safetensors": model()["model-00001-of-00002.safetensors"][:-7]}, "the download was cut off"),
    ({"config.json": None}, "no config.json"),
    ({"tokenizer.json": None}, "no tokenizer"),
], ids=["missing shard", "cut shard", "no config", "no tokenizer"])
def test_an_incomplete_local_model_is_refused(tmp_path: Path, changes: dict[str, bytes | None], said: str) -> None:
    with pytest.raises(PrerequisiteError, match="not a model that the engine can load") as refused:
        store.verify(adopted(tmp_path / "mine", **changes))
    assert said in refused.value.message


def test_a_local_model_that_the_engines_user_may_not_read_is_refused_with_the_command_that_opens_it(tmp_path: Path) -> None:
    directory = adopted(tmp_path / "mine")
    (directory / "model-00001-of-00002.safetensors").chmod(0o600)
    with pytest.raises(PrerequisiteError, match="not readable by the engine's user 2000") as refused:
        store.verify(directory)
    assert "chmod -R o+rX" in refused.value.fix


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "it").write_text("")
    with pytest.raises(PrerequisiteError, match="no such directory" if kind == "nothing" else "a file, not a directory"):
        store.verify(tmp_path / "it")


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"name": "a", "commit": "b", "files": [{"path": "x"}]}'])
def test_a_damaged_record_counts_as_none(tmp_path: Path, record: bytes) -> None:
    directory = adopted(tmp_path / "mine")
    (directory / store.RECORD).write_bytes(record)
    assert store.verify(directory).verified == 0


@pytest.mark.parametrize(("before", "after"), [
    (None, "MODEL_DIR=/m/x\n"),
    ("", "MODEL_DIR=/m/x\n"),
    ("# mine\nGATEWAY_PORT=1", "# mine\nGATEWAY_PORT=1\nMODEL_DIR=/m/x\n"),
    ("MODEL_DIR=/old\nGATEWAY_PORT=1\n", "MODEL_DIR=/m/x\nGATEWAY_PORT=1\n"),
    ("# MODEL_DIR=/example\n", "# MODEL_DIR=/example\nMODEL_DIR=/m/x\n"),
])
def test_the_line_goes_into_the_env_file_and_the_rest_stays(tmp_path: Path, before: str | None, after: str) -> None:
    site = tmp_path / "site.env"
    if before is not None:
        site.write_text(before)
        site.chmod(0o640)
    store.point_to(Path("/m/x"), site)
    assert site.read_text() == after
    assert before is None or site.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [site]


@pytest.mark.parametrize("path", ["/m/plain", "/m/two words", "/m/$HOME", "/m/a#b"])
def test_the_line_is_read_back_as_the_same_directory(path: str) -> None:
    entries, problems = envfile.parse_text(store.line(Path(path)) + "\n", "site.env")
    assert not problems
    assert [entry.value for entry in entries] == [path]


def test_a_directory_that_no_env_file_can_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="an env file cannot hold this path"):
        store.line(tmp_path / "it's $mine")


def test_each_raises_the_first_failure_and_ends_the_work_of_the_others() -> None:
    progress = parallel.Progress("read", total=10)

    def work(item: int) -> None:
        raise BundleError(f"item {item}")

    with pytest.raises(BundleError, match="item"):
        parallel.each(range(100), work, progress=progress)
    with pytest.raises(parallel.StoppedError):
        progress.add(1)


def test_each_does_every_item_once() -> None:
    progress, seen = parallel.Progress("read", total=50), []

    def work(item: int) -> None:
        seen.append(item)
        progress.add(1)

    parallel.each(range(50), work, progress=progress)
    assert sorted(seen) == list(range(50))
    assert progress.done == 50


@pytest.mark.parametrize(("count", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (16_400_000_000, "16.4 GB")])
def test_sizes_are_told_in_decimal_units(count: int, words: str) -> None:
    assert parallel.size(count) == words
