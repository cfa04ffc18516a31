"""Addresses of mail, as settings and tasks name them. Molds import this; nothing here knows a mail server."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: No control character, no quote, nothing that separates addresses or begins a header: what is a list, or more than
#: an address, must not pass for one.
_BARE = re.compile(r"[^\s<>@,;:\"\\()\[\]\x00-\x1f\x7f]{1,64}@[^\s<>@,;:\"\\()\[\]\x00-\x1f\x7f/]{1,255}")
_NAMED = re.compile(r"([^<>@,;:\"\\\x00-\x1f\x7f]{1,100}?)\s*<([^<>]+)>")
EXPECTED = "addresses such as ops@example.org or Operations <ops@example.org>"


def split(text: str) -> tuple[str, str]:
    """Return the name, which may be empty, and the bare address.

    Raises ValueError.
    """
    text = text.strip()
    named = _NAMED.fullmatch(text)
    name, bare = (named[1].strip(), named[2].strip()) if named else ("", text)
    if not _BARE.fullmatch(bare) or not (name + bare).isprintable() or not _exists(bare.rpartition("@")[2]):
        raise ValueError(f"expected {EXPECTED}, got {text[:100]!r}")
    return name, bare


def _exists(domain: str) -> bool:
    try:
        ascii_host(domain)
    except ValueError:
        return False
    return True


def ascii_host(name: str) -> str:
    """Return the name of a host or a domain as DNS knows it.

    Raises ValueError: there can be none of this name.
    """
    # by hand where that is enough: the codec loads tables, which a mold does not need
    if not name.isascii():
        found = name.encode("idna").decode("ascii")
        # some characters become an @ or a slash there
        if not re.fullmatch(r"[A-Za-z0-9._-]+", found):
            raise ValueError(name)
        name = found
    if not all(0 < len(label) < 64 for label in name.removesuffix(".").split(".")):
        raise ValueError(name)
    return name


def address(text: str) -> str:
    """Return one address in its final form.

    Raises ValueError.
    """
    name, bare = split(text)
    return f"{name} <{bare}>" if name else bare


def addresses(value: Any) -> tuple[str, ...]:
    """Return addresses in their final form, each once: of text with commas, or of a list of texts.

    Raises ValueError.
    """
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"expected {EXPECTED}, got a {type(value).__name__}")
    found = (address(part) for item in items for part in item.split(",") if part.strip())
    return tuple(dict.fromkeys(found))
