"""Runs inside an engine image: every route that this vLLM documents, whatever its model can do, as "METHOD path" lines of JSON. No engine is started.

The application is the engine's own, built once for each kind of model; stand-ins are only its options and the model's configuration.
"""

import json
import warnings
from typing import get_args
from unittest.mock import MagicMock

from vllm import tasks  # type: ignore[import-not-found]
from vllm.entrypoints.launchers.app import build_app  # type: ignore[import-not-found]

warnings.simplefilter("ignore")  # the kinds share some handlers
found: set[str] = set()
for pooling in get_args(tasks.PoolingTask):
    for score in get_args(tasks.ScoreType):
        model = MagicMock(score_type=score)
        model.get_pooling_task.return_value = pooling
        args = MagicMock(disable_fastapi_docs=False, enable_offline_docs=False, root_path="", middleware=[], api_key=None, profiler_config=None,
                         enable_fault_tolerance=True)
        app = build_app(args, (*get_args(tasks.GenerationTask), *get_args(tasks.FrontendTask), pooling), model)
        found |= {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
print(json.dumps(sorted(found)))  # noqa: T201  (what it is for)
