"""`auto`, by the entrypoint's own table of it: docker/engine/words.py, which the image has too."""

import sys

from bundle import ROOT

sys.path.append(str(ROOT / "docker" / "engine"))

from words import (
    AUTO,
    QUANTIZATION,
    SEQUENCES,
    SHARE,
    WORDS,
    Resolved,
    by_checkpoint,
    by_gpu,
    declared,
)

__all__ = ["AUTO", "QUANTIZATION", "SEQUENCES", "SHARE", "WORDS", "Resolved", "by_checkpoint", "by_gpu", "declared"]
