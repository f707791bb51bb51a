"""How vLLM cuts memory into KV cache blocks, and how many tokens they hold: the arithmetic of its v1/core/kv_cache_planning.py.

The cache is one pool of blocks. Layers of one kind form groups of equal size, each with its own block table, and a block holds `block_tokens`
tokens of every layer in a group. So a sequence takes blocks per group, and layers with a window stop taking more once the window is full.
"""

from dataclasses import dataclass
from math import ceil

from bundle.base.errors import ConfigurationError
from bundle.fit.modelshape import Attention

_SAME_AS_MODEL = ("auto", "float16", "bfloat16", "half")
_BYTE_EACH = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")
_LATENT_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
_SCALES = 8  # a float32 for the key and one for the value of each head


def cell_bytes(attention: Attention, dtype: str, *, float_bytes: int = 2) -> int:
    """Bytes that one layer keeps of one token and one KV head. Raises ConfigurationError for a `dtype` whose layout fit does not know."""
    elements = attention.key_dim + attention.value_dim
    if dtype in _SAME_AS_MODEL:
        return elements * (float_bytes if dtype == "auto" else 2)
    if dtype in ("float32", "float"):
        return elements * 4
    if dtype in _BYTE_EACH:
        return elements
    if dtype in ("int8_per_token_head", "fp8_per_token_head"):
        return elements + _SCALES
    if dtype == "int4_per_token_head":
        return elements // 2 + _SCALES
    if dtype in _LATENT_BYTES and not attention.value_dim:
        return _LATENT_BYTES[dtype]
    if dtype in ("nvfp4", "nvfp4_4over6"):
        return elements // 2 + elements // 16
    raise ConfigurationError(f"ENGINE_KV_CACHE_DTYPE={dtype}: fit does not know how many bytes it takes",
                             fix="auto, fp8, fp8_per_token_head, int8_per_token_head, int4_per_token_head and nvfp4 it knows")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The KV cache of one GPU (or of the CPU engine)."""

    attention: Attention
    layer_bytes: int
    """Bytes that one layer keeps of one token, over the KV heads on this GPU."""
    block_tokens: int
    in_flight: int
    """Tokens that may be computed and not settled yet: blocks that fell out of a window are freed only after them."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers, while it is inside every window."""
        return self.attention.layers * self.layer_bytes

    @property
    def _groups(self) -> tuple[int, int, int]:
        """Groups of layers that see all, groups of layers with a window, and layers in the largest group."""
        full, windowed = self.attention.full, self.attention.windowed
        if not full or not windowed:
            return int(full > 0), int(windowed > 0), full + windowed
        small, large = sorted((full, windowed))
        size = large if large < small * 1.5 else small
        groups = ceil(full / size), ceil(windowed / size)
        return *groups, max(ceil(full / groups[0]), ceil(windowed / groups[1]))

    @property
    def block_bytes(self) -> int:
        return self._groups[2] * self.layer_bytes * self.block_tokens

    def blocks_of_sequence(self, length: int) -> int:
        """Blocks that one sequence of `length` tokens takes."""
        full, windowed, _ = self._groups
        held = min(self.attention.window - 1 + self.in_flight, length)
        return full * ceil(length / self.block_tokens) + windowed * (ceil(held / self.block_tokens) + 1)

    def sequence_bytes(self, length: int) -> int:
        """Memory that must be there to serve one sequence of `length` tokens; one block more, which vLLM keeps as the null block."""
        return (self.blocks_of_sequence(length) + 1) * self.block_bytes

    def sequences(self, memory: int, length: int) -> float:
        """Sequences of `length` tokens that `memory` bytes hold at once: vLLM's "maximum concurrency"."""
        return max(0, memory // self.block_bytes) / self.blocks_of_sequence(length)

    def tokens(self, memory: int, length: int) -> int:
        """Tokens that `memory` bytes hold when every sequence has `length`: vLLM's "KV cache size"."""
        return int(self.sequences(memory, length) * length)

    def longest(self, memory: int, limit: int) -> int:
        """The longest sequence, at most `limit`, that `memory` bytes serve; 0 when not even one token fits."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.sequence_bytes(middle) <= memory else (low, middle - 1)
        return low
