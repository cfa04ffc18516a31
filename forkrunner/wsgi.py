"""What a WSGI file imports: forkrunner started with the web server, and the endpoint for progress.

    from forkrunner.wsgi import start
    start(runner)                      # or: application = runner.wsgi(application)

The endpoint is in `endpoint.py` and loaded when it is first needed, since Werkzeug takes its time.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, TargetError
from .runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .endpoint import ProgressApp as ProgressApp
    from .endpoint import progress_app as progress_app
    from .endpoint import public_error as public_error

_ENDPOINT = frozenset({"ProgressApp", "progress_app", "public_error"})
#: Says whether to start, over what the code says.
VARIABLE = "FORKRUNNER_START"
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_DJANGO = frozenset({"runserver", "runserver_plus", "testserver"})
#: Programs that import a site for many things → those among them that serve it.
_COMMANDS: dict[str, frozenset[str]] = {
    "manage.py": _DJANGO,
    "django-admin": _DJANGO,
    "django": _DJANGO,
    "flask": frozenset({"run"}),
    **dict.fromkeys(("alembic", "nose2", "proutes", "pshell", "pviews", "unittest"), frozenset()),
}


def __getattr__(name: str) -> object:
    if name not in _ENDPOINT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import endpoint

    value: object = getattr(endpoint, name)
    return value


def start(runner: Runner, target: str | None = None, start: bool | None = None) -> bool:
    """Run the jobs of `runner` for as long as this web server lives; say whether that is so.

    To be called where the web server imports its application. However many processes do that, one supervisor runs for each
    host and database; it takes new code when the web server does, and stops when the last of its processes is gone. Nothing
    is left in this process: no thread, no open file.

    `target` is MODULE:RUNNER, for a runner that is not at the top of its module, or for a lighter module than the whole site.
    Nothing happens in a job or a `forkrunner` command; and in a test run, an interactive shell or a management command of
    Django's or Flask's only if `start` or FORKRUNNER_START says 1. FORKRUNNER_START=0, or `start=False`, switches it off.

    What keeps it from starting is told on standard error: a web site works without its jobs. Raises TargetError where the code
    has to be mended.
    """
    if not isinstance(runner, Runner):
        raise TypeError(f"start: expected a forkrunner.Runner, got {type(runner).__name__}")
    if not _is_wanted(start):
        return False
    if runner.lifeline is not None:
        return True
    from .lifeline import Lifeline, find_target

    folder = None
    if target is None:
        target, folder = find_target(runner)
    else:
        target = _checked(target)
    try:
        lifeline = Lifeline(runner, target, folder or runner.folder)
        lifeline.hold()
    except (ConfigError, OSError) as error:
        _tell(error)
        return False
    runner.lifeline = lifeline
    os.register_at_fork(after_in_child=lifeline.after_fork)
    return True


def _checked(target: str) -> str:
    module, _, name = target.partition(":")
    names = [*module.split("."), *(name or "runner").split(".")]
    if not all(part.isidentifier() for part in names):
        raise TargetError(f"start: target: expected MODULE:RUNNER, got {target!r}", target=target)
    return f"{module}:{name or 'runner'}"


def _tell(why: object) -> None:
    sys.stderr.write(f"forkrunner is not started with the web server: {why}\n")


def _is_wanted(start: bool | None) -> bool:
    if "forkrunner.mold" in sys.modules:  # also in the jobs
        return False
    said = os.environ.get(VARIABLE, "").strip().lower()
    if said:
        if said not in _YES + _NO:
            _tell(f"{VARIABLE}: expected 1 or 0, got {said!r}")
        return said in _YES
    return start if start is not None else not _is_no_server()


def _is_no_server() -> bool:
    """Say whether this is a test run, an interactive shell or a management command."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    # python -m NAME, or a script
    name = spec.name.partition(".")[0] if spec is not None else os.path.basename((sys.argv or [""])[0])
    return (
        "_pytest" in sys.modules
        or hasattr(sys, "ps1")
        or bool(sys.flags.interactive)
        or _is_ipython()
        or (name in _COMMANDS and _COMMANDS[name].isdisjoint(sys.argv[1:]))
        or _is_test(name)
    )


def _is_test(name: str) -> bool:
    # python test_site.py, which ends in unittest.main()
    stem = name.removesuffix(".py")
    return "unittest" in sys.modules and (stem.startswith("test_") or stem.endswith(("_test", "_tests")))


def _is_ipython() -> bool:
    # that it is imported says nothing: an application may do that
    running = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return running is not None and running() is not None


class Mounted:
    """A WSGI application with the progress endpoint of a runner under a path, and forkrunner started with its server."""

    def __init__(
        self,
        runner: Runner,
        app: WSGIApplication,
        mount: str = "/jobs",
        *,
        target: str | None = None,
        start: bool | None = None,
        **options: Any,
    ) -> None:
        """Start, as `start` does; `options` are those of `ProgressApp`.

        Raises:
            ValueError: `mount` is no path.
            TargetError: as `start`.
        """
        # "/" too is refused: nothing would be left for the application
        path = str(mount).rstrip("/")
        if not path.startswith("/"):
            raise ValueError(f"mount: expected a path as /jobs, got {mount!r}")
        self.runner, self.app, self.mount = runner, app, path
        self._options = options
        self._endpoint: ProgressApp | None = None
        _start(runner, target, start)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self.runner.lifeline is not None:
            self.runner.lifeline.check()
        path = environ.get("PATH_INFO", "")
        if path != self.mount and not path.startswith(self.mount + "/"):
            return self.app(environ, start_response)
        environ = environ | {
            "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + self.mount,
            "PATH_INFO": path[len(self.mount) :],
        }
        return self.endpoint(environ, start_response)

    @property
    def endpoint(self) -> ProgressApp:
        """The endpoint; its `script` is the name of the browser's module below the mount."""
        if self._endpoint is None:
            from .endpoint import ProgressApp

            self._endpoint = ProgressApp(self.runner, **self._options)
        return self._endpoint


#: By another name, where a parameter has its own.
_start: Callable[..., bool] = start
