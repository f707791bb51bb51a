"""Which files of a repository vLLM needs: one edition of the weights, and everything small beside it."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import PurePosixPath

from bundle.base.errors import PrerequisiteError
from bundle.base.parallel import size
from bundle.models.hub import File, Repository

_HTTP_LIMIT = 50 * 10**9  # the hub serves larger files through Xet only

# What vLLM and the tokenizers read beside the weights, and the licence that must stay with them.
_NEEDED = ("*.json", "*.jinja", "*.model", "*.py", "*.tiktoken", "*.txt", "tokenizer*", "vocab*", "merges*", "LICENSE*", "NOTICE*")
# Other editions of the same weights, and the states of a training: vLLM reads none of them.
_OTHER_EDITIONS = ("original", "checkpoint-*", "onnx", "openvino", "gguf", "metal", "coreml")
_TRAINING = ("training_args.*", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")
_UNREADABLE = {".gguf", ".bin", ".pt", ".onnx", ".pth", ".h5", ".msgpack", ".mlmodel"}


def wanted_files(repository: Repository) -> list[File]:
    """The files that vLLM reads, small ones first: weights, configuration, tokenizer, templates, code, licence.

    Raises PrerequisiteError where there is nothing that vLLM can load from a directory.
    """
    kept = [file for file in repository.files if not _left_out(PurePosixPath(file.path))]
    top = {file.path for file in kept if "/" not in file.path}
    if "adapter_config.json" in top and not any(path.endswith(".safetensors") and not path.startswith("adapter_") for path in top):
        raise PrerequisiteError(f"{repository.name} is a LoRA adapter, not a model",
                                fix="NAME= the model that it was trained on; ENGINE_ENABLE_LORA and ENGINE_LORA_MODULES add the adapter to it")
    if not top & {"config.json", "params.json"}:
        raise PrerequisiteError(f"{repository.name} has no config.json: not a model that vLLM serves", fix=_elsewhere(repository))
    is_weights = _edition(top)
    if not any(is_weights(path) for path in top):
        raise PrerequisiteError(f"{repository.name} has no *.safetensors, the one format that is taken", fix=_elsewhere(repository))
    chosen = [file for file in kept if _is_chosen(file.path, is_weights)]
    for file in chosen:
        if file.size > _HTTP_LIMIT:
            raise PrerequisiteError(
                f"{repository.name}/{file.path} has {size(file.size)}; the hub serves files over {size(_HTTP_LIMIT)} through Xet only",
                fix=f"hf download {repository.name} --revision {repository.commit} --local-dir DIR, then make model FROM=DIR")
    return sorted(chosen, key=lambda file: (file.size, file.path))


def _left_out(path: PurePosixPath) -> bool:
    return (any(part.startswith(".") for part in path.parts)
            or (len(path.parts) > 1 and any(fnmatch(path.parts[0], name) for name in _OTHER_EDITIONS))
            or any(fnmatch(path.name, name) for name in _TRAINING))


def _is_chosen(path: str, is_weights: Callable[[str], bool]) -> bool:
    if is_weights(path):
        return True
    # The index of an edition that is left out would name shards that are not there.
    weights, index, _ = path.partition(".index.json")
    if index:
        return is_weights(weights)
    return any(fnmatch(PurePosixPath(path).name, name) for name in _NEEDED)


def _edition(top: set[str]) -> Callable[[str], bool]:
    """Which paths are weights of the edition that vLLM takes, by the files at the `top` of the repository."""
    tensors = {path for path in top if path.endswith(".safetensors")}
    mistral = {path for path in tensors if _is_mistral(path)}
    if mistral and ("params.json" in top or mistral == tensors):
        # Where both editions are there, vLLM takes Mistral's own.
        return lambda path: path.endswith(".safetensors") and ("/" in path or _is_mistral(path))
    if tensors:
        return lambda path: path.endswith(".safetensors") and not _is_mistral(path)
    return lambda _: False


def _is_mistral(path: str) -> bool:
    return fnmatch(path, "consolidated*.safetensors")


def _elsewhere(repository: Repository) -> str:
    kinds = sorted({PurePosixPath(file.path).suffix for file in repository.files} & _UNREADABLE)
    found = f"it holds {', '.join(kinds)}; " if kinds else ""
    return f"{found}name the repository with the safetensors, usually the one that this was made from, or REVISION= the branch that has them"
