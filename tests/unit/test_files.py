"""base.files: what is written is whole or not there."""

from pathlib import Path

import pytest

from bundle.base import files


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "site.env"
    path.write_text("old")

    def broken(self: Path, text: str, encoding: str) -> int:
        with self.open("w", encoding=encoding) as file:
            file.write(text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(path, "the new text")
    assert path.read_text() == "old"


def test_what_was_private_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "site.env"
    path.write_text("old")
    path.chmod(0o600)
    files.write_whole(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * (2**20 + 1))
    assert files.digest(tmp_path / "a") == "4a3f0c0c213adea174f9a3d4c13177315b588bdb2e9c1012d3d0bf0453ca0f6a"
