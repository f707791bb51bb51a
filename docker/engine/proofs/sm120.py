"""Do the extension modules carry machine code for an RTX 5090 (sm_120)? Read from the files; needs no GPU. Standard library only.

    python sm120.py SITE_PACKAGES           checks the modules in MODULES, prints what each carries, exits 5 when one lacks sm_120
    python sm120.py --module FILE           the same for one file

nvcc puts its output into the ELF section .nv_fatbin as "fat binaries": a header (magic number, size), then for each GPU
generation a header (kind, sizes, generation) and the code. Kind 2 is machine code for exactly that generation, kind 1 is PTX, which
a driver compiles at first use.
"""

import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

MODULES = ("vllm/_C_stable_libtorch.abi3.so", "vllm/_moe_C_stable_libtorch.abi3.so")
"""Sampling, normalization, quantization and matrix kernels; and the mixture-of-experts kernels."""

CONTROL = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
"""FlashAttention 2 is known to be sm_80 code and PTX: the check must say that it has no sm_120, or it proves nothing."""

GENERATION = 120
FATBIN = struct.Struct("<IHHQ")
ENTRY = struct.Struct("<HHIQIIII")
MAGIC = 0xBA55ED50
KINDS = {1: "PTX", 2: "code"}


def section(path: Path, name: str) -> bytes:
    """The bytes of one section of a 64-bit little-endian ELF file. Raises ValueError when the file is none or lacks the section."""
    with path.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is not a 64-bit ELF file")
        table, (size, count, names_index) = struct.unpack_from("<Q", header, 40)[0], struct.unpack_from("<HHH", header, 58)
        file.seek(table)
        headers = [struct.unpack("<IIQQQQIIQQ", file.read(size)[:64]) for _ in range(count)]
        file.seek(headers[names_index][4])
        names = file.read(headers[names_index][5])
        for entry in headers:
            if names[entry[0]:].partition(b"\0")[0].decode() == name:
                file.seek(entry[4])
                return file.read(entry[5])
    raise ValueError(f"{path} has no section {name}")


def entries(data: bytes) -> Iterator[tuple[str, int]]:
    """(kind, GPU generation) of everything in a .nv_fatbin section. Raises ValueError where the format is not the one known here."""
    at = 0
    while at + FATBIN.size <= len(data):
        magic, _version, header, size = FATBIN.unpack_from(data, at)
        if magic == 0:  # padding between two fat binaries
            at += 8
            continue
        if magic != MAGIC:
            raise ValueError(f"unknown magic number {magic:#x} at {at:#x}")
        at += header
        end = at + size
        while at < end:
            kind, _version, header, size, *_, generation = ENTRY.unpack_from(data, at)
            yield KINDS.get(kind, f"kind {kind}"), generation
            at += header + size
        at = end


def carried(path: Path) -> Counter[tuple[str, int]]:
    """How often `path` carries which kind for which generation."""
    return Counter(entries(section(path, ".nv_fatbin")))


def describe(found: Counter[tuple[str, int]]) -> str:
    return ", ".join(f"sm_{generation} {kind} {count}" for (kind, generation), count in sorted(found.items()))


def check(path: Path) -> bool:
    """Print what `path` carries; True when there is machine code for GENERATION."""
    found = carried(path)
    there = found[("code", GENERATION)] > 0
    print(f"{'ok  ' if there else 'FAIL'} {path.name}: {describe(found)}")
    return there


def main(argv: Sequence[str]) -> int:
    if len(argv) == 2 and argv[0] == "--module":
        return 0 if check(Path(argv[1])) else 5
    if len(argv) != 1:
        print("usage: sm120.py SITE_PACKAGES | --module FILE", file=sys.stderr)
        return 2
    site = Path(argv[0])
    good = [check(site / module) for module in MODULES]
    control = carried(site / CONTROL)
    print(f"control {Path(CONTROL).name}: {describe(control)}")
    if control[("code", GENERATION)]:
        print(f"{CONTROL} was known to lack sm_{GENERATION}: choose another control", file=sys.stderr)
        return 5
    return 0 if all(good) else 5


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
