"""The JSON in a row: what may be in it, how it is written and read.

What every JSON text of ours keeps, on every database:
(1) nested at most MAX_DEPTH deep; (2) numbers are finite, integers fit 64 bits (pass larger ones as text);
(3) no text holds NUL or half of a surrogate pair; (4) an object names each key once; (5) there is a limit of bytes, which
arguments.py holds. Molds import it, so it is thin.
"""

from __future__ import annotations

import json
import re

from .describing import advice, describe
from .redaction import MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Of the whole text: the object that holds the arguments counts as one.
MAX_DEPTH = 64

_BAD_TEXT = re.compile("[\0\ud800-\udfff]")


class Misfit(Exception):
    """A value does not fit. `path` says where in the value, as `[0]['x']`; filled in on the way out."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"at {self.path}: {self.message}" if self.path else self.message


def check_json(value: Any, *, depth: int = 0, pairs: bool = False) -> None:
    """Refuse what is no JSON or breaks (1), (2) or (3).

    `depth` is how deep the value will stand in the text; with `pairs` tuples pass as lists.
    Subclasses of the plain types pass: what arrives is equal.
    Raises Misfit.
    """
    if isinstance(value, str):
        bad = _BAD_TEXT.search(value)
        if bad:
            what = "NUL" if bad[0] == "\0" else f"half of a surrogate pair, {bad[0]!r},"
            raise Misfit(f"{what} at character {bad.start()} of the text cannot be stored; pass it as bytes")
    elif isinstance(value, (bool, type(None))):
        pass
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise Misfit("expected an integer of at most 64 bits, got a larger one; pass it as text")
    elif isinstance(value, float):
        # inf - inf and nan - nan are nan
        if value - value != 0:
            raise Misfit(f"expected a finite number, got {value!r}")
    elif isinstance(value, (list, dict)) or (pairs and isinstance(value, tuple)):
        if depth >= MAX_DEPTH:
            raise Misfit(f"nested more than {MAX_DEPTH} deep")
        key: object = None
        try:
            if isinstance(value, dict):
                for key, item in value.items():
                    if not isinstance(key, str):
                        raise Misfit(f"expected keys of type str, got {describe(key)}")
                    check_json(key)
                    check_json(item, depth=depth + 1, pairs=pairs)
            else:
                for key in range(len(value)):
                    check_json(value[key], depth=depth + 1, pairs=pairs)
        except Misfit as misfit:
            # deep nesting has a path that nobody reads
            if depth < 8:
                misfit.path = f"[{describe(key, typed=False)}]{misfit.path}"
            raise
    else:
        raise Misfit(f"expected a JSON value, got {describe(value)}{advice(value)}")


def to_json(value: Any) -> str:
    """Return what `check_json` has passed as JSON text, without needless spaces."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def parse(text: str) -> dict[str, Any]:
    """Read a JSON object that somebody else wrote: a row, the command line.

    Raises Misfit for anything else, for a key that is there twice, and for NaN and Infinity.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise Misfit(f"nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise Misfit(f"expected a JSON object, got no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Misfit(f"expected a JSON object (parameter name → value), got {describe(value)}")
    return value


def plain_values(text: str | bytes) -> dict[str, Any]:
    """Read the arguments of a row, ours, as plain JSON values, but secrets as Secret: what is printed of it shows none."""
    found: dict[str, Any]
    if (MARK if isinstance(text, str) else MARK.encode()) in text:  # type: ignore[operator]
        from forkrunner.secret import plain

        found = plain(text)
    else:
        found = json.loads(text)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Misfit(f"{twice!r} is there twice in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise Misfit(f"expected finite numbers, got {name}")
