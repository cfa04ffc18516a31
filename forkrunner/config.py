"""Settings: each one is declared once, in the body of `Settings`, and everything else follows from there.

From `slots = Setting(...)` follow the typed attribute `settings.slots`, the flag `--slots`, the variable
FORKRUNNER_SLOTS, the key `slots` in the file, the keyword of `Runner(..., slots=8)`, the check and the docs.

Order: flag, environment, code, file, default. The file is `forkrunner.toml` of the current folder, or else
`[tool.forkrunner]` in its `pyproject.toml`, or what FORKRUNNER_CONFIG names. Only the value that wins is
checked; names are checked everywhere. Used by the command line, the supervisor and web processes, never by
a mold; reads the environment and at most two files, and changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from forkrunner.errors import ConfigError
from forkrunner.units import brief, mask, seconds, show_seconds, show_size, size

T = TypeVar("T")

PREFIX = "FORKRUNNER_"
#: Variables with our prefix that are no settings.
RESERVED = frozenset(
    f"FORKRUNNER_{name}"
    for name in ("CONFIG", "REQUIRE", "START", "ATTEMPT", "TRACEBACK", "HANDOVER", "KEEPER", "HELLO")
)
RESERVED_PREFIX = "FORKRUNNER_TEST_"

FROM_COMMAND_LINE = "the command line"
FROM_CODE = "Runner(...) in the code"
FROM_DEFAULT = "default"


# --- Kinds of values


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What a value may be. `check` returns the value in its final form or raises ValueError."""

    #: Ends the sentence "expected …".
    expected: str
    check: Callable[[object], T]
    metavar: str
    #: Text that the same kind reads back.
    show: Callable[[T], str] = str
    #: Turns text of a flag or a variable into what the file would hold; files and code are taken strictly.
    read: Callable[[str], object] = str.strip
    is_bool: bool = False
    #: The flag may be given several times.
    multiple: bool = False


def _whole(low: int, high: int) -> Kind[int]:
    def check(value: object) -> int:
        # bool is an int; isinstance would let it through
        if type(value) is int and low <= value <= high:
            return value
        raise ValueError

    return Kind(f"a whole number from {low} to {high}", check, "N", read=int)


def _number(low: float, high: float) -> Kind[float]:
    def check(value: object) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise ValueError

    return Kind(f"a number from {low:g} to {high:g}", check, "N", show="{:g}".format, read=float)


def _duration(low: float, high: float) -> Kind[float]:
    def check(value: object) -> float:
        result = seconds(value)
        if low <= result <= high:
            return result
        raise ValueError

    expected = f"a duration from {show_seconds(low)} to {show_seconds(high)}"
    return Kind(expected, check, "SECONDS", show=show_seconds)


def _size(low: int, high: int) -> Kind[int]:
    def check(value: object) -> int:
        result = size(value)
        if low <= result <= high:
            return result
        raise ValueError

    return Kind(f"a size from {show_size(low)} to {show_size(high)}", check, "SIZE", show=show_size)


def _choice(*words: str) -> Kind[str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value.lower() in words:
            return value.lower()
        raise ValueError

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", check, "|".join(words))


def _switch() -> Kind[bool]:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}

    def check(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise ValueError

    def read(text: str) -> object:
        return words.get(text.strip().lower())

    return Kind("true or false", check, "", show=lambda on: str(on).lower(), read=read, is_bool=True)


def _names(expected: str, metavar: str, legal: Callable[[str], bool]) -> Kind[tuple[str, ...]]:
    def check(value: object) -> tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise ValueError
        names = [name.strip() for name in ",".join(items).split(",")]
        result = tuple(dict.fromkeys(name for name in names if name))
        if all(map(legal, result)):
            return result
        raise ValueError

    return Kind(f"{expected}, separated by commas", check, metavar, show=",".join, multiple=True)


def _text(expected: str, metavar: str, normal: Callable[[str], str]) -> Kind[str]:
    def check(value: object) -> str:
        if isinstance(value, str):
            return normal(value.strip())
        raise ValueError

    return Kind(expected, check, metavar)


def _optional(kind: Kind[str]) -> Kind[str | None]:
    """Empty text means none: neither a variable nor TOML can say it otherwise."""

    def check(value: object) -> str | None:
        return None if value == "" else kind.check(value)

    return Kind(kind.expected, check, kind.metavar, show=lambda value: value or "")


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _is_warm_up(name: str) -> bool:
    module, colon, function = name.partition(":")
    return _is_module(module) and (_is_module(function) or not colon)


def _target(value: str) -> str:
    module, _, runner = value.partition(":")
    if _is_module(module) and _is_module(runner):
        return value
    raise ValueError


def _database(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql", "postgresql+psycopg") and rest:
        return f"postgresql+psycopg://{rest}"
    # a database in memory is nobody else's: its jobs would wait for ever
    in_memory = ":memory:" in rest or "mode=memory" in rest
    if scheme in ("sqlite", "sqlite+pysqlite") and re.match("/[^?]", rest) and not in_memory:
        return f"sqlite://{rest}"
    raise ValueError


def _molds() -> Kind[str]:
    """Say it in one way: the number for the application itself first, each other one with its number."""

    def check(value: object) -> str:
        text = str(value) if type(value) is int else value
        if not isinstance(text, str):
            raise ValueError
        own, others = 1, dict[str, int]()
        for position, item in enumerate(text.replace(" ", "").split(",")):
            target, _, number = item.rpartition("=") if "=" in item else (item, "", "1")
            if position == 0 and target.isdigit():
                own = int(target)
            elif _target(target) in others:
                raise ValueError
            else:
                others[target] = int(number)
        if not all(0 < number <= 64 for number in (own, *others.values())):
            raise ValueError
        return ",".join([str(own), *(f"{target}={number}" for target, number in others.items())])

    return Kind("N, or N,MODULE:RUNNER=N,… with N from 1 to 64", check, "N[,MODULE:RUNNER=N…]")


def _memcached(url: str) -> str:
    scheme, _, rest = url.partition("://")
    servers = []
    for server in rest.rstrip("/").split(","):
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", server.strip())
        port = int(match[2] or 11211) if match else 0
        if match is None or scheme != "memcached" or not 0 < port < 65536:
            raise ValueError
        servers.append(f"{match[1]}:{port}")
    return f"memcached://{','.join(servers)}"


def _folder(path: str) -> str:
    if path.startswith("/"):
        return path
    raise ValueError


# --- Settings


class Setting(Generic[T]):
    """One declaration. On an instance of `Settings` it is the value, on the class it is itself."""

    name: str

    def __init__(
        self,
        kind: Kind[T],
        default: T | Callable[[Mapping[str, str]], T],
        help: str,
        *,
        default_text: str | None = None,
        has_flag: bool = True,
        secret: bool = False,
    ) -> None:
        self.kind = kind
        #: A value, or how to find it in the environment.
        self.default = default
        #: One sentence without its full stop.
        self.help = help
        self._default_text = default_text
        self._has_flag = has_flag
        #: May hold a password: `Settings.shown` hides it.
        self.secret = secret

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, instance: Settings, owner: type) -> T: ...
    def __get__(self, instance: Settings | None, owner: type) -> Setting[T] | T:
        if instance is None:
            return self
        value: T = instance._values[self.name]
        return value

    @property
    def flag(self) -> str | None:
        """`--poll-interval`; None for what is an argument of the commands."""
        return f"--{self.name.replace('_', '-')}" if self._has_flag else None

    @property
    def env(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def metavar(self) -> str:
        return self.kind.metavar

    @property
    def is_bool(self) -> bool:
        """Whether the flag takes no value and has a twin, `--no-…`."""
        return self.kind.is_bool

    @property
    def multiple(self) -> bool:
        """Whether the flag may be given several times."""
        return self.kind.multiple

    @property
    def default_text(self) -> str:
        """The default in words, for help and docs: the same on every machine."""
        if self._default_text is not None:
            return self._default_text
        return self.kind.show(self.find_default({})) or "none"

    def find_default(self, environ: Mapping[str, str]) -> T:
        found: T = self.default(environ) if callable(self.default) else self.default
        return found

    def parse(self, value: object, source: str, *, lax: bool = False) -> T:
        """Return the value in its final form; `lax` turns text into what the file would hold first.

        Raises ConfigError with `name`, `value` (without passwords) and `source`.
        """
        try:
            return self.kind.check(self.kind.read(value) if lax and isinstance(value, str) else value)
        except ValueError:
            raise _refuse(self.name, self.kind.expected, value, source) from None


def _cpus(environ: Mapping[str, str]) -> int:
    # not cpu_count(): a container or a taskset may leave us fewer
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(count or 1, 1000)


def _runtime_dir(environ: Mapping[str, str]) -> str:
    # the one in /tmp can be made by somebody else before us: whoever uses it checks the owner
    if environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        return os.path.join(environ["XDG_RUNTIME_DIR"], "forkrunner")
    return f"/tmp/forkrunner-{os.geteuid()}" if os.geteuid() else "/run/forkrunner"


class Settings:
    """What `load` found: read-only but for `fix`; each attribute is declared here and nowhere else."""

    __slots__ = ("_sources", "_values", "warnings")

    app = Setting(
        _optional(_text("MODULE:RUNNER", "MODULE:RUNNER", _target)),
        None,
        "The application: the module to import and the Runner in it; first argument of every command",
        has_flag=False,
    )
    database = Setting(
        _text("sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME", "URL", _database),
        "sqlite:///forkrunner.db",
        "The database that holds the jobs",
        secret=True,
    )
    slots = Setting(
        _whole(1, 1000),
        _cpus,
        "How many jobs run at the same time",
        default_text="number of CPUs",
    )
    spares = Setting(_whole(0, 64), 2, "How many processes are forked ahead of need")
    queues = Setting(
        _names("names of queues", "NAME,…", str.isprintable),
        (),
        "The queues to take jobs from",
        default_text="all",
    )
    poll_interval = Setting(
        _duration(0.01, 3600),
        1.0,
        "Longest wait between two looks at the table when nothing wakes the supervisor",
    )
    notify = Setting(
        _switch(),
        True,
        "Be woken when a job is enqueued, on PostgreSQL by LISTEN: off for a pooler in transaction mode",
    )
    lease = Setting(
        _duration(2, 3600),
        30.0,
        "How long a silent supervisor is believed alive; then its jobs are stopped there and start elsewhere",
    )
    grace_period = Setting(
        _duration(0, 86400), 30.0, "How long a stop waits for running jobs before it ends them"
    )
    grace = Setting(_duration(0, 3600), 5.0, "Time between TERM and KILL when a single job is ended")
    exit_timeout = Setting(
        _duration(0.1, 3600), 5.0, "How long the `before_exit` hooks of a job may take, all together"
    )
    store_timeout = Setting(
        _duration(0.1, 900),
        5.0,
        "Longest wait for one answer of the database; less than a quarter of `lease`",
    )
    molds = Setting(
        _molds(),
        "1",
        "How many copies of the application are held warm, and of which other applications how many",
    )
    mold_timeout = Setting(
        _duration(0.3, 3600),
        10.0,
        "How long a mold may give no sign of life before it is killed and replaced",
    )
    import_timeout = Setting(
        _duration(0.3, 86_400),
        600.0,
        "How long a new mold may take to import the application and to call its `before_fork` hooks before it is killed",
    )
    mold_jobs = Setting(
        _whole(0, 10**9), 0, "After so many jobs a mold is replaced by a fresh one", default_text="never"
    )
    mold_age = Setting(
        _duration(0, 31_536_000),
        0.0,
        "After this time a mold is replaced by a fresh one",
        default_text="never",
    )
    mold_growth = Setting(
        _size(0, 2**50), 64 << 20, "When a mold has grown by so much it is replaced by a fresh one; 0: never"
    )
    preload = Setting(
        _names("names of modules, or of functions as MODULE:FUNCTION", "MODULE,…", _is_warm_up),
        (),
        "Modules to import, and functions to call, ahead of the application, so that all jobs share what that leaves in memory",
    )
    output_limit = Setting(
        _size(1, 2**26), 2**20, "How much of a job's output is kept: if there is more, its head and its tail"
    )
    result_limit = Setting(_size(1, 2**28), 2**20, "Largest result of a job, as JSON")
    argument_limit = Setting(_size(1, 2**28), 2**20, "Largest arguments of a job, as JSON")
    progress_url = Setting(
        _optional(_text("memcached://HOST:PORT,…", "URL", _memcached)),
        None,
        "Where progress is kept; files in `runtime_dir` when there is none",
        secret=True,
    )
    progress_rate = Setting(
        _number(0.1, 1000), 20.0, "How often a job's progress is written, times per second"
    )
    runtime_dir = Setting(
        _text("an absolute path", "FOLDER", _folder),
        _runtime_dir,
        "Folder for sockets, output and progress of running jobs",
        default_text="$XDG_RUNTIME_DIR/forkrunner, or /run/forkrunner for root, or /tmp/forkrunner-UID",
    )
    cgroup = Setting(
        _text("an absolute path, or nothing", "FOLDER", lambda path: path and _folder(path)),
        "",
        "Control group below which each job with a limit of memory gets one of its own, that the kernel holds it to",
        default_text="the one that systemd has delegated, if any",
    )
    log_level = Setting(
        _choice("debug", "info", "warning", "error"),
        "info",
        "Which log lines to write: these and graver ones",
    )
    log_format = Setting(_choice("text", "json"), "text", "Log lines for people or for machines")
    reload = Setting(
        _switch(),
        False,
        "For development: watch the application's files and reload it when one changes; running jobs go on",
    )
    allow_threads = Setting(
        _switch(),
        False,
        "Fork although the application has started threads, which do not exist in its jobs",
    )

    def __init__(
        self, values: Mapping[str, Any], sources: Mapping[str, str], warnings: Iterable[str] = ()
    ) -> None:
        self._values = values
        self._sources = sources
        #: One line each, to be logged once.
        self.warnings = tuple(warnings)

    def source(self, name: str) -> str:
        """Say where a value came from: a flag, a variable, the code, a file, or `default`."""
        return self._sources[name]

    def fix(self, before: Settings, names: Iterable[str]) -> list[str]:
        """Take these values from other settings, where they differ; return the names of those."""
        changed = [name for name in names if self._values[name] != before._values[name]]
        self._values = {**self._values, **{name: before._values[name] for name in changed}}
        self._sources = {**self._sources, **{name: before._sources[name] for name in changed}}
        return changed

    def shown(self, name: str) -> str:
        """Word a value for people, passwords hidden; empty when there is none."""
        setting = SETTINGS[name]
        text = setting.kind.show(self._values[name])
        return mask(text) if setting.secret else text


SETTINGS: Mapping[str, Setting[Any]] = {
    name: member for name, member in vars(Settings).items() if isinstance(member, Setting)
}


def load(
    flags: Mapping[str, object] | None = None,
    code: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Settings:
    """Find the value of every setting: flag, then environment, code, file, default.

    In `flags` and `code` a name with None is as good as absent; so is `()` in `flags`, which is what a flag
    that may be repeated gives when it is not given at all. Variables with unknown names only make a
    warning: they may be meant for somebody else (a Kubernetes service called forkrunner sets some).
    Raises ConfigError, always on one line.
    """
    environ = os.environ if environ is None else environ
    file, path = _read_file(environ, folder or "")
    flags = {name: value for name, value in (flags or {}).items() if value is not None and value != ()}
    code = {name: value for name, value in (code or {}).items() if value is not None}
    for names, source in ((flags, FROM_COMMAND_LINE), (code, FROM_CODE), (file, path)):
        for name in names:
            if name not in SETTINGS:
                raise ConfigError(
                    f"{name}: expected the name of a setting{_did_you_mean(name)} (from {source})",
                    name=name,
                    value=None,
                    source=source,
                )

    values, sources = {}, {}
    for name, setting in SETTINGS.items():
        value: object
        if name in flags:
            value = flags[name]
            source = setting.flag or FROM_COMMAND_LINE
            if setting.is_bool and value is False:
                source = source.replace("--", "--no-", 1)
        elif setting.env in environ:
            value, source = environ[setting.env], setting.env
        elif name in code:
            value, source = code[name], FROM_CODE
        elif name in file:
            value, source = file[name], path
        else:
            values[name], sources[name] = setting.find_default(environ), FROM_DEFAULT
            continue
        values[name] = setting.parse(value, source, lax=name in flags or setting.env in environ)
        sources[name] = source

    settings = Settings(values, sources, _unknown_variables(environ))
    # a call to the database that takes longer would leave no time to renew the lease and try again
    if settings.store_timeout >= settings.lease / 4:
        lease = f"lease, which is {settings.shown('lease')} from {settings.source('lease')}"
        raise _refuse(
            "store_timeout",
            f"less than a quarter of {lease}",
            settings.store_timeout,
            settings.source("store_timeout"),
        )
    return settings


def _read_file(environ: Mapping[str, str], folder: str | os.PathLike[str]) -> tuple[dict[str, object], str]:
    """Return the keys of the settings file and what to call it; nothing when there is no file."""
    named = environ.get("FORKRUNNER_CONFIG")
    for candidate in [named] if named else ["forkrunner.toml", "pyproject.toml"]:
        path = os.path.join(folder, candidate)
        try:
            # inside, because a current folder that was deleted has no path
            path = os.path.abspath(path)
            with open(path, "rb") as stream:
                content = stream.read()
        except OSError as error:
            if not named and isinstance(error, FileNotFoundError):
                continue
            source = "FORKRUNNER_CONFIG" if named else "the current folder"
            raise ConfigError(
                f"{path}: expected a readable TOML file, got {error.strerror!r} (from {source})",
                name=candidate,
                value=path,
                source=source,
            ) from None
        table: object = _parse_toml(content, path)
        if os.path.basename(path) == "pyproject.toml":
            for key in ("tool", "forkrunner"):
                table = table.get(key, {}) if isinstance(table, dict) else table
            path += " [tool.forkrunner]"
        if not isinstance(table, dict):
            raise _refuse("tool.forkrunner", "a table", table, path)
        return table, path
    return {}, ""


def _parse_toml(content: bytes, path: str) -> dict[str, object]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        reason = f"Not UTF-8 (at line {line}, column {column})"
    except ValueError as error:
        # tomllib names line and column; a number of too many digits is a plain ValueError
        reason = " ".join(str(error).split())
    raise ConfigError(
        f"{path}: expected valid TOML, got {reason!r}", name=os.path.basename(path), value=None, source=path
    )


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = RESERVED | {setting.env for setting in SETTINGS.values()}
    warnings = []
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in known and not variable.startswith(RESERVED_PREFIX):
            hint = _did_you_mean(variable.removeprefix(PREFIX), PREFIX)
            warnings.append(f"{variable} is ignored: no setting has this name{hint}")
    return warnings


def _did_you_mean(name: str, prefix: str = "") -> str:
    import difflib

    for match in difflib.get_close_matches(name.lower().replace("-", "_"), SETTINGS, 1):
        return f", did you mean {prefix}{match.upper() if prefix else match}?"
    return ""


def _refuse(name: str, expected: str, value: object, source: str) -> ConfigError:
    return ConfigError(
        f"{name}: expected {expected}, got {brief(value)} (from {source})",
        name=name,
        value=mask(value) if isinstance(value, str) else value,
        source=source,
    )


def explain(settings: Settings) -> list[tuple[str, str, str]]:
    """Return (name, value as shown, source) of every setting, for `forkrunner config`."""
    return [(name, settings.shown(name), settings.source(name)) for name in SETTINGS]


def table() -> str:
    """Return the settings as a Markdown table, for the docs; the same on every machine."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS.values():
        meaning = f"{setting.help} ({setting.kind.expected})"
        lines.append(f"| `{setting.name}` | {setting.default_text} | {meaning} |")
    lines += [
        "",
        "The other names follow from the name: `poll_interval` is the flag `--poll-interval`, the variable "
        "`FORKRUNNER_POLL_INTERVAL`, the keyword in `Runner(..., poll_interval=0.5)` and the key in "
        "`forkrunner.toml` or under `[tool.forkrunner]` in `pyproject.toml`, both of the current folder "
        "(`FORKRUNNER_CONFIG` names another file). They count in this order: flag, variable, code, file. "
        "Durations are seconds or text such as `500ms`, `30s`, `10m`, `1h`; sizes are bytes or text such as "
        "`512KiB`, `200MB`.",
    ]
    return "\n".join(lines)
