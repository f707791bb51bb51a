"""Is a model directory complete: configuration, tokenizer, every shard whole, all readable by the engine's user? Reads headers only."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.base.files import readable_by

# One complete set is enough; vLLM and transformers find each of these by its name.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model*",), ("vocab.json", "merges.txt"), ("tekken.json",), ("vocab.txt",), ("*tiktoken*",))
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.gguf")
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
        found += _configuration(directory, again)
        if tokenizer and not any(all(any(directory.glob(name)) for name in names) for names in _TOKENIZERS):
            found.append(Fault(found="no tokenizer (tokenizer.json, tokenizer.model, vocab.json + merges.txt, or tekken.json)", fix=again))
        if weights:
            found += [Fault(found=text, fix=again) for text in _weights(directory, named={*away, *pointers})]
    except PermissionError as error:
        found.append(Fault(found=f"{error.filename}: you may not read it", fix="run as its owner, or as root"))
    return found


def summary(directory: Path) -> str:
    """Such as "Qwen3ForCausalLM, 16.4 GB in 5 files"."""
    config = _object(directory / "config.json") or {}
    architectures = ", ".join(config.get("architectures") or ["unnamed architecture"])
    files = [file for pattern in ("*.safetensors", *_OTHER_WEIGHTS) for file in directory.glob(pattern)]
    size = sum(file.stat().st_size for file in files)
    return f"{architectures}, {size / 1e9:.1f} GB in {len(files)} files" if files else f"{architectures}, no weights"


def _configuration(directory: Path, again: str) -> list[Fault]:
    names = [name for name in ("config.json", "params.json") if (directory / name).exists()]  # params.json: Mistral's own format
    if not names:
        return [Fault(found="no config.json", fix=again)]
    return [] if _object(directory / names[0]) else [Fault(found=f"{names[0]}: not a JSON object, or an empty one", fix=again)]


def _weights(directory: Path, named: set[str]) -> Iterator[str]:
    """What is wrong with the weight files, less those that are `named` for another fault already."""
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    shards: dict[str, set[str]] = {}
    for index in indexes:
        placed = (_object(index) or {}).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            yield f"{index.name}: no weight_map in it"
            continue
        for tensor, shard in placed.items():
            shards.setdefault(str(shard), set()).add(tensor)
    missing = sorted(shard for shard in shards if shard not in named and not (directory / shard).exists())
    if missing:
        yield f"{_some(missing)}: listed in {', '.join(index.name for index in indexes)}, and not there ({len(missing)} of {len(shards)} shards)"
    for path in sorted({directory / shard for shard in shards} | set(directory.glob("*.safetensors"))):
        if path.name not in named and path.is_file() and (text := _shard(path, shards.get(path.name, set()))):
            yield f"{path.name}: {text}"
    if not shards and not any(any(directory.glob(pattern)) for pattern in ("*.safetensors", *_OTHER_WEIGHTS)):
        yield "no weights (*.safetensors)"


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
        value = json.loads(path.read_bytes())
    except (ValueError, FileNotFoundError):
        return None
    return value if isinstance(value, dict) else None


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
