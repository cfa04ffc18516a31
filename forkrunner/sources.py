"""Where the values of the settings come from: flag, then environment, code, file, default.

The file is `forkrunner.toml` of the current folder, or else `[tool.forkrunner]` in its `pyproject.toml`, or what
FORKRUNNER_CONFIG names. Only the value that wins is checked; names are checked everywhere. Reads the environment and at
most two files, and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .config import PREFIX, SETTINGS, Settings, refuse
from .describing import closest
from .errors import ConfigError

#: Variables with our prefix that are no settings.
RESERVED = frozenset(
    f"FORKRUNNER_{name}"
    for name in ("CONFIG", "REQUIRE", "START", "ATTEMPT", "TRACEBACK", "HANDOVER", "KEEPER", "HELLO")
)
RESERVED_PREFIX = "FORKRUNNER_TEST_"

FROM_COMMAND_LINE = "the command line"
FROM_CODE = "Runner(...) in the code"
FROM_DEFAULT = "default"


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
        raise refuse(
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
            raise refuse("tool.forkrunner", "a table", table, path)
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
    close = closest(name.lower().replace("-", "_"), SETTINGS)
    return f", did you mean {prefix}{close.upper() if prefix else close}?" if close else ""
