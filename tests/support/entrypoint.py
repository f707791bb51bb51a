"""docker/engine/entrypoint.py as a module: the engine's side of the env files."""

import importlib.util
from types import ModuleType

from bundle import ROOT


def load_entrypoint() -> ModuleType:
    """The module, loaded by its path: docker/ is no package and must not become one."""
    spec = importlib.util.spec_from_file_location("bundle_entrypoint", ROOT / "docker" / "engine" / "entrypoint.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
