"""The web process's end: it says that it is there, and starts the keeper if nobody hears that.

What it leaves in a web process is nothing: no thread, no open file, no child, no handler. It tells its pid; the
keeper (`keeper.py`) watches that by a pidfd, which no fork of a web process can fool, as it could a socket.

    is a keeper there?  yes ──▶ one datagram, and it knows us
                        no  ──▶ a new interpreter is started, with the same words: it becomes the keeper, or,
                                when another was faster, passes them on and ends

Asked again by whoever enqueues, and by the middleware for requests, once a second at most: if all of forkrunner was
killed, that starts it again.
"""

from __future__ import annotations

import json
import os
import sys
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from . import clock, identity, process, surroundings
from .errors import TargetError
from .places import place

if TYPE_CHECKING:
    from .runner import Runner

#: Variable with the words for a new keeper. No argument: all users see those, and there are passwords among the settings.
VARIABLE = "FORKRUNNER_HELLO"
_CODE = "from forkrunner.keeper import main; main()"
#: Seconds between two looks for the keeper; where it does not come up the pause is doubled up to the second.
_PATIENCE, _LAST_PATIENCE = 1.0, 60.0
#: A module's file is told for that the keeper looks at it; of more the folder of the application is enough.
_MOST_FILES = 500


def names(home: str) -> tuple[str, str, str]:
    """Return the paths of the keeper's lock, socket and state; pids mean something in their own namespace only."""
    stem = os.path.join(home, f"keeper-{identity.pid_namespace()}")
    return f"{stem}.lock", f"{stem}.sock", f"{stem}.json"


def send(home: str, words: dict[str, Any]) -> bool:
    """Say something to the keeper, without waiting; False if there is none, or it has no time."""
    import _socket  # the bare one, whatever a web server has put in the place of `socket`

    path = names(home)[1]
    try:
        # in a folder that somebody else could have made before us: he would read our settings
        if os.stat(home).st_uid != os.geteuid():
            return False
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        # the path of a socket has 107 bytes at most, a runtime folder may be longer
        surroundings.send(sock, f"/proc/self/fd/{folder}/{os.path.basename(path)}", words)
    except OSError:
        return False
    finally:
        sock.close()
        os.close(folder)
    return True


class Lifeline:
    """What one web process, and each that is forked from it, has to say."""

    def __init__(self, runner: Runner, target: str, folder: str) -> None:
        """Find out what is to be said.

        Raises:
            ConfigError: a setting is wrong.
        """
        settings = runner.settings
        database = runner.url
        self.home = str(place(settings, database)["runtime"])
        command = {
            "python": _interpreter(),
            "target": target,
            "folder": folder,
            "path": os.pathsep.join(_paths()),
            "settings": {name: value for name, value in os.environ.items() if _is_setting(name)},
        }
        self._words: dict[str, Any] = {
            "command": command,
            "files": _files(folder),
            "log": [settings.log_level, settings.log_format],
            "forked": False,
        }
        self._asked = 0.0
        #: Keepers that were started one after the other.
        self._tries = 0
        self._lock = allocate_lock()

    def hold(self) -> None:
        """Make certain that there is a keeper and that it knows this process."""
        self._asked = clock.monotonic()
        words = self._hello()
        if send(self.home, words):
            self._tries = 0
        else:
            self._tries += 1
            path = self._words["command"]["path"]
            argv = [self._words["command"]["python"], "-c", _CODE, self.home]
            process.spawn_away(
                argv,
                surroundings.inherited() | {"PYTHONPATH": path, VARIABLE: json.dumps(words)},
                self._words["command"]["folder"],
            )

    def check(self) -> None:
        """As `hold`, now and then; never raises, never waits."""
        pause = min(_PATIENCE * 2 ** max(0, min(self._tries, 10) - 1), _LAST_PATIENCE)
        if clock.monotonic() - self._asked < pause or not self._lock.acquire(blocking=False):
            return
        try:
            self.hold()
        except OSError:
            pass  # no process is to be had: later
        finally:
            self._lock.release()

    def after_fork(self) -> None:
        """In a fork of a web process: say that it is there too. Starts nothing: that is for its parent."""
        self._lock = allocate_lock()
        self._asked = clock.monotonic()
        self._words["forked"] = True
        send(self.home, self._hello())

    def _hello(self) -> dict[str, Any]:
        pid, parent = os.getpid(), os.getppid()
        image = identity.image(pid)
        # a fork that is no other program: its parent is the server's master, and with it the server ends
        is_worker = identity.image(parent) == image or _is_spawned_worker() or _is_reloaded()
        return self._words | {
            "process": [pid, identity.start_ticks(pid)],
            "master": [parent, identity.start_ticks(parent)] if is_worker else None,
            "server": identity.image(parent) if is_worker else image,
        }


def _is_spawned_worker() -> bool:
    """Say whether multiprocessing has started this process, as uvicorn does: a new program, and a worker all the same."""
    module = sys.modules.get("multiprocessing.process")
    parent = module.parent_process() if module is not None else None
    # that one may have been killed, and ours be init, which is nobody's master
    return parent is not None and parent.pid == os.getppid()


def _is_reloaded() -> bool:
    """Say whether this is the process that Django's or Werkzeug's reloader starts anew at each change of the code."""
    return "true" in (os.environ.get("RUN_MAIN"), os.environ.get("WERKZEUG_RUN_MAIN"))


def _is_setting(name: str) -> bool:
    return name.startswith("FORKRUNNER_") and name not in (VARIABLE, "FORKRUNNER_START", "FORKRUNNER_ATTEMPT")


def _interpreter() -> str:
    """Find Python; in a server that only has it built in, sys.executable is the server."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    names = [os.path.join(sys.prefix, "bin", name) for name in (version, "python3", "python")]
    own = sys.executable or ""
    # uWSGI names the interpreter that its environment was made of: it would not find what is installed there
    rest = [own] if os.path.basename(own).startswith("python") else []
    for path in (*names, *rest, os.path.join(sys.base_prefix, "bin", version)):
        if os.access(path, os.X_OK):
            return path
    raise TargetError(f"no Python is found to run jobs with: expected one in {sys.prefix}/bin")


def _paths() -> list[str]:
    """Return what of sys.path a new interpreter would not have by itself."""
    own = os.path.dirname(os.__file__)
    site = os.path.join(sys.prefix, "lib")
    found = []
    for entry in sys.path:
        path = os.path.abspath(entry)  # of an empty one: the folder that we are in
        usual = path.startswith((own, site)) or path.endswith(".zip") or entry.startswith("__")
        if not usual and path not in found:
            found.append(path)
    return found


def _files(folder: str) -> list[str]:
    """Return the files of the application that are not below its folder, and where packages are installed."""
    below = os.path.join(folder, "")
    own = os.path.join(os.path.dirname(os.__file__), "")
    found = {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if (
            isinstance(path, str)
            and path.startswith("/")
            and not path.startswith((below, own))
            and "-packages/" not in path
        ):
            found.add(path)
    return sorted(found)[:_MOST_FILES]


def find_target(runner: Runner) -> tuple[str, str | None]:
    """Return MODULE:RUNNER of a runner, and the folder in which the module is found if sys.path does not lead there.

    Raises:
        TargetError: it is in no module that could be imported elsewhere.
    """
    if runner.target is not None:
        return runner.target, None
    found = [
        (module, attribute)
        for module in list(sys.modules.values())
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is runner
    ]
    # where it was made before what has imported it
    found.sort(key=lambda place: place[0].__name__ != runner.module)
    for module, attribute in found:
        name, path = module.__name__, getattr(module, "__file__", None)
        spec = getattr(module, "__spec__", None)
        if name == "__main__" and spec is not None:  # python -m
            name = spec.name
        if _leads_to(name, path):
            return f"{name}:{attribute}", None
    for module, attribute in found:
        # a file that a server has loaded under a name of its own, or the script itself
        path = getattr(module, "__file__", None)
        stem, ending = os.path.splitext(os.path.basename(path or ""))
        if path and stem.isidentifier() and ending == ".py":
            return f"{stem}:{attribute}", os.path.dirname(os.path.abspath(path))
    raise TargetError(
        "the runner is not at the top of a module that could be imported: expected start(runner, target='MODULE:RUNNER')"
    )


def _leads_to(name: str, path: str | None) -> bool:
    """Say whether importing that name would load that file."""
    if path is None or name == "__main__":
        return False
    stem = os.path.splitext(os.path.basename(path))[0]
    if stem == "__init__":
        stem = os.path.basename(os.path.dirname(os.path.abspath(path)))
    if name.rpartition(".")[2] != stem:
        # uWSGI loads site.py as uwsgi_file_site, and what is loaded already can be found under any name
        return False
    from importlib.util import find_spec

    try:
        spec = find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return (
        spec is not None
        and spec.origin is not None
        and os.path.realpath(spec.origin) == os.path.realpath(path)
    )
