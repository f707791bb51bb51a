"""`make check DEEP=1`: the image's own parser and configuration are asked about a deployment, in a container without network, GPU and weights."""

import json
import re
import shlex
from dataclasses import dataclass, replace
from typing import Any

from bundle import ROOT
from bundle.base import shell
from bundle.base.errors import ConfigurationError, PrerequisiteError
from bundle.config import words
from bundle.config.catalogue import PREFIX
from bundle.config.envfile import Problem
from bundle.config.settings import MODEL_IN_CONTAINER, Settings
from bundle.fit import assessment
from bundle.machine import daemon, devices
from bundle.machine.devices import Device

_LIMIT_S = 300
_ASK = "/opt/bundle/ask"
# label=disable: this container reads the bundle's and the model's files where they lie, and SELinux would want them relabelled.
_CONFINED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--security-opt=label=disable",
             "--tmpfs=/tmp:exec,mode=1777", "--tmpfs=/cache:exec,uid=2000,gid=2000")
_UNUSED = {words.SHARE: ("0.9",), "--device-memory-utilization": ("0.9",)}
"""In the place of `auto` where it is left: a share of memory that is measured at the start. Other flags are left out with it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the engine said: `error` in its own words, "" where it takes the deployment; `found` is what its configuration came to."""

    error: str
    found: dict[str, Any]

    @property
    def summary(self) -> str:
        """Such as "LlamaForCausalLM, 8,192 tokens, fp8_per_tensor"."""
        parts = [self.found["architecture"], f"{self.found['max_model_len']:,} tokens", self.found["quantization"] or "not quantized"]
        return ", ".join(map(str, parts))


def ask(settings: Settings, device: Device | None) -> Answer:
    """Ask the image of `settings` about them, on `device` (which need not be there; None: an RTX 5090, where the image is for CUDA).

    Raises PrerequisiteError where there is no image or it does not answer, ConfigurationError where the engine would fetch its model from a hub.
    """
    model = settings.value("ENGINE_MODEL")
    if not model.startswith("/"):
        raise ConfigurationError(f"{model} is a hub name, and the engine is asked without a network", fix="MODEL_DIR= a folder that holds the model")
    if not daemon.image_id(settings.image_engine):
        raise PrerequisiteError(f"there is no image {settings.image_engine} to ask", fix=f"make build PROFILE={settings.profile}")
    gpu = None if settings.image_target == "cpu" else device or devices.find("rtx-5090", root=settings.root)
    argv = list(assessment.resolved(settings, assessment.assess_on(settings, gpu)).argv[2:])
    for at in reversed([at for at, word in enumerate(argv) if word == words.AUTO and argv[at - 1] in (*_UNUSED, *words.WORDS)]):
        argv[at - 1:at + 1] = [argv[at - 1], *_UNUSED[argv[at - 1]]] if argv[at - 1] in _UNUSED else []
    options = [f"--volume={ROOT / 'docker/model'}:{_ASK}:ro", *(f"--env={key}={value}" for key, value in settings.environment.items())]
    if settings.model_dir:
        options.append(f"--volume={settings.model_dir}:{MODEL_IN_CONTAINER}:ro")
    command = f"exec python {_ASK}/engine_check.py {shlex.join(argv)}"
    if gpu:
        command = as_on(gpu, f"{_ASK}/pretended", command, count=int(settings.value("HOST_GPU_COUNT")))
    done = shell.run(["docker", "run", "--rm", *_CONFINED, *options, "--entrypoint=sh", settings.image_engine, "-c", command], timeout_s=_LIMIT_S,
                     env=daemon.client_environment(), failure=PrerequisiteError)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return Answer(error=answer.pop("error"), found=answer)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PrerequisiteError(f"{settings.image_engine} does not answer: {done.stdout[-500:]}{done.stderr[-500:]}",
                                fix="make build FORCE=1, or another image") from error


def held_to(settings: Settings, answer: Answer) -> Settings:
    """`settings` with what the engine refuses among their errors, at the line that its words name, else at the model's."""
    if not answer.error:
        return settings
    # It writes max_model_len, --max-model-len, tensor parallel size and SpeculativeConfig.
    said = _letters(answer.error)
    named = [key for key, entry in settings.entries.items() if entry.value and key.startswith(PREFIX) and key not in ("ENGINE_HOST", "ENGINE_PORT")
             and _letters(key.removeprefix(PREFIX)) in said]
    key = max(named, key=len, default="ENGINE_MODEL")
    entry = settings.entries[key]
    message = f"the engine itself refuses it: {answer.error}"
    return replace(settings, problems=(*settings.problems, Problem(file=entry.file, line=entry.line, key=key, message=message)))


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def as_on(device: Device, place: str, command: str, *, count: int = 1) -> str:
    """`command` for a shell of a CUDA image that sees `count` GPUs like `device`; `place` is where docker/model/pretended lies in the container."""
    seen = {"name": device.name, "capability": list(device.capability), "total_bytes": device.total, "free_bytes": device.free, "count": count}
    # Its modules are linked against the driver, of which CUDA brings a stub.
    return (f"ln -s $CUDA_HOME/lib/stubs/libcuda.so /tmp/libcuda.so.1; LD_LIBRARY_PATH=/tmp PYTHONPATH={place} "
            f"PRETENDED_GPU={shlex.quote(json.dumps(seen))} {command}")
