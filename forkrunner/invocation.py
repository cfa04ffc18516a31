"""What was typed: which application, which settings, which database, which job; and how a command ends.

Exit statuses: 0 fine, 1 what was asked about is bad, 2 the asking was (usage, settings, target, database).
An error is one line on standard error and never a traceback unasked. Only what a command needs is imported:
`--help` loads neither SQLAlchemy nor rich.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from forkrunner.config import SETTINGS, Settings
from forkrunner.describing import closest
from forkrunner.errors import ForkrunnerError, JobNotFound, JobStateError, TargetError
from forkrunner.ids import is_id
from forkrunner.sources import FROM_DEFAULT, load
from forkrunner.units import mask

if TYPE_CHECKING:
    from forkrunner.records import Row
    from forkrunner.runner import Runner
    from forkrunner.safety import Watch
    from forkrunner.store import Store

F = TypeVar("F", bound=Callable[..., Any])

FINE, BAD, WRONG, INTERRUPTED = 0, 1, 2, 130
#: No setting: it is asked for before any can be read.
TRACEBACK = "FORKRUNNER_TRACEBACK"
#: Flags that were given, whichever side of the command they stood on; in the context, which both share.
_FLAGS = "forkrunner.flags"

_TARGET = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
_PART_OF_ID = re.compile(r"[0-9a-fA-F-]{6,35}")
#: A part of an id is looked for among so many of the newest jobs.
_RECENT = 200
#: Objects between two looks for garbage. What is imported is none, and to look through it takes a tenth of a start.
_OBJECTS = 50_000
_USUAL = gc.get_threshold()


# --------------------------------------------------------------------------- errors


class Group(click.Group):
    """Click's group with our way to end: exit statuses, one line for an error, never a traceback unasked."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the file, which is that of first need

    def main(self, *args: Any, **kwargs: Any) -> Any:
        gc.set_threshold(_OBJECTS)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that knows no … is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        # importing an application must not start what we are here to do; the same for all that we start
        os.environ["FORKRUNNER_START"] = "0"
        kwargs |= {"prog_name": "forkrunner", "standalone_mode": False}
        try:
            status = super().main(*args, **kwargs)
            _flush()
        except BaseException as error:  # noqa: BLE001 - the last one to see it, whatever it is
            status = _explain(error)
        try:
            _flush()
        except OSError:
            # it cannot be written: the interpreter would try again, and complain in its own words
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        # the interpreter looks for garbage twice as it ends: with SQLAlchemy imported, a sixth of the time of most commands
        gc.freeze()
        sys.exit(status or FINE)


def collect_as_usual() -> None:
    """Look for garbage as often as Python does by itself, for what runs for months; but never in what is there by now."""
    gc.freeze()
    gc.set_threshold(*_USUAL)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _explain(error: BaseException) -> int:
    """Say on standard error what is wrong, on one line, and return the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else WRONG if error.code else FINE
    if isinstance(error, (KeyboardInterrupt, click.Abort, EOFError)):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return BAD  # whoever read has had enough
    if os.environ.get(TRACEBACK, "") not in ("", "0"):
        _print_traceback(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)  # the help, as a page
        return WRONG
    if isinstance(error, click.ClickException):
        complain(error.format_message())
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        if path:
            click.echo(f"Try '{path} --help'.", err=True)
        return WRONG
    if isinstance(error, TargetError):
        complain(_target_message(error))
    elif isinstance(error, ForkrunnerError):
        complain(str(error))
        return BAD if isinstance(error, (JobNotFound, JobStateError)) else WRONG
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
    else:
        where = _last_frame(error)
        complain(
            f"{type(error).__name__}: {error} ({where}). This is a bug in forkrunner;"
            f" {TRACEBACK}=1 makes it print the traceback that a report needs"
        )
    return WRONG


def complain(message: str) -> None:
    from forkrunner.terminal import short

    click.echo(f"forkrunner: {short(message, 2000)}", err=True)


def _print_traceback(error: BaseException) -> None:
    import traceback

    from forkrunner.terminal import clean_lines

    # the application's own, where it has come from a mold as text
    text = getattr(error, "traceback", None) or "".join(traceback.format_exception(error))
    click.echo(clean_lines(text).rstrip(), err=True)


def _last_frame(error: BaseException) -> str:
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "nowhere"


def _target_message(error: TargetError) -> str:
    """Add to an import that failed where it did, and which module was probably meant."""
    message = str(error)
    ours = os.path.dirname(os.path.abspath(__file__))
    found = re.findall(r'File "([^"<]+)", line (\d+)', getattr(error, "traceback", None) or "")
    frames = [
        (path, line)
        for path, line in found
        if os.path.dirname(path) != ours and not path.endswith("/importlib/__init__.py")
    ]
    # the application's own line says more than one of a library that it called
    here = os.path.join(os.getcwd(), "")
    own = [frame for frame in frames if frame[0].startswith(here) and "/site-packages/" not in frame[0]]
    for path, line in (own or frames)[-1:]:
        message += f", at {path.removeprefix(here)}:{line}"
    missing = re.match(r"([\w.]+):.*ModuleNotFoundError: No module named '([\w.]+)'", message)
    if missing and not frames:
        names = [
            entry.removesuffix(".py")
            for entry in os.listdir()
            if entry.endswith(".py") or os.path.isdir(entry)
        ]
        close = closest(missing[2].partition(".")[0], names)
        message += f"; did you mean {close}?" if close else ""
    return message


# --------------------------------------------------------------------------- options


def _note_flag(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a setting that was given, for us and for all that we start or import.

    As a variable too: a job that enqueues another must find the same database.
    """
    if value is None or value == ():
        return
    setting = SETTINGS[parameter.name or ""]
    context.meta.setdefault(_FLAGS, {})[setting.name] = value
    if setting.is_bool:
        value = str(value).lower()
    os.environ[setting.env] = ",".join(value) if setting.multiple else value


def _note_traceback(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ[TRACEBACK] = "1"


def _flag(name: str) -> Callable[[F], F]:
    setting = SETTINGS[name]
    flag = setting.flag or ""
    twin = f"/--no-{flag[2:]}" if setting.is_bool else ""
    return click.option(
        flag + twin,
        name,
        default=None,
        metavar=None if setting.is_bool else setting.metavar,
        multiple=setting.multiple,
        expose_value=False,
        callback=_note_flag,
        help=f"{setting.help}.  [{setting.default_text}]",
    )


def _traceback_flag(function: F) -> F:
    option = click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_note_traceback,
        help=f"Print the traceback of an error too; or set {TRACEBACK}=1.",
    )
    return option(function)


def flags(*names: str) -> Callable[[F], F]:
    """Add the flags of these settings, and those that every command has."""

    def decorate(function: F) -> F:
        function = _traceback_flag(function)
        for name in reversed(names):
            function = _flag(name)(function)
        return function

    return decorate


ALL_FLAGS = tuple(name for name, setting in SETTINGS.items() if setting.flag)
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
secrets_flag = click.option(
    "--secrets", is_flag=True, help="Do not hide Secrets, and values whose names sound like secrets."
)


def words_argument(metavar: str) -> Callable[[F], F]:
    return click.argument("words", nargs=-1, metavar=metavar)


# --------------------------------------------------------------------------- target, settings, database


def usage_error(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context())


def only_target(words: tuple[str, ...]) -> str | None:
    if len(words) > 1:
        raise usage_error(f"expected MODULE:RUNNER and nothing after it, got {words[1]!r} too")
    return words[0] if words else None


def target_and_ids(words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Take the target off the front: what looks like one, or a name before something else."""
    first = words[0] if words else ""
    is_name = len(words) > 1 and not _PART_OF_ID.fullmatch(first.lstrip("…")) and not is_id(first.lower())
    target, ids = (first, words[1:]) if _TARGET.fullmatch(first) or is_name else (None, words)
    if not ids:
        raise usage_error("expected the id of a job; `forkrunner list` shows them")
    return target, ids


def target_and_id(words: tuple[str, ...]) -> tuple[str | None, str]:
    target, ids = target_and_ids(words)
    if len(ids) > 1:
        raise usage_error(f"expected one id, got {ids[1]!r} too")
    return target, ids[0]


def target_and_call(words: tuple[str, ...]) -> tuple[str | None, str, str]:
    """Tell target, task and JSON apart: MODULE:NAME is a target, and so is a name before a task."""
    target = None
    looks_like_json = len(words) == 2 and words[1].lstrip()[:1] in ("{", "[", '"', "-")
    if words and (_TARGET.fullmatch(words[0]) or len(words) > 2 or (len(words) == 2 and not looks_like_json)):
        target, words = words[0], words[1:]
    if not words:
        raise usage_error("expected the name of a task; `forkrunner check` shows them")
    if len(words) > 2:
        raise usage_error(
            f"expected TASK and one JSON object, quoted as '{{\"scale\": 2}}', got {words[2]!r} too"
        )
    return target, words[0], words[1] if len(words) > 1 else "{}"


def load_settings(target: str | None, code: dict[str, Any] | None = None) -> Settings:
    flags = dict(click.get_current_context().meta.get(_FLAGS, {}))
    if target is not None:
        if "://" in target:
            raise usage_error(
                f"expected MODULE:RUNNER, got the URL {mask(target)}; --database names a database"
            )
        path, _, name = target.partition(":")
        if path.endswith(".py") or "/" in path:
            module = path.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
            raise usage_error(
                f"expected MODULE:RUNNER, got {target!r}; did you mean {module}:{name or 'runner'}?"
            )
        flags["app"] = target if ":" in target else f"{target}:runner"
    return load(flags=flags, code=code)


def need_app(settings: Settings, also: str = "") -> str:
    if settings.app is None:
        command = click.get_current_context().info_name
        raise usage_error(
            f"which application? Name it as in `forkrunner {command} jobs:runner`, in FORKRUNNER_APP,"
            f" or as `app` in forkrunner.toml{also}"
        )
    return settings.app


def import_app(target: str, preload: tuple[str, ...] = (), watch: Watch | None = None) -> Runner:
    """Import the application into this process; what it prints meanwhile goes to standard error."""
    from forkrunner.application import load as import_runner

    try:
        with _stdout_to_stderr():
            runner = import_runner(target, os.getcwd(), preload, watch)
    except TargetError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise error.__cause__ from None
        raise
    runner.target = target
    return runner


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    # the descriptors, because a library or a program that is started may print too
    _flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        _flush()
        os.dup2(saved, 1)
        os.close(saved)


def find_settings(target: str | None) -> Settings:
    """Return the settings for a command that needs the database only.

    The application is imported if it alone can know which database that is.
    """
    settings = load_settings(target)
    source = settings.source("database")
    named = source in (SETTINGS["database"].flag, SETTINGS["database"].env)
    if named or (settings.app is None and source != FROM_DEFAULT):
        return settings
    app = need_app(settings, ", or name the database with --database")
    return load_settings(target, import_app(app).code)


def whole_settings(target: str | None) -> Settings:
    """Return the settings for a command that needs what the application's code may say, beside the database."""
    settings = load_settings(target)
    if settings.app is None:
        return find_settings(target)
    return load_settings(target, import_app(settings.app).code)


@contextlib.contextmanager
def open_store(settings: Settings) -> Iterator[Store]:
    from forkrunner.store import Store

    store = Store(settings.database, notify=settings.notify, timeout=settings.store_timeout)
    try:
        yield store
    finally:
        store.close()


def as_shown(settings: Settings, secrets: bool) -> Callable[[Row], Row]:
    """Return what makes a row fit to be shown: its secrets hidden, unless they were asked for."""
    from forkrunner.redaction import conceal

    return lambda row: row if secrets else conceal(row, settings.secret_names)


def find_id(store: Store, given: str) -> str:
    """Return a whole id for the first or last characters of one.

    Raises JobNotFound.
    """
    if is_id(given.lower()):
        return given.lower()
    part = given.strip("…").lower()
    if not _PART_OF_ID.fullmatch(part):
        expected = "expected an id, or at least 6 of its first or last characters"
        raise JobNotFound(f"no job {given!r}: {expected}", id=given)
    found = [row.id for row in store.list(limit=_RECENT) if row.id.startswith(part) or row.id.endswith(part)]
    if len(found) != 1:
        what = f"no job among the last {_RECENT}" if not found else f"{len(found)} of the last {_RECENT} jobs"
        verb = "begins or ends" if not found else "begin or end"
        raise JobNotFound(f"{what} {verb} with {part!r}", id=given)
    return found[0]


def user_and_host() -> str:
    """Say who types, for the record."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
