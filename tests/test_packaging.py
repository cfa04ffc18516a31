"""What importing the package does, which module may touch what, and what is installed with it."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import forkrunner

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "forkrunner"

#: Modules of the package, by their path without the suffix: `store`, `migrations/env`.
SOURCES = {
    str(path.relative_to(PACKAGE).with_suffix("")): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent != PACKAGE
}

#: Library → the only modules that may import it, at any level (DESIGN section 6, rule 13).
LIBRARIES = {
    "sqlalchemy": {
        "schema",
        "access",
        "asking",
        "supervising",
        "statements",
        "clientsql",
        "supervisorsql",
        "database",
        "wake",
        "migrations",
    }
    | {
        "callers",
        "filerows",
        "oldrows",
        "outbox",
        "postgresql",
        "revision",
        "session",
        "sqlite",
        "transactions",
    },
    "fsspec": {"backends"},
    "alembic": {"schema", "revision", "migrations"},
    "psycopg": {"postgresql", "wake"},
    "pymemcache": {"places"},
    "smtplib": {"mail"},
    "jinja2": {"letter"},
    "click": {"cli", "commands", "invocation", "terminal"},
    "rich": {"terminal", "bars"},
    "setproctitle": {"titles"},
    "subprocess": {"process"},
    "multiprocessing": set(),
}

#: Functions → the only modules that may name them.
FUNCTIONS = {
    **{
        f"os.{name}": {"process"}
        for name in (
            *("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen"),
            *("execl", "execle", "execlp", "execlpe", "execv", "execve", "execvp", "execvpe"),
            *("kill", "killpg", "pidfd_open", "wait", "wait3", "wait4", "waitid", "waitpid"),
        )
    },
    "signal.pidfd_send_signal": {"process"},
    # for the caller, who asked for it: Job.wait, Watcher.follow, `log -f`, a long poll
    "time.sleep": {"pruning", "endpoint", "handle", "logs", "watch"},
    "time.time": {"clock"},
    "time.monotonic": {"clock"},
}

#: A module imports none from a higher floor (DESIGN section 5).
FLOORS = [
    {"errors", "clock", "units", "current", "ids", "internal", "job", "records", "describing"},
    {
        "addresses",
        "config",
        "kinds",
        "sources",
        "frames",
        "mails",
        "mailurl",
        "events",
        "tasks",
        "options",
        "arguments",
        "payload",
        "plain",
        "typed",
        "children",
        "channel",
        "ahead",
        "verdict",
        "outage",
        "molds",
        "costs",
        "redaction",
        "secret",
        "filing",
        "filenames",
    },
    {
        "process",
        "libc",
        "titles",
        "streams",
        "signals",
        "stacks",
        "descriptors",
        "memory",
        "identity",
        "cgroup",
        "limits",
        "measure",
        "notify",
        "oom",
        "scratch",
        "changes",
        "survivors",
        "temporary",
        "live",
        "schema",
        "migrations",
        "database",
        "postgresql",
        "sqlite",
        "statements",
        "clientsql",
        "supervisorsql",
        "batches",
        "callers",
        "revision",
        "store",
        "access",
        "asking",
        "supervising",
        "transactions",
        "wake",
        "progress",
        "common",
        "places",
        "sender",
        "steps",
        "dropin",
        "safepoint",
        "currentjob",
        "session",
        "outbox",
        "facts",
        "gathering",
        "letter",
        "mail",
        "filerows",
        "oldrows",
        "files",
        "storage",
        "backends",
        "locating",
    },
    {
        "application",
        "child",
        "raising",
        "rehearsal",
        "replaying",
        "understudy",
        "mold",
        "boot",
        "wanted",
        "observer",
        "account",
        "ladder",
        "leftovers",
        "witness",
        "link",
        "foundry",
        "lease",
        "handover",
        "supervisor",
        "runner",
        "handle",
        "watch",
    }
    | {"housekeeping", "pruning"}
    | {
        "attempts",
        "hearing",
        "orders",
        "renewal",
        "rows",
        "waking",
        "wishes",
        "mailing",
        "postman",
        "startmail",
    }
    | {"hooks", "safety", "loglines", "surroundings", "lifeline", "keeper", "webservers", "alongside"},
    {
        "cli",
        "commands",
        "invocation",
        "terminal",
        "jsonpages",
        "wording",
        "pages",
        "bars",
        "logs",
        "testing",
        "__main__",
    }
    | {"wsgi", "endpoint", "downloads", "asgi", "openapi"},
]

#: What the process that forks every job is kept free of: a fork costs in proportion to its memory.
HEAVY = {
    *("typing", "dataclasses", "inspect", "logging", "threading", "traceback", "socket", "datetime", "uuid"),
    *("pathlib", "tomllib", "msgspec", "click", "rich", "sqlalchemy", "alembic", "psycopg", "pymemcache"),
}
THIN = [
    "errors",
    "clock",
    "units",
    "tasks",
    "runner",
    "handle",
    "currentjob",
    "channel",
    "process",
    "limits",
    "scratch",
    "children",
    "child",
    "mold",
    "boot",
    "progress",
    "common",
    "places",
    "sender",
    "safepoint",
    "redaction",
    "secret",
    "filing",
]


def fresh(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level modules that importing these loads into a fresh interpreter."""
    code = (
        f"import sys; before = set(sys.modules); import {', '.join(modules)}; import json;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    return {name.partition(".")[0] for name in json.loads(fresh(code))}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk the code that runs: what is imported for type checkers only is not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield from nodes(other)
            continue
        yield node
        yield from nodes(node)


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for every import in a source, the package's own made absolute; name is '' for `import x`."""
    for node in nodes(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folders = ["forkrunner", *module.split("/")[:-1]]
                base = ".".join([*folders[: len(folders) - node.level + 1], *filter(None, [base])])
            yield from ((base, alias.name) for alias in node.names)


def functions(module: str) -> set[str]:
    """Return the dotted names that a source uses, `os.kill`, however it has imported them."""
    aliases: dict[str, str] = {}
    for node in nodes(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    dotted = {f"{base}.{name}" for base, name in imports(module) if name}
    for node in nodes(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted.add(f"{aliases.get(node.value.id, node.value.id)}.{node.attr}")
    return dotted


def role(module: str) -> str:
    return module.partition("/")[0]


def floor(name: str) -> int:
    return next((number for number, names in enumerate(FLOORS) if name in names), -1)


def test_importing_forkrunner_loads_no_library():
    loaded = loaded_by("forkrunner")
    assert loaded & {"sqlalchemy", "alembic", "psycopg", "pymemcache", "click", "msgspec", "rich"} == set()
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("module", THIN)
def test_what_the_mold_imports_is_thin(module):
    assert loaded_by(f"forkrunner.{module}") & HEAVY == set()


def test_importing_each_module_starts_and_changes_nothing():
    """No thread, no child, no file or socket left open, no handler, no hook, no logging, no environment."""
    # env.py runs inside Alembic only; the others are numbered and loaded by it.
    names = [
        f"forkrunner.{name.replace('/', '.')}"
        for name in SOURCES
        if role(name) not in {"migrations", "__main__"}
    ]
    code = f"""
import importlib, json, os, signal, sys, warnings
import logging, threading
def state():
    return {{
        "threads": len(os.listdir("/proc/self/task")),
        "children": open("/proc/self/task/%d/children" % os.getpid()).read() if
            os.path.exists("/proc/self/task/%d/children" % os.getpid()) else "",
        "files": sorted(os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")
                        if os.path.exists("/proc/self/fd/" + fd)),
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "wakeup": (lambda fd: (signal.set_wakeup_fd(fd), fd)[1])(signal.set_wakeup_fd(-1)),
        "hooks": [str(sys.excepthook), str(sys.unraisablehook), str(threading.excepthook), str(sys.gettrace())],
        "logging": [str(logging.root.handlers), logging.root.level],
        "environment": sorted(os.environ.items()),
        "folder": os.getcwd(),
        "path": list(sys.path),
    }}
changed = {{}}
for name in {names!r}:
    before = state()
    importlib.import_module(name)
    after = state()
    for key in before:
        if before[key] != after[key]:
            changed[name, key] = (before[key], after[key])
for key, (old, new) in changed.items():
    print(key, old, "->", new)
"""
    assert fresh(code) == ""


def test_the_public_names_are_sorted_and_exact():
    names = forkrunner.__all__
    assert names == sorted(names)
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(forkrunner, name) is not None
    public = {name for name in vars(forkrunner) if not name.startswith("_")}
    # A submodule is there once something has imported it; `annotations` and TYPE_CHECKING are no names of ours.
    assert public - set(names) <= {"annotations", "TYPE_CHECKING", *map(role, SOURCES)}
    assert set(names) <= set(dir(forkrunner))
    with pytest.raises(AttributeError):
        forkrunner.nothing_of_that_name  # noqa: B018  # the access is the test


def test_every_module_has_a_floor():
    assert {role(module) for module in SOURCES if floor(role(module)) < 0} == set()


def test_the_table_of_floors_in_the_architecture_names_every_file():
    table = re.search(r"^\| floor .*?\n\n", (PACKAGE / "README.md").read_text(), re.M | re.S)
    assert table is not None
    named: dict[str, int] = {}
    number = -1
    for row in table[0].strip().splitlines()[2:]:
        title, _, files = (cell.strip() for cell in row.strip("|").split("|"))
        number += bool(title)
        named |= dict.fromkeys(re.findall(r"`(\w+)(?:\.py|/)`", files), number)
    del named["static"]
    assert named == {name: floor(name) for name in map(role, SOURCES) if name != "__main__"}


@pytest.mark.parametrize("module", SOURCES)
def test_no_module_imports_from_a_higher_floor(module):
    """But for `Runner.wsgi`, which leads from what people have in their hands to the door."""
    higher = set()
    for base, name in imports(module):
        if base.partition(".")[0] == "forkrunner":
            target = base.split(".")[1] if "." in base else name
            if floor(target) > floor(role(module)) >= 0:
                higher.add(target)
    assert higher - ({"wsgi"} if module == "runner" else set()) == set()


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_the_libraries_that_it_may(module):
    found = {base.partition(".")[0] for base, _ in imports(module)}
    assert {
        library for library in found if role(module) not in LIBRARIES.get(library, {role(module)})
    } == set()


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_calls_only_the_functions_that_it_may(module):
    found = functions(module)
    assert {name for name in found if role(module) not in FUNCTIONS.get(name, {role(module)})} == set()


def test_the_fences_see_what_they_are_there_to_see(monkeypatch, tmp_path):
    """An import in a function, one by another name, one in brackets; not one for type checkers."""
    source = (
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    import rich\n"
        "def f():\n    import sqlalchemy.orm\n    from time import sleep\n    import os as o\n    o.kill(1, 2)\n"
        "    from . import store\n    from .wake import open_waker\n"
    )
    path = tmp_path / "x.py"
    path.write_text(source)
    monkeypatch.setitem(SOURCES, "x", path)
    assert set(imports("x")) == {
        ("sqlalchemy.orm", ""),
        ("time", "sleep"),
        ("os", ""),
        ("forkrunner", "store"),
        ("forkrunner.wake", "open_waker"),
    }
    assert {"os.kill", "time.sleep"} <= functions("x")


def test_the_version_stands_in_one_place_and_is_the_newest_in_the_changelog():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: forkrunner.__version__"
    # setuptools reads it without importing only if it is a plain string.
    assert re.search(
        rf'^__version__ = "{re.escape(forkrunner.__version__)}"$', (PACKAGE / "__init__.py").read_text(), re.M
    )
    headings = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [heading.strip("[").split("]")[0].split(" ")[0] for heading in headings[1:2]]
    assert released in ([], [forkrunner.__version__])


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package_and_no_other(tmp_path):
    """Built from a copy, because setuptools leaves a build folder behind that the next wheel would pick up."""
    import shutil
    import zipfile

    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    shutil.copytree(PACKAGE, copy / "forkrunner", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    (copy / "tests/__init__.py").touch()
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", str(tmp_path), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"forkrunner-{forkrunner.__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(
            archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")
        )
        entries = next(
            archive.read(name).decode() for name in archive.namelist() if name.endswith("/entry_points.txt")
        )
    expected = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert packed == expected
    assert "forkrunner = forkrunner.cli:main" in entries
    assert re.search(r"^License(-Expression)?: MIT$", metadata, re.MULTILINE)
