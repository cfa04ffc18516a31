"""Settings: each one is declared once, in the body of `Settings`, and everything else follows from there.

From `slots = Setting(...)` follow the typed attribute `settings.slots`, the flag `--slots`, the variable
FORKRUNNER_SLOTS, the key `slots` in the file, the keyword of `Runner(..., slots=8)`, the check and the docs.
What a value may be is in kinds.py, where it comes from in sources.py, whose `load` makes the settings. Used by the
command line, the supervisor and web processes, never by a mold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, overload

from . import addresses, kinds, mailurl
from .errors import ConfigError
from .kinds import Kind, T
from .options import is_name
from .redaction import SECRET_NAMES
from .units import brief, mask

PREFIX = "FORKRUNNER_"
#: What can be mailed.
MAIL_ON = ("failure", "attempt", "success", "start")


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
            raise refuse(self.name, self.kind.expected, value, source) from None


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
        kinds.optional(kinds.text("MODULE:RUNNER", "MODULE:RUNNER", kinds.as_target)),
        None,
        "The application: the module to import and the Runner in it; first argument of every command",
        has_flag=False,
    )
    database = Setting(
        kinds.text("sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME", "URL", kinds.as_database),
        "sqlite:///forkrunner.db",
        "The database that holds the jobs",
        secret=True,
    )
    slots = Setting(
        kinds.whole(1, 1000),
        _cpus,
        "How many jobs run at the same time",
        default_text="number of CPUs",
    )
    spares = Setting(kinds.whole(0, 64), 2, "How many processes are forked ahead of need")
    queues = Setting(
        kinds.names("names of letters, digits and _ . : -", "NAME,…", is_name),
        (),
        "The queues to take jobs from",
        default_text="all",
    )
    poll_interval = Setting(
        kinds.duration(0.01, 3600),
        1.0,
        "Longest wait between two looks at the table when nothing wakes the supervisor",
    )
    notify = Setting(
        kinds.switch(),
        True,
        "Be woken when a job is enqueued, on PostgreSQL by LISTEN: off for a pooler in transaction mode",
    )
    lease = Setting(
        kinds.duration(2, 3600),
        30.0,
        "How long a silent supervisor is believed alive; then its jobs are stopped there and start elsewhere",
    )
    grace_period = Setting(
        kinds.duration(0, 86400), 30.0, "How long a stop waits for running jobs before it ends them"
    )
    grace = Setting(kinds.duration(0, 3600), 5.0, "Time between TERM and KILL when a single job is ended")
    exit_timeout = Setting(
        kinds.duration(0.1, 3600), 5.0, "How long the `before_exit` hooks of a job may take, all together"
    )
    store_timeout = Setting(
        kinds.duration(0.1, 900),
        5.0,
        "Longest wait for one answer of the database; less than a quarter of `lease`",
    )
    molds = Setting(
        kinds.molds(),
        "1",
        "How many copies of the application are held warm, and of which other applications how many",
    )
    mold_timeout = Setting(
        kinds.duration(0.3, 3600),
        10.0,
        "How long a mold may give no sign of life before it is killed and replaced",
    )
    import_timeout = Setting(
        kinds.duration(0.3, 86_400),
        600.0,
        "How long a new mold may take to import the application and to call its `before_fork` hooks before it is killed",
    )
    mold_jobs = Setting(
        kinds.whole(0, 10**9), 0, "After so many jobs a mold is replaced by a fresh one", default_text="never"
    )
    mold_age = Setting(
        kinds.duration(0, 31_536_000),
        0.0,
        "After this time a mold is replaced by a fresh one",
        default_text="never",
    )
    mold_growth = Setting(
        kinds.size(0, 2**50),
        64 << 20,
        "When a mold has grown by so much it is replaced by a fresh one; 0: never",
    )
    preload = Setting(
        kinds.names("names of modules, or of functions as MODULE:FUNCTION", "MODULE,…", kinds.is_warm_up),
        (),
        "Modules to import, and functions to call, ahead of the application, so that all jobs share what that leaves in memory",
    )
    output_limit = Setting(
        kinds.size(1, 2**26),
        2**20,
        "How much of a job's output is kept: if there is more, its head and its tail",
    )
    result_limit = Setting(kinds.size(1, 2**28), 2**20, "Largest result of a job, as JSON")
    argument_limit = Setting(kinds.size(1, 2**28), 2**20, "Largest arguments of a job, as JSON")
    storage = Setting(
        kinds.text("a folder, or a URL that fsspec knows, as s3://BUCKET/FOLDER", "URL", kinds.as_storage),
        "",
        "Where the files of jobs are kept; several hosts need one that they share",
        default_text="beside an SQLite file, as jobs.db-files; else ~/.local/share/forkrunner/DATABASE",
        secret=True,
    )
    file_limit = Setting(kinds.size(1, 2**50), 2**30, "Largest file of a job")
    retention = Setting(
        kinds.duration(0, 3_153_600_000),
        7 * 86_400.0,
        "How long jobs that are done or cancelled are kept, with their files; 0: for ever",
    )
    retention_failed = Setting(
        kinds.duration(0, 3_153_600_000), 30 * 86_400.0, "How long jobs that failed are kept; 0: for ever"
    )
    prune_interval = Setting(
        kinds.duration(0, 31_536_000),
        3600.0,
        "How often a supervisor has pruned what is kept no longer; 0: never, `forkrunner prune` does",
    )
    progress_url = Setting(
        kinds.optional(kinds.text("memcached://HOST:PORT,…", "URL", kinds.as_memcached)),
        None,
        "Where progress is kept; files in `runtime_dir` when there is none",
        secret=True,
    )
    progress_rate = Setting(
        kinds.number(0.1, 1000), 20.0, "How often a job's progress is written, times per second"
    )
    runtime_dir = Setting(
        kinds.text("an absolute path", "FOLDER", kinds.as_folder),
        _runtime_dir,
        "Folder for sockets, output and progress of running jobs",
        default_text="$XDG_RUNTIME_DIR/forkrunner, or /run/forkrunner for root, or /tmp/forkrunner-UID",
    )
    cgroup = Setting(
        kinds.text("an absolute path, or nothing", "FOLDER", lambda path: path and kinds.as_folder(path)),
        "",
        "Control group below which each job with a limit of memory gets one of its own, that the kernel holds it to",
        default_text="the one that systemd has delegated, if any",
    )
    secret_names = Setting(
        kinds.names("parts of names", "NAME,…", str.isprintable),
        SECRET_NAMES,
        "What is so named, or has one of these in its name, is hidden where arguments, results and errors are shown",
    )
    mail_to = Setting(
        kinds.addresses(), (), "Who gets a mail when a job has failed for good", default_text="nobody"
    )
    mail_url = Setting(
        kinds.optional(kinds.text(mailurl.EXPECTED, "URL", mailurl.check)),
        None,
        "By which way mail leaves",
        secret=True,
    )
    mail_from = Setting(
        kinds.optional(kinds.text("an address", "ADDRESS", addresses.address)),
        None,
        "Who the mails are from",
        default_text="forkrunner@HOST",
    )
    mail_bounces = Setting(
        kinds.optional(kinds.text("an address", "ADDRESS", addresses.address)),
        None,
        "Where mail that cannot be delivered is returned to",
        default_text="nowhere",
    )
    mail_on = Setting(
        kinds.names(f"some of {', '.join(MAIL_ON)}", "WORD,…", MAIL_ON.__contains__),
        ("failure", "start"),
        "What is mailed: a failure for good, each failed attempt, each success, a supervisor that could not start",
    )
    mail_interval = Setting(
        kinds.duration(0, 86_400),
        600.0,
        "Equal failures within this time are told of in one mail, with their number; 0: each has its own",
    )
    mail_cap = Setting(
        kinds.whole(1, 100_000), 30, "Most mails in an hour: what is more is told of together in one, later"
    )
    mail_timeout = Setting(
        kinds.duration(0.1, 3600),
        120.0,
        "How long the mail server may take for an answer; five times that when it has the mail",
    )
    mail_retry = Setting(
        kinds.duration(0.05, 3600),
        10.0,
        "Time until a mail that could not be sent is tried again, doubled each time up to an hour",
    )
    mail_patience = Setting(
        kinds.duration(1, 30 * 86_400),
        5 * 86_400.0,
        "For how long that is done; then the mail is undeliverable",
    )
    mail_attachments = Setting(
        kinds.size(0, 2**28),
        10 << 20,
        "How much is attached to a mail: what is larger is named with its place",
    )
    mail_templates = Setting(
        kinds.text("an absolute path, or nothing", "FOLDER", lambda path: path and kinds.as_folder(path)),
        "",
        "Folder with templates that replace forkrunner's own: subject.txt, mail.txt, mail.html",
        default_text="forkrunner's own",
    )
    base_url = Setting(
        kinds.optional(kinds.text("http://… or https://…", "URL", kinds.as_web)),
        None,
        "Where a job is shown to people: mails link to BASE_URL/ID, or to what {id} in it makes",
    )
    log_level = Setting(
        kinds.choice("debug", "info", "warning", "error"),
        "info",
        "Which log lines to write: these and graver ones",
    )
    log_format = Setting(kinds.choice("text", "json"), "text", "Log lines for people or for machines")
    reload = Setting(
        kinds.switch(),
        False,
        "For development: watch the application's files and reload it when one changes; running jobs go on",
    )
    allow_threads = Setting(
        kinds.switch(),
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


def refuse(name: str, expected: str, value: object, source: str) -> ConfigError:
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
