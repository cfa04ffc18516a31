"""Parameters of plain types: str, int, float, bool, None, list and dict of these, unions of these, Any, nothing declared.

By the standard library alone, since molds import this file: no inspect, no typing, no msgspec. All other types are in
typed.py, which is imported when one occurs.
"""

from __future__ import annotations

import sys

from .describing import MODEL_ADVICE, describe, is_model, name_of
from .payload import Misfit, check_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .filing import Files

    class Kind(Protocol):
        """What a parameter takes: `dump` makes JSON of a value, `load` is its inverse; both raise Misfit.

        `files` stores the files in the value, and fetches them.
        """

        def dump(self, value: Any, files: Files | None = None, /) -> Any: ...
        def load(self, wire: Any, files: Files | None = None, /) -> Any: ...


#: Stands for an annotation that is not there.
NOTHING: Any = object()
_NONE = type(None)
_UNION = type(int | None)
#: bool before int: isinstance(True, int) holds.
_JSON_TYPES = (str, bool, int, float, _NONE, list, dict)


class Plain:
    """A type made of JSON's own ones; needs nothing but this file."""

    __slots__ = ("types",)

    def __init__(self, types: dict[type, Plain | None] | None) -> None:
        #: JSON type → what the items of a list or the values of a dict are; None: anything.
        self.types = types

    def __str__(self) -> str:
        if self.types is None:
            return "a JSON value"
        names = []
        for kind, inner in self.types.items():
            if inner is None or inner.types is None:
                names.append(name_of(kind))
            else:
                names.append(f"list[{inner}]" if kind is list else f"dict[str, {inner}]")
        return " | ".join(names)

    def dump(self, value: Any, files: Files | None = None) -> Any:
        self.load(value)
        check_json(value, depth=1)
        return value

    def load(self, wire: Any, files: Files | None = None) -> Any:
        try:
            return self._fit(wire)
        except Misfit as misfit:
            raise unfit(self, wire, str(misfit) if misfit.path else "") from None

    def _fit(self, value: Any) -> Any:
        """Return the value as the task gets it: an int becomes a float where only a float fits."""
        types = self.types
        if types is None:
            return value
        kind = type(value)
        if kind not in _JSON_TYPES:
            kind = next((base for base in _JSON_TYPES if isinstance(value, base)), kind)
        if kind in types:
            inner = types[kind]
            if inner is None or inner.types is None:
                return value
            key: object = None
            try:
                if kind is list:
                    items: list[Any] = []
                    for item in value:
                        key = len(items)
                        items.append(inner._fit(item))
                    return items
                fitted = {}
                for key, item in value.items():
                    fitted[key] = inner._fit(item)
                return fitted
            except Misfit as misfit:
                misfit.path = f"[{describe(key, typed=False)}]{misfit.path}"
                raise
        # an integer that a float cannot hold exactly would arrive as another one
        if kind is int and float in types and -(2**63) <= value < 2**63 and float(value) == value:
            return float(value)
        raise Misfit(f"expected {self}, got {describe(value)}")


def unfit(kind: Kind, value: object, detail: str = "") -> Misfit:
    """Word what does not fit: one form for plain and typed values."""
    more = MODEL_ADVICE if is_model(value) else f" ({detail})" if detail else ""
    return Misfit(f"expected {kind}, got {describe(value)}{more}")


ANY = Plain(None)


def plain_kind(note: Any) -> Plain | None:
    """Return the kind of a plain annotation, None for any other."""
    typing = sys.modules.get("typing")
    if note is NOTHING or note is object or (typing and note is typing.Any):
        return ANY
    if note is None:
        note = _NONE
    if any(note is kind for kind in _JSON_TYPES):
        return Plain({note: None})
    parts: tuple[Any, ...]
    origin, parts = getattr(note, "__origin__", None), getattr(note, "__args__", ())
    if isinstance(note, _UNION) or (typing and origin is typing.Union):
        types: dict[type, Plain | None] = {}
        for member in map(plain_kind, parts):
            if member is None or member is ANY:
                return member
            # two kinds of list: no value of one type alone says which is meant
            if not types.keys().isdisjoint(member.types or ()):
                return None
            types.update(member.types or {})
        return Plain(types)
    if origin in (list, dict) and not parts:
        return Plain({origin: None})  # typing.List, typing.Dict
    if origin is list or (origin is dict and parts[0] is str):
        inner = plain_kind(parts[-1])
        return inner and Plain({origin: inner})
    return None
