"""Secret: text that a job needs and nobody is to read.

In a row it stands as `{"forkrunner.secret": text}`, in clear: so that the job gets it, on every host, and so that
whoever shows a row knows it for what it is, also without the application (`redaction.py`). Who may read the table may
read it.
"""

from __future__ import annotations

import json

from forkrunner.payload import Misfit, check_json
from forkrunner.redaction import HIDDEN, MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Secret:
    """Text that is not shown: str, repr and format give `***`; `reveal` gives it to who asks by name.

    As a parameter of a task, alone or in what it takes, also in a result. Not in the arguments as `forkrunner show`, a mail
    or an error shows them, and taken out of what the task raises. Hidden from reading, not from the database: see the module.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str, /) -> None:
        """Keep the text.

        Raises TypeError for what is no str, without showing it.
        """
        if not isinstance(text, str):
            raise TypeError(f"Secret: expected str, got {type(text).__name__} (not shown)")
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(("forkrunner.secret", self._text))


class Kind:
    """What a parameter declared as Secret takes: see `plain.Kind`."""

    #: No error shows what was given; `Typed` has it too, where it holds one.
    secret = True

    def __str__(self) -> str:
        return "Secret"

    def dump(self, value: Any, files: object = None) -> Any:
        if not isinstance(value, Secret):
            raise Misfit(f"expected Secret, got {type(value).__name__}")
        return to_wire(value)

    def load(self, wire: Any, files: object = None) -> Any:
        return from_wire(wire)


KIND = Kind()


def to_wire(secret: Secret) -> dict[str, str]:
    """Return its form in JSON.

    Raises Misfit for text that no row can hold, which it does not show.
    """
    try:
        check_json(secret.reveal())
    except Misfit:
        raise Misfit("a Secret with NUL, or half of a surrogate pair, cannot be stored") from None
    return {MARK: secret.reveal()}


def from_wire(wire: Any) -> Secret:
    """Make a Secret of its form in JSON, or of text: a row may be older than the declaration.

    Raises Misfit.
    """
    text = wire.get(MARK) if isinstance(wire, dict) and len(wire) == 1 else wire
    if not isinstance(text, str):
        raise Misfit(f"expected Secret, got {type(wire).__name__}")
    return Secret(text)


def plain(text: str | bytes) -> Any:
    """Read JSON of a row as plain values, but secrets as Secret: what is printed of it shows none."""

    def revive(value: dict[str, Any]) -> Any:
        return Secret(value[MARK]) if len(value) == 1 and isinstance(value.get(MARK), str) else value

    return json.loads(text, object_hook=revive)
