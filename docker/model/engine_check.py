"""Ask the engine itself whether it would take a command line: its parser, its own checks of the arguments, and its configuration of the model.

    python engine_check.py MODEL --flag value …

Prints one line of JSON on stdout: `stage` (import, parse, arguments, configuration), `error` (in the engine's words, "" when it would start so far),
and what the configuration came to. Runs in the engine's image; reads the model's config.json and no weights, computes nothing, needs no network.
"""

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def ask(argv: Sequence[str]) -> dict[str, Any]:
    stage, said = "import", io.StringIO()
    try:
        engine = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
        try:
            serve = importlib.import_module("vllm.entrypoints.common.cli_args")
        except ImportError:  # its place in 0.32.0
            serve = importlib.import_module("vllm.entrypoints.launchers.cli_args")
        parser = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser(prog="vllm serve")
        usage = importlib.import_module("vllm.usage.usage_lib").UsageContext.OPENAI_API_SERVER
        stage = "parse"
        with contextlib.redirect_stderr(said):
            arguments = serve.make_arg_parser(parser).parse_args(list(argv))
        arguments.model = arguments.model_tag
        stage = "arguments"
        serve.validate_parsed_serve_args(arguments)
        stage = "configuration"
        config = engine.from_cli_args(arguments).create_engine_config(usage)
    except SystemExit:
        return {"stage": stage, "error": " ".join(said.getvalue().split()).rpartition("error: ")[2]}
    except Exception as error:  # noqa: BLE001  (whatever it raises is its answer)
        text = " ".join(str(error).split()).removeprefix("1 validation error for ").partition(" [type=")[0]  # pydantic's frame around it
        return {"stage": stage, "error": f"{type(error).__name__}: {text}"}
    model = config.model_config
    return {"stage": stage, "error": "", "architecture": model.architecture, "max_model_len": model.max_model_len,
            "quantization": model.quantization, "kv_cache_dtype": str(config.cache_config.cache_dtype)}


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever prints, prints into the log
    print(json.dumps(ask(sys.argv[1:])), file=answers)
