"""Durations, sizes and secrets as people write them: for settings, task options and log lines.

No I/O. Thin: a mold whose tasks say `timeout="10m"` imports it.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

DURATIONS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
SIZES = {
    "TiB": 2**40,
    "TB": 10**12,
    "GiB": 2**30,
    "GB": 10**9,
    "MiB": 2**20,
    "MB": 10**6,
    "KiB": 2**10,
    "kB": 10**3,
    "B": 1,
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)")
# A fraction needs a unit greater than bytes: somebody who writes 1.5 does not mean one byte
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+(?=\s*[kmgtKMGT]))?)\s*([a-zA-Z]*)")
#: Largest number of seconds or bytes that is taken for meant; also refuses inf and nan.
_LARGEST = 10**15


def seconds(value: object) -> float:
    """Return a duration in seconds from a number of seconds or from text: 500ms, 30s, 10m, 1h, 7d.

    Raises ValueError, with one line that says what was expected and what was got.
    """
    expected = "seconds as a number, or text like 500ms, 30s, 10m, 1h, 7d"
    return _quantity(value, (int, float), _DURATION, DURATIONS, expected)


def size(value: object) -> int:
    """Return a size in bytes from a whole number of bytes or from text: 512KiB, 1MiB (1024s), 200MB (1000s).

    Raises ValueError, with one line that says what was expected and what was got.
    """
    expected = "bytes as a whole number, or text like 512KiB, 1MiB, 200MB"
    return round(_quantity(value, (int,), _SIZE, SIZES, expected))


def _quantity(
    value: object, types: tuple[type, ...], text: re.Pattern[str], units: Mapping[str, float], expected: str
) -> float:
    number: Any = None
    if isinstance(value, str) and (match := text.fullmatch(value.strip())):
        factors = {unit.lower(): factor for unit, factor in units.items()} | {"": 1}
        number = float(match[1]) * factors.get(match[2].lower(), -1)
    elif type(value) in types:
        number = value
    if number is not None and 0 <= number <= _LARGEST:
        return float(number)
    raise ValueError(f"expected {expected}, got {brief(value)}")


def show_seconds(value: float) -> str:
    """Word a duration so that `seconds` reads it back: 0.5s, 90s, 10m, 1h, 24h, 7d."""
    if value > 86_400 and value % 86_400 == 0:
        return f"{value / 86_400:.0f}d"
    for unit, factor in (("h", 3600), ("m", 60)):
        if value and value % factor == 0:
            return f"{value / factor:.0f}{unit}"
    return f"{value:.6f}".rstrip("0").rstrip(".") + "s"


def show_size(value: int) -> str:
    """Word a size so that `size` reads it back, exactly: 1MiB, 200MB, 1025B."""
    unit = next((unit for unit, factor in SIZES.items() if value and value % factor == 0), "B")
    return f"{value // SIZES[unit]}{unit}"


def show_bytes(count: float) -> str:
    """Word a number of bytes for people, 1000 to the kB: 512 B, 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95 or (unit == "B" and count < 1000):
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def breach(name: str, limits: dict[str, Any], what: str) -> str:
    """Word a breach: which limit, its value, what was reached."""
    value = limits[name]
    if name in ("memory", "file_size"):
        value = show_bytes(value)
    elif name == "cpu_seconds":
        value = f"{value:g} s"
    return f"its limit {name} is {value}: {what}"


# Greedy up to the last @: a password with a raw @ or / in it is hidden whole, at worst with the host
_PASSWORD = re.compile(r"(://[^:/?#@]*:).*@", re.DOTALL)
_PASSWORD_IN_NO_URL = re.compile(r"(:).*@", re.DOTALL)
_PARAMETER = re.compile(r"([?&;][^=&;]*(?:passw|secret|token)[^=&;]*=)[^&;#]*", re.IGNORECASE)
# The same, with what is hidden as the group; two expressions may overlap, and each has its part
_PASSWORD_OF = re.compile(r"://[^:/?#@]*:(.*)@", re.DOTALL)
_PARAMETER_OF = re.compile(r"[?&;][^=&;]*(?:passw|secret|token)[^=&;]*=([^&;#]*)", re.IGNORECASE)


def mask(url: str) -> str:
    """Return a URL, or what should have been one, as it may be shown: passwords in it become `***`."""
    password = _PASSWORD if "://" in url else _PASSWORD_IN_NO_URL
    return _PARAMETER.sub(r"\1***", password.sub(r"\1***@", url))


def passwords(url: str) -> list[str]:
    """Return what `mask` takes out of a URL, as it stands there and as it is meant."""
    found = []
    if match := _PASSWORD_OF.search(url):
        found.append(match[1])
    found += (match[1] for match in _PARAMETER_OF.finditer(url))
    if any("%" in one for one in found):
        from urllib.parse import unquote

        found += [unquote(one) for one in found]
    return found


def brief(value: object) -> str:
    """Word a wrong value for an error: on one line, not endless, without passwords."""
    text = mask(" ".join(repr(value).split()))
    return text if len(text) <= 100 else text[:99] + "…"
