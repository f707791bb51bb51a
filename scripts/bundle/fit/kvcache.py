"""How vLLM cuts memory into KV cache blocks, and how many tokens they hold: the arithmetic of its v1/core/kv_cache_planning.py.

The cache is one pool of blocks. Layers of one kind form groups of equal size, each with its own block table, and a block holds `block_tokens`
tokens of every layer in a group. So a sequence takes blocks per group, and layers with a window stop taking more once the window is full.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, lcm

from bundle.base.errors import ConfigurationError
from bundle.fit.layers import Attention, Kept

_SAME_AS_MODEL = ("auto", "float16", "bfloat16", "half")
_BYTE_EACH = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc")
_LATENT_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
_SCALES = 8  # a float32 for the key and one for the value of each head


def cell_bytes(kept: Kept, dtype: str, *, float_bytes: int = 2) -> int:
    """Bytes that one layer keeps of one token and one KV head. Raises ConfigurationError for a `dtype` whose layout fit does not know."""
    elements = kept.key_dim + kept.value_dim
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
    if dtype in _LATENT_BYTES and not kept.value_dim:
        return _LATENT_BYTES[dtype]
    if dtype in ("nvfp4", "nvfp4_4over6"):
        return elements // 2 + elements // 16
    raise ConfigurationError(f"ENGINE_KV_CACHE_DTYPE={dtype}: fit does not know how many bytes it takes",
                             fix="auto, fp8, fp8_per_token_head, int8_per_token_head, int4_per_token_head and nvfp4 it knows")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Layers alike: each keeps `page` bytes of a block, which are `tokens` tokens of a sequence, or one state of it (`tokens` 0)."""

    layers: int
    page: int
    tokens: int
    window: int = 0
    chunked: bool = False
    states: int = 0
    """That one sequence keeps at most."""

    def blocks(self, length: int, in_flight: int) -> int:
        """That one sequence of `length` tokens takes in one group of these layers."""
        if self.states:
            return self.states
        if not self.window:
            return ceil(length / self.tokens)
        # A window may begin inside a block; a chunk begins where a block does.
        held = min(self.window - (not self.chunked) + in_flight, length)
        return ceil(held / self.tokens) + (not self.chunked)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The KV cache of one GPU (or of the CPU engine)."""

    kinds: tuple[Kind, ...]
    token_bytes: int
    """Of one token over all layers, while it is inside every window."""
    state_bytes: int
    """Of one sequence, whatever its length."""
    block_tokens: int
    in_flight: int
    """Tokens that may be computed and not settled yet: blocks that fell out of a window are freed only after them."""

    @property
    def _groups(self) -> tuple[tuple[int, Kind], ...]:
        """How many groups each kind of layers is cut into."""
        size = self._group_layers
        return tuple((ceil(kind.layers / size), kind) for kind in self.kinds)

    @property
    def _group_layers(self) -> int:
        """Layers of the group that all are cut towards: the fewest of a kind, or the most where that is not much more."""
        counts = [kind.layers for kind in self.kinds]
        return max(counts) if max(counts) < min(counts) * 1.5 else min(counts)

    @property
    def block_bytes(self) -> int:
        """0: nothing is kept."""
        if not self.kinds:
            return 0
        if all(not kind.window and not kind.states for kind in self.kinds):  # one group, whose layers may differ in size
            return sum(kind.layers * kind.page for kind in self.kinds)
        return max(ceil(kind.layers / groups) for groups, kind in self._groups) * self.kinds[0].page

    def blocks_of_sequence(self, length: int) -> int:
        """Blocks that one sequence of `length` tokens takes."""
        if all(not kind.window and not kind.states for kind in self.kinds):
            return ceil(length / self.block_tokens)
        return sum(groups * kind.blocks(length, self.in_flight) for groups, kind in self._groups)

    def sequence_bytes(self, length: int) -> int:
        """Memory that must be there to serve one sequence of `length` tokens; one block more, which vLLM keeps as the null block."""
        return (self.blocks_of_sequence(length) + 1) * self.block_bytes

    def blocks(self, memory: int) -> int:
        return max(0, memory // self.block_bytes) if self.block_bytes else 0

    def sequences(self, memory: int, length: int) -> float:
        """Sequences of `length` tokens that `memory` bytes hold at once: vLLM's "maximum concurrency"; 0 where nothing is kept."""
        return self.blocks(memory) / self.blocks_of_sequence(length) if self.kinds else 0.0

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


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What decides how the layers' cache is cut, beside the layers themselves."""

    dtype: str
    float_bytes: int
    gpus: int
    block_tokens: int
    """As asked for, or the engine's own; hybrids take more."""
    in_flight: int
    windows: bool = True
    """False: all tokens are kept of layers with a window too."""
    prefix_caching: bool = True
    guesses: int = 0
    """Tokens that speculative decoding adds to a step."""
    state_type: str = ""
    """The data type of the states' matrices where it is not the model's own choice."""


def cache(attention: Attention, layout: Layout) -> Cache:
    """The cache of layers that keep `attention`. Raises ConfigurationError as `cell_bytes`."""
    layers = [(kept, _token_bytes(kept, layout)) for kept in attention.kept]
    token_bytes = sum(kept.layers * size for kept, size in layers)
    state = attention.states
    if not state:
        alike = _one_page([Kind(layers=kept.layers, page=size * layout.block_tokens, tokens=layout.block_tokens, chunked=kept.chunked,
                                window=kept.window if layout.windows else 0) for kept, size in layers])
        return Cache(kinds=tuple(_alike(alike)), token_bytes=token_bytes, state_bytes=0, block_tokens=layout.block_tokens, in_flight=layout.in_flight)
    page = state.size(gpus=layout.gpus, float_bytes=layout.float_bytes, guesses=layout.guesses, matrix_type=layout.state_type)
    if not layers:  # without attention nothing is kept for the prefix cache either
        kind = Kind(layers=state.layers, page=page, tokens=0, states=1 + layout.guesses)
        return Cache(kinds=(kind,), token_bytes=0, state_bytes=page * state.layers, block_tokens=layout.block_tokens, in_flight=layout.in_flight)
    # A block of attention grows until a state fits into it, and states are padded to its size (platforms/interface.py, _align_hybrid_block_size).
    (kept, size), step = layers[0], layout.block_tokens
    if not kept.value_dim:
        step = lcm(step, 128)
    tokens = step * ceil(page / (step * size))
    states = (2 + state.checkpoints if layout.prefix_caching else 1) + layout.guesses
    kinds = [*(Kind(layers=kept.layers, page=size * tokens, tokens=tokens, window=kept.window if layout.windows else 0, chunked=kept.chunked)
               for kept, size in layers), Kind(layers=state.layers, page=size * tokens, tokens=0, states=states)]
    return Cache(kinds=tuple(kinds), token_bytes=token_bytes, state_bytes=page * state.layers, block_tokens=tokens, in_flight=layout.in_flight)


def _token_bytes(kept: Kept, layout: Layout) -> int:
    """That one layer keeps of one token on one GPU."""
    return max(1, kept.kv_heads // layout.gpus) * cell_bytes(kept, layout.dtype, float_bytes=layout.float_bytes)


def _one_page(kinds: list[Kind]) -> Iterator[Kind]:
    """Layers of several sizes share a pool: blocks of smaller ones hold more tokens, or are padded (unify_kv_cache_spec_page_size)."""
    if all(not kind.window for kind in kinds):
        yield from kinds
        return
    largest = max(kind.page for kind in kinds)
    for kind in kinds:
        more = largest // kind.page if largest % kind.page == 0 else 1
        yield replace(kind, page=largest, tokens=kind.tokens * more)


def _alike(kinds: Iterator[Kind]) -> Iterator[Kind]:
    """Those that differ in the number of layers only, as one."""
    counted: Counter[Kind] = Counter()
    for kind in kinds:
        counted[replace(kind, layers=1)] += kind.layers
    for kind, layers in counted.items():
        yield replace(kind, layers=layers)
