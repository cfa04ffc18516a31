"""How values, types and names are said in errors. Never fails, never asks a database.

Molds import it, so it is thin.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MODEL_ADVICE = "; pass its id and load it in the task"


def describe(value: object, *, typed: bool = True) -> str:
    """Word a wrong value: its type and a short form of it. Never fails, never asks a database."""
    if value is None:
        return "None"
    if is_model(value):
        return f"an instance of {type(value).__name__}"
    import reprlib

    try:
        text = reprlib.repr(value)
    except Exception:  # noqa: BLE001 - a __repr__ may do anything; reprlib shields only the outermost
        text = "…"
    return f"{type(value).__name__} {text}" if typed else text


def text_of(error: BaseException) -> str:
    """Return the message of an error of the application's, whose `__str__` may do anything."""
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001 - see above
        return f"<no message: {type(error).__name__}.__str__ raised {type(broken).__name__}>"


def is_model(value: object) -> bool:
    """Tell whether this is a row of an ORM (SQLAlchemy, SQLModel, Django), without importing one."""
    kind = type(value)
    if hasattr(kind, "__mapper__") or "_sa_instance_state" in getattr(value, "__dict__", ()):
        return True
    return hasattr(kind, "_meta") and hasattr(kind, "pk")


def advice(value: object) -> str:
    """Say what to do about a value that is no JSON."""
    if is_model(value):
        return MODEL_ADVICE
    if isinstance(value, (tuple, set, frozenset)):
        return f"; it would arrive as a list: pass a list, or annotate the parameter as {type(value).__name__}[…]"
    return f"; annotate the parameter as {type(value).__name__} if it is to be converted"


def name_of(note: object) -> str:
    """Word an annotation as its author wrote it."""
    if isinstance(note, type) and not hasattr(note, "__origin__"):
        return "None" if note is type(None) else note.__name__
    return "None" if note is None else str(note).replace("typing.", "")


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return which of the known names was probably meant, None if there is none like it."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Word which name was probably meant, to be put behind a sentence; empty if there is none like it."""
    close = closest(name, known)
    return f", did you mean {close!r}?" if close else ""
