"""Names, sizes and times as visitors see them. What they have sent is display text here, never a path."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from unicodedata import category

_LONGEST_NAME = 120


def display_name(filename: str) -> str:
    """Make a name to be shown of what a browser calls a file: its last part, without what does not print.

    Nor with characters that turn the direction of writing around, after which "gpj.exe" is shown as "exe.jpg".
    """
    last = re.split(r"[/\\]", filename)[-1]
    shown = "".join(c for c in last if c.isprintable() and category(c) not in ("Cf", "Cs")).strip()
    return shown[:_LONGEST_NAME] or "unnamed"


def refusal(name: str, message: str) -> tuple[int | None, str]:
    """Take apart what the converter says of a file that it calls `name`: the line, and the reason."""
    line, colon, reason = message.removeprefix(f"{name}:").partition(": ")
    if message.startswith(f"{name}:") and colon and re.fullmatch("[0-9]{1,9}", line):
        return int(line), reason
    return None, message


def size(count: int) -> str:
    """Word bytes."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.1f} kB" if count < 999_950 else f"{count / 1e6:.1f} MB"


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def ago(when: datetime, now: datetime | None = None) -> str:
    """Word how long ago that was: right in every time zone."""
    passed = ((now or datetime.now(UTC)) - when).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(passed // length)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
