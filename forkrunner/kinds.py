"""Kinds of settings: what a value may be, how it is written as text, and how the text is read back.

Most functions make a Kind. Those called `as_…` are the last step of a `text`: they return it in its one form, or raise
ValueError. What names the setting and its source, and words the error, is in config.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from . import units
from .addresses import EXPECTED
from .addresses import addresses as as_addresses

T = TypeVar("T")


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


def whole(low: int, high: int) -> Kind[int]:
    def check(value: object) -> int:
        # bool is an int; isinstance would let it through
        if type(value) is int and low <= value <= high:
            return value
        raise ValueError

    return Kind(f"a whole number from {low} to {high}", check, "N", read=int)


def number(low: float, high: float) -> Kind[float]:
    def check(value: object) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise ValueError

    return Kind(f"a number from {low:g} to {high:g}", check, "N", show="{:g}".format, read=float)


def duration(low: float, high: float) -> Kind[float]:
    def check(value: object) -> float:
        result = units.seconds(value)
        if low <= result <= high:
            return result
        raise ValueError

    expected = f"a duration from {units.show_seconds(low)} to {units.show_seconds(high)}"
    return Kind(expected, check, "SECONDS", show=units.show_seconds)


def size(low: int, high: int) -> Kind[int]:
    def check(value: object) -> int:
        result = units.size(value)
        if low <= result <= high:
            return result
        raise ValueError

    return Kind(
        f"a size from {units.show_size(low)} to {units.show_size(high)}", check, "SIZE", show=units.show_size
    )


def choice(*words: str) -> Kind[str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value.lower() in words:
            return value.lower()
        raise ValueError

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", check, "|".join(words))


def switch() -> Kind[bool]:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}

    def check(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise ValueError

    def read(text: str) -> object:
        return words.get(text.strip().lower())

    return Kind("true or false", check, "", show=lambda on: str(on).lower(), read=read, is_bool=True)


def names(expected: str, metavar: str, legal: Callable[[str], bool]) -> Kind[tuple[str, ...]]:
    def check(value: object) -> tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise ValueError
        given = [name.strip() for name in ",".join(items).split(",")]
        result = tuple(dict.fromkeys(name for name in given if name))
        if all(map(legal, result)):
            return result
        raise ValueError

    return Kind(f"{expected}, separated by commas", check, metavar, show=",".join, multiple=True)


def addresses() -> Kind[tuple[str, ...]]:
    return Kind(f"{EXPECTED}, separated by commas", as_addresses, "ADDRESS,…", show=",".join, multiple=True)


def text(expected: str, metavar: str, normal: Callable[[str], str]) -> Kind[str]:
    def check(value: object) -> str:
        if isinstance(value, str):
            return normal(value.strip())
        raise ValueError

    return Kind(expected, check, metavar)


def optional(kind: Kind[str]) -> Kind[str | None]:
    """Empty text means none: neither a variable nor TOML can say it otherwise."""

    def check(value: object) -> str | None:
        return None if value == "" else kind.check(value)

    return Kind(kind.expected, check, kind.metavar, show=lambda value: value or "")


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def is_warm_up(name: str) -> bool:
    module, colon, function = name.partition(":")
    return _is_module(module) and (_is_module(function) or not colon)


def as_target(value: str) -> str:
    module, _, runner = value.partition(":")
    if _is_module(module) and _is_module(runner):
        return value
    raise ValueError


#: Of a URL as SQLAlchemy takes it apart: user and password, a host that may be an address in brackets, a port.
_AFTER_SCHEME = re.compile(r"(?=.)([^:/]*(:[^@]*)?@)?(\[[^/?\]]+\]|[^/:?\[\]]*)(:\d{0,5})?(?=[/?]|$)")


def as_database(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql", "postgresql+psycopg") and _AFTER_SCHEME.match(rest):
        return f"postgresql+psycopg://{rest}"
    # a database in memory is nobody else's: its jobs would wait for ever
    in_memory = ":memory:" in rest or "mode=memory" in rest
    if scheme in ("sqlite", "sqlite+pysqlite") and re.match("/[^?]", rest) and not in_memory:
        return f"sqlite://{rest}"
    raise ValueError


def molds() -> Kind[str]:
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
            elif as_target(target) in others:
                raise ValueError
            else:
                others[target] = int(number)
        if not all(0 < number <= 64 for number in (own, *others.values())):
            raise ValueError
        return ",".join([str(own), *(f"{target}={number}" for target, number in others.items())])

    return Kind("N, or N,MODULE:RUNNER=N,… with N from 1 to 64", check, "N[,MODULE:RUNNER=N…]")


def as_memcached(url: str) -> str:
    scheme, _, rest = url.partition("://")
    servers = []
    for server in rest.rstrip("/").split(","):
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", server.strip())
        port = int(match[2] or 11211) if match else 0
        if match is None or scheme != "memcached" or not 0 < port < 65536:
            raise ValueError
        servers.append(f"{match[1]}:{port}")
    return f"memcached://{','.join(servers)}"


def as_storage(url: str) -> str:
    scheme, there, rest = url.partition("://")
    # what is in memory is another process's
    if "\0" in url or (
        there and (not re.fullmatch("[a-z][a-z0-9+.-]*", scheme) or not rest or scheme == "memory")
    ):
        raise ValueError
    return url


def as_web(url: str) -> str:
    if re.fullmatch(r"https?://[^\s\"'<>\x00-\x1f]+", url):
        return url
    raise ValueError


def as_folder(path: str) -> str:
    if path.startswith("/"):
        return path
    raise ValueError
