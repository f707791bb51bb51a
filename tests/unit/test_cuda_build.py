"""What the CUDA image's build relies on to fail when it should: its proofs and its pruning, on small files made for the purpose."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

import prune_cuda
import sm120
from bundle import ROOT


def fat_binary(*entries: tuple[int, int]) -> bytes:
    """A .nv_fatbin section as nvcc writes it: (kind, GPU generation) of each entry, with 16 bytes of "code" each."""
    heads = (struct.pack("<HHIQIIII", kind, 0x101, 64, 16, 0, 0, 0, generation) for kind, generation in entries)
    body = b"".join(head.ljust(64, b"\0") + b"\x11" * 16 for head in heads)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def module(path: Path, section: str, content: bytes) -> Path:
    """A 64-bit ELF file with one section of that name and content."""
    names = b"\0" + section.encode() + b"\0.shstrtab\0"
    table_at = 64 + len(content) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    described = [(1, 64, len(content)), (len(section) + 2, 64 + len(content), len(names))]
    table = bytes(64) + b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in described)
    path.write_bytes(header + content + names + table)
    return path


def test_a_module_with_code_for_the_card_passes(tmp_path: Path) -> None:
    assert sm120.check(module(tmp_path / "m.so", ".nv_fatbin", fat_binary((2, 80), (2, 120), (1, 90))))


@pytest.mark.parametrize("entries", [((2, 80), (1, 80)), ((1, 120),), ((2, 90), (2, 121)), ()])
def test_a_module_without_it_does_not(tmp_path: Path, entries: tuple[tuple[int, int], ...]) -> None:
    # PTX for the card is not code for it: the driver would compile for minutes at the first start.
    assert not sm120.check(module(tmp_path / "m.so", ".nv_fatbin", fat_binary(*entries)))


def test_several_fat_binaries_in_one_section_are_all_read(tmp_path: Path) -> None:
    content = fat_binary((2, 80)) + bytes(8) + fat_binary((2, 90), (2, 120))
    assert sm120.carried(module(tmp_path / "m.so", ".nv_fatbin", content)) == {("code", 80): 1, ("code", 90): 1, ("code", 120): 1}


def test_a_file_of_another_kind_is_an_error_and_not_a_pass(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no module")
    with pytest.raises(ValueError, match=r"is not a 64-bit ELF file"):
        sm120.check(tmp_path / "text.so")
    with pytest.raises(ValueError, match=r"has no section \.nv_fatbin"):
        sm120.check(module(tmp_path / "m.so", ".text", b"code"))
    with pytest.raises(ValueError, match="unknown magic number"):
        sm120.check(module(tmp_path / "m.so", ".nv_fatbin", b"\xff" * 64))


def test_a_pruning_rule_removes_files_and_folders_and_counts_them(tmp_path: Path) -> None:
    (tmp_path / "package/tests").mkdir(parents=True)
    (tmp_path / "package/tests/a.py").write_bytes(b"x" * 100)
    (tmp_path / "package/big.a").write_bytes(b"x" * 1000)
    (tmp_path / "package/stays.py").write_bytes(b"x")
    assert prune_cuda.remove(tmp_path, prune_cuda.Rule(what=("package/tests", "package/*.a"), why="a test")) == 1100
    assert [path.name for path in (tmp_path / "package").iterdir()] == ["stays.py"]


def test_a_pruning_rule_that_finds_nothing_ends_the_build(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"gone/\* matches nothing .*\(nobody needs it\)"):
        prune_cuda.remove(tmp_path, prune_cuda.Rule(what=("gone/*",), why="nobody needs it"))


def packages(folder: Path, **digests: str) -> subprocess.CompletedProcess[str]:
    """What proofs/packages.py says when each named package has installed its version of the same file."""
    for name, digest in digests.items():
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"shared/file.py,sha256={digest},7\n{name}-1.0.dist-info/RECORD,,\n")
    return subprocess.run([sys.executable, "-S", str(ROOT / "docker/engine/proofs/packages.py")], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(folder)}, timeout=60)


def test_two_packages_with_different_contents_for_one_file_end_the_build(tmp_path: Path) -> None:
    done = packages(tmp_path, one="aaa", two="bbb")
    assert (done.returncode, done.stdout) == (5, "shared/file.py: one and two\n")


def test_two_packages_with_the_same_file_are_fine(tmp_path: Path) -> None:
    assert packages(tmp_path, one="aaa", two="aaa").returncode == 0
