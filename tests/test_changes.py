"""Which file has changed: real files, no process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forkrunner.changes import Changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "jobs.py",
        "shop/models.py",
        "shop/notes.txt",
        "venv/pyvenv.cfg",
        "venv/lib.py",
        ".git/hook.py",
    ):
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    return tmp_path / "app"


def settled(changes: Changes) -> str | None:
    """Look twice: what is new is told when it has come to rest."""
    first = changes.changed()
    return first or changes.changed()


@pytest.mark.parametrize("name", ["jobs.py", "shop/models.py", "new.py", "shop/forkrunner.toml"])
def test_what_is_written_is_told_once(folder: Path, name: str) -> None:
    changes = Changes(str(folder))
    assert settled(changes) is None
    (folder / name).write_text("22")
    assert settled(changes) == str(folder / name)
    assert settled(changes) is None


def test_a_file_that_is_replaced_or_removed(folder: Path) -> None:
    changes = Changes(str(folder))
    before = (folder / "jobs.py").stat()
    (folder / "jobs.new").write_text("2")
    os.utime(folder / "jobs.new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(folder / "jobs.new", folder / "jobs.py")
    assert settled(changes) == str(folder / "jobs.py")
    (folder / "shop/models.py").unlink()
    assert settled(changes) == str(folder / "shop/models.py")


@pytest.mark.parametrize("name", ["shop/notes.txt", "venv/lib.py", ".git/hook.py", "shop/__pycache__/x.py"])
def test_what_is_not_the_applications_is_passed_over(folder: Path, name: str) -> None:
    changes = Changes(str(folder))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("22")
    assert settled(changes) is None


def test_while_files_are_being_written_nothing_is_told(folder: Path) -> None:
    changes = Changes(str(folder))
    for n in range(5):
        (folder / f"{n}.py").write_text("2")
        assert changes.changed() is None
    assert changes.changed() == str(folder / "0.py")


def test_what_was_imported_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "library.py"
    other.write_text("1")
    changes = Changes(str(folder))
    changes.add([str(other), str(folder / "jobs.py")])
    assert settled(changes) is None
    other.write_text("22")
    assert settled(changes) == str(other)
