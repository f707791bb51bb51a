"""Will this model start on that GPU with these settings, and how many tokens will its KV cache hold? Needs no GPU, no Docker, no weights.

usage: python scripts/fit.py [MODEL_DIR] [--gpu NAME] [--profile NAME] [--env-file FILE]... [--set KEY=VALUE]...
                             [--overhead GIB] [--log FILE] [--json]

    python scripts/fit.py ~/models/Qwen3-8B --gpu rtx-5090 --set ENGINE_GPU_MEMORY_UTILIZATION=auto
    docker logs vllm-engine-1 2>&1 | python scripts/fit.py ~/models/Qwen3-8B --log -

MODEL_DIR (default: MODEL_DIR of the env files) holds config.json, and the safetensors files where they are downloaded: their headers are exact.
Exit codes: 0 it starts, 5 it does not (with the nearest changes that let it start), 2 a wrong value or GPU name, 3 a missing or damaged model.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import bundle.venv  # noqa: F401
from bundle import cli


def main(argv: Sequence[str]) -> int:
    from bundle.base import console
    from bundle.base.errors import ConfigurationError, PrerequisiteError
    from bundle.choice import profile
    from bundle.fit import assessment, estimation
    from bundle.machine.devices import GIB
    from bundle.models import folder

    parser = cli.parser(__doc__)
    parser.add_argument("model", metavar="MODEL_DIR", nargs="?", type=Path, help="folder with config.json (default: MODEL_DIR of the env files)")
    cli.add_gpu(parser)
    parser.add_argument("--overhead", metavar="GIB", type=float, help="overhead that a real start has measured, instead of the estimate")
    parser.add_argument("--log", metavar="FILE", help="the engine's log (-: stdin): say how far off the estimate is")
    cli.add_deployment(parser)
    cli.add_json(parser)
    options = parser.parse_args(argv)
    wanted = cli.deployment(options)
    if options.model:  # the profile is chosen by the model's fit, as `make check` does
        wanted = replace(wanted, sets=(*wanted.sets, f"MODEL_DIR={options.model.expanduser().absolute()}"))
    chosen = profile.load(wanted)
    directory = options.model or assessment.model_folder(chosen)
    if not directory:
        raise ConfigurationError("no model to look at", fix="give its folder: make fit MODEL=dir, or set MODEL_DIR in env/site.env")
    if others := folder.misfits(directory.expanduser()):
        raise PrerequisiteError(others[0].found, fix=others[0].fix)
    measured = None if options.overhead is None else round(options.overhead * GIB)
    fit = assessment.estimated(chosen, directory.expanduser(), estimation.device_of(chosen, options.gpu), measured_overhead=measured)
    try:
        log = "" if not options.log else sys.stdin.read() if options.log == "-" else Path(options.log).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PrerequisiteError(f"{options.log}: {error.strerror}") from error
    differences = fit.differences(log)
    if options.log and not differences:
        console.warn(f"{options.log}: no line of vLLM's about weights or KV cache in it")
    if options.json:
        console.emit_json(fit.as_json(differences) or {})
    else:
        fit.show(differences)
    return 0 if fit.starts else 5


if __name__ == "__main__":
    sys.exit(cli.run(main))
