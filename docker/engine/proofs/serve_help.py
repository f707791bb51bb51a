"""Does `vllm serve --help=all` work in this image? The command line's own entry point, told that it is on a CUDA platform.

Without a GPU vLLM ends with "Failed to infer device type" while it prepares its options; the name of the device is all that they need.
Prints the help, exits as vLLM does.
"""

import importlib
import sys
from typing import Any

platforms: Any = importlib.import_module("vllm.platforms")
type(platforms.current_platform).device_type = "cuda"
sys.argv = ["vllm", "serve", "--help=all"]
main: Any = importlib.import_module("vllm.entrypoints.cli.main").main
main()
