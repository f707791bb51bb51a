"""Is a model directory complete: configuration, tokenizer, every shard whole, all readable by the engine's user? Reads headers only."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.base.errors import PrerequisiteError
from bundle.base.files import readable_by
from bundle.config import catalogue
from bundle.fit import quantization
from bundle.fit.modelshape import architectures, read_config, read_quantization

# One complete set is enough; vLLM and transformers find each of these by its name.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model*",), ("vocab.json", "merges.txt"), ("tekken.json",), ("vocab.txt",), ("*tiktoken*",))
_PICKLES = ("*.bin", "*.pt", "*.pth")
_CONFIGURATIONS = ("config.json", "params.json")  # params.json: Mistral's own format
_ADAPTER = "adapter_config.json"
_SAFETENSORS = "make model NAME= the repository with the *.safetensors, usually the one that this was made from; or REVISION= a branch with them"
_METHODS = ("compressed-tensors", "fp8", "awq", "gptq")  # what most models are published in
_NUMBER = re.compile(r"-(?P<number>\d{5})-of-(?P<total>\d{5})")
_LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER = 100_000_000  # the safetensors library's own limit
_AGAIN = "download it again: hf download NAME --local-dir {}"


@dataclass(frozen=True, kw_only=True)
class Fault:
    found: str
    fix: str


def faults(directory: Path, *, uid: int, weights: bool = True, tokenizer: bool = True) -> list[Fault]:
    """Everything that would stop the engine, running as `uid`, from loading the model mounted from `directory`.

    `weights` and `tokenizer` off: the engine's flags say that it takes them from elsewhere, or not at all.
    """
    again = _AGAIN.format(directory)
    try:
        if not directory.is_dir():
            kind = "a file; MODEL_DIR is the folder that holds config.json" if directory.exists() else "no such directory"
            return [Fault(found=f"{directory}: {kind}", fix="set MODEL_DIR to the model's folder, or leave it empty for the self-test model")]
        files = sorted(directory.iterdir())
    except PermissionError:
        return [Fault(found=f"{directory}: you may not look inside", fix="run as its owner, or as root")]
    if (directory / "snapshots").is_dir() and not (directory / "config.json").exists():
        return [Fault(found=f"{directory} is an entry of the hub's cache, not a model", fix="hf download NAME --local-dir DIR; MODEL_DIR=DIR")]
    away = [file.name for file in files if _leads_away(file, directory)]
    found = []
    if away:
        found.append(Fault(found=f"{_some(away)}: a link out of the folder, and only the folder is mounted in the container",
                           fix=f"copy the files themselves: cp -rL {directory} COPY, and MODEL_DIR=COPY (or hf download NAME --local-dir DIR)"))
    here = [file for file in files if file.is_file() and file.name not in away]
    hidden = [file.name for file in here if not readable_by(file, uid)]
    if hidden or not readable_by(directory, uid):
        found.append(Fault(found=f"{_some(hidden) or directory}: not readable by the engine's user {uid}", fix=f"chmod -R o+rX {directory}"))
    try:
        pointers = [file.name for file in here if file.stat().st_size < 1024 and file.read_bytes().startswith(_LFS_POINTER)]
        if pointers:
            found.append(Fault(found=f"{_some(pointers)}: a Git LFS pointer, not the file", fix=f"git -C {directory} lfs pull"))
        if weights and (others := misfits(directory)):
            return [*found, *others]
        found += _configuration(directory, again)
        if tokenizer and not any(all(any(directory.glob(name)) for name in names) for names in _TOKENIZERS):
            found.append(Fault(found="no tokenizer (tokenizer.json, tokenizer.model, vocab.json + merges.txt, or tekken.json)", fix=again))
        if weights:
            found += _weights(directory, again, named={*away, *pointers})
    except PermissionError as error:
        found.append(Fault(found=f"{error.filename}: you may not read it", fix="run as its owner, or as root"))
    return found


def misfits(directory: Path) -> list[Fault]:
    """What `directory` holds that is not one model that the engine loads: another thing altogether, a leftover index, a stray file.

    By names and sizes, and by how config.json says that the weights are packed. Nothing is said of what is not there: a configuration without
    weights is enough to compute with.
    """
    other = _other_thing(directory) or _unknown_method(directory)
    return [other] if other else [*_left_over(directory), *_strays(directory)]


def _unknown_method(directory: Path) -> Fault | None:
    try:
        said = read_quantization(directory)
    except PrerequisiteError:
        return None
    method = quantization.method(said)
    known = {name for target in catalogue.TARGETS for name in catalogue.load(target).flags["--quantization"].known}
    if not said or method in known | {quantization.AUTO_ROUND}:
        return None
    how = (f"is quantized with {method}, which this engine has no loader for" if method else
           "says that its weights are packed, and not by which method (MLX's editions are like that): the engine would take them for 16-bit weights")
    return Fault(found=f"{directory} {how}", fix=f"make model NAME= the model's edition with 16-bit weights, or with {', '.join(_METHODS)}")


def _other_thing(directory: Path) -> Fault | None:
    models = sorted(inner.parent.name for name in _CONFIGURATIONS for inner in directory.glob(f"*/{name}"))
    if models and not any((directory / name).exists() for name in _CONFIGURATIONS):
        one = f"MODEL_DIR={directory / models[0]}"
        if len(models) == 1:
            return Fault(found=f"{directory} holds the model in its folder {models[0]}", fix=one)
        return Fault(found=f"{directory} holds {len(models)} models, each in its folder ({_some(models)})",
                     fix=f"ENGINE_MODEL=/model/{models[0]} beside MODEL_DIR={directory} serves one of them; or {one}")
    tensors = [file.name for file in directory.glob("*.safetensors")]
    if (directory / _ADAPTER).exists() and all(name.startswith("adapter_") for name in tensors):
        base = str((_object(directory / _ADAPTER) or {}).get("base_model_name_or_path"))
        fetch = f"make model NAME={base}" if "/" in base else "fetch the model that it was trained on"
        return Fault(found=f"{directory} is a LoRA adapter, not a model",
                     fix=f"{fetch}, and add the adapter to it with ENGINE_ENABLE_LORA=true and ENGINE_LORA_MODULES")
    if tensors:
        return None
    if gguf := sorted(file.name for file in directory.glob("*.gguf")):
        return Fault(found=f"{directory} holds GGUF ({_some(gguf)}), which is llama.cpp's format: this engine has no loader for it", fix=_SAFETENSORS)
    if pickles := sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern)):
        return Fault(found=f"{directory} holds its weights as pickles alone ({_some(pickles)}): whoever loads one may run what it says, and their "
                     "sizes cannot be read without that", fix=_SAFETENSORS)
    return None


def summary(directory: Path) -> str:
    """Such as "Qwen3ForCausalLM, 16.4 GB in 5 files"."""
    try:
        named = architectures(read_config(directory)) or "unnamed architecture"
    except PrerequisiteError:
        named = "unnamed architecture"
    files = list(directory.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return f"{named}, {size / 1e9:.1f} GB in {len(files)} files" if files else f"{named}, no weights"


def _configuration(directory: Path, again: str) -> list[Fault]:
    names = [name for name in _CONFIGURATIONS if (directory / name).exists()]
    if not names:
        return [Fault(found="no config.json", fix=again)]
    return [] if _object(directory / names[0]) else [Fault(found=f"{names[0]}: not a JSON object, or an empty one", fix=again)]


def _weights(directory: Path, again: str, named: set[str]) -> Iterator[Fault]:
    """What is missing of the weight files or wrong with them, less those that are `named` for another fault already."""
    here = {file.name for file in directory.glob("*.safetensors")}
    shards: dict[str, set[str]] = {}
    for index, placed in _indexes(directory):
        if not placed:
            yield Fault(found=f"{index.name}: no weight_map in it", fix=again)
        its = {str(shard) for shard in placed.values()}
        if its & (here | named) and (missing := sorted(its - here - named)):
            yield Fault(found=f"{_some(missing)}: listed in {index.name}, and not there ({len(missing)} of {len(its)} shards)", fix=again)
        for tensor, shard in placed.items():
            shards.setdefault(str(shard), set()).add(tensor)
    for path in sorted(directory / name for name in here - named):
        if path.is_file() and (text := _shard(path, shards.get(path.name, set()))):
            yield Fault(found=f"{path.name}: {text}", fix=again)
    if not here and not named:
        yield Fault(found="no weights (*.safetensors)", fix=again)
    numbered = [] if shards else [match for name in _own(directory) if (match := _NUMBER.search(name))]
    total = int(numbered[0]["total"]) if numbered else 0
    if lacking := set(range(1, total + 1)) - {int(shard["number"]) for shard in numbered}:
        yield Fault(found=f"{len(lacking)} of {total} shards are not there (first: number {min(lacking)})", fix=again)


def _indexes(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each index of safetensors files, and which file it places each tensor in; {} where it says nothing."""
    for index in sorted(directory.glob("*.safetensors.index.json")):
        placed = (_object(index) or {}).get("weight_map")
        yield index, placed if isinstance(placed, dict) else {}


def _left_over(directory: Path) -> Iterator[Fault]:
    here = {file.name for file in directory.glob("*.safetensors")}
    for index, placed in _indexes(directory):
        its = {str(shard) for shard in placed.values()}
        if here and its and not its & here:
            yield Fault(found=f"{index.name}: left over from another edition: none of the {len(its)} files that it lists is here, and the engine "
                        f"would look for them instead of {_some(sorted(here))}", fix=f"rm {index}")


def _strays(directory: Path) -> Iterator[Fault]:
    """Without an index the engine loads every file, the adapter's beside the model's too."""
    if not any(placed for _, placed in _indexes(directory)) and (strays := sorted(_loaded(directory) - _own(directory))):
        yield Fault(found=f"{_some(strays)}: beside the model's own files, and without an index the engine loads every *.safetensors of the folder",
                    fix=f"move {'it' if len(strays) == 1 else 'them'} out of {directory}")


def _loaded(directory: Path) -> set[str]:
    """What the engine loads where no index says: Mistral's own edition, where it is there, and that alone; else every file."""
    here = {file.name for file in directory.glob("*.safetensors")}
    return {name for name in here if name.startswith("consolidated")} or here


def _own(directory: Path) -> set[str]:
    """Of these, the files of the model: model.safetensors, else the largest set of shards."""
    sets: dict[str, set[str]] = {}
    for name in _loaded(directory):
        sets.setdefault(_NUMBER.sub(r"\g<total>", name), set()).add(name)

    def rank(names: set[str]) -> tuple[bool, int]:
        return "model.safetensors" in names, sum((directory / name).stat().st_size for name in names)

    return max(sets.values(), key=rank, default=set())


def _shard(path: Path, tensors: set[str]) -> str:
    """What is wrong with one safetensors file: its header against its size, and against what the index places in it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER:
            return f"not a safetensors file ({size} bytes)"
        if size < 8 + length:
            return f"cut off inside its header ({size} bytes)"
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            entries: Mapping[str, Any] = {name: value for name, value in header.items() if name != "__metadata__"}
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return "its header is not safetensors' JSON"
    if size != end:
        return f"{size} bytes, and its header describes {end}: {'the download was cut off' if size < end else 'it is damaged'}"
    absent = sorted(tensors - entries.keys())
    return f"lacks {len(absent)} tensors that the index places in it (first: {absent[0]})" if absent else ""


def _leads_away(file: Path, directory: Path) -> bool:
    return file.is_symlink() and not (file.exists() and file.resolve().is_relative_to(directory.resolve()))


def _object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else None  # a pipe would keep who reads it waiting
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
