"""Folders of our own, and those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from forkrunner.identity import private_folder


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_folder_that_was_made_for_us_is_closed(tmp_path: Path) -> None:
    """By systemd, say, which opens it again at each start."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (None, "0198c5e1-0000-7000-8000-000000000000.life", "0123456789abcdef"):
        if name:
            (folder / name).touch()
        folder.chmod(0o755)
        assert private_folder(str(folder)) == str(folder)
        assert mode(folder) == 0o700


@pytest.mark.parametrize(("open_to", "name"), [(0o755, "somebody's"), (0o1777, "0123456789abcdef")])
def test_a_folder_of_others_is_refused_and_left_as_it_is(tmp_path: Path, open_to: int, name: str) -> None:
    """For root /proc and /tmp are its own."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(open_to)
    (folder / name).touch()
    with pytest.raises(PermissionError, match=rf"is open to others \(mode {open_to:o}\) and theirs too"):
        private_folder(str(folder))
    assert mode(folder) == open_to
    folder.chmod(0o700)
    private_folder(str(folder))  # nobody else can see it


def test_a_link_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        private_folder(str(tmp_path / "link"))
