"""What is not shown of a job: the one place that decides, for the command line, mails and errors.

Hidden are values whose names sound like secrets (the setting `secret_names`), at any depth; every `Secret`; passwords in
URLs. The same texts, unless they are very short, are taken out of tracebacks and output as well. The rows hold all of it
in clear.

Pure. Molds import it, so it is thin.
"""

from __future__ import annotations

import json
import re

from forkrunner.units import mask, passwords

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from forkrunner.records import Row

HIDDEN = "***"
#: The default of the setting `secret_names`: parts of names.
SECRET_NAMES = ("pass", "secret", "token", "key", "auth", "cookie", "dsn")
#: The only key of the object that a Secret is in JSON.
MARK = "forkrunner.secret"

#: A URL and nothing else: prose with a colon and an @ somewhere in it is left alone.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
#: Characters of a Secret, and of what is secret by its name or place alone, that is looked for in other texts: shorter ones
#: would be found where they are not meant. So would parts of words: what is shorter than `_LONG`, or a number, is a word.
_SHORTEST, _SHORTEST_BY_NAME, _LONG = 3, 4, 8
_NUMBER = re.compile(r"-?[0-9.]+(e[+-]?[0-9]+)?")
#: What is nested deeper is no JSON of ours.
_DEEPEST = 200


def is_secret(name: object, names: Collection[str] = SECRET_NAMES) -> bool:
    """Say whether a name sounds like a secret: one of `names` is in it, in whatever case."""
    return isinstance(name, str) and any(part.lower() in name.lower() for part in names)


def redact(value: Any, names: Collection[str] = SECRET_NAMES, *, name: str = "") -> Any:
    """Return a JSON value without what is secret in it; `name` is its own."""
    if value is None or isinstance(value, bool):
        return value
    if is_secret(name, names):
        return HIDDEN
    if isinstance(value, dict):
        if value.keys() == {MARK}:
            return HIDDEN
        return {key: redact(item, names, name=key) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item, names) for item in value]
    if isinstance(value, str) and _URL.fullmatch(value):
        return mask(value)
    return value


def redact_text(text: str, names: Collection[str] = SECRET_NAMES) -> str:
    """Return JSON text of a row without what is secret in it.

    What is no JSON, or too deep to be searched, was written by somebody else, and is hidden whole.
    """
    value = _read(text)
    if value is None:
        return json.dumps(f"{HIDDEN} ({len(text)} characters that are not our JSON; --secrets shows them)")
    return json.dumps(redact(value[0], names), ensure_ascii=False)


def _read(text: str) -> tuple[Any] | None:
    try:
        value = json.loads(text, parse_constant=_refuse)
        return None if _depth(value) > _DEEPEST else (value,)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _depth(value: Any) -> int:
    """Return how deep a JSON value is nested, without recursion."""
    depth, level = 0, [value]
    while level := [
        item
        for one in level
        if isinstance(one, (dict, list))
        for item in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
    return depth


def holds_secret(value: Any, names: Collection[str] = SECRET_NAMES) -> bool:
    """Say whether anything in a value is secret, by its name or as a Secret; also in objects with declared fields."""
    met: set[int] = set()
    left = [value]
    while left:
        one = left.pop()
        if id(one) in met:
            continue  # it may hold itself
        met.add(id(one))
        if isinstance(one, (list, tuple, set, frozenset)):
            left += one
            continue
        kind = type(one)
        if kind.__name__ == "Secret" and kind.__module__ == "forkrunner.secret":
            return True
        parts = one if isinstance(one, dict) else _fields(one)
        if any(name == MARK or is_secret(name, names) for name in parts):
            return True
        left += parts.values()
    return False


def _fields(value: object) -> dict[str, Any]:
    """Return the fields of a dataclass, Struct, attrs object or pydantic model; nothing of any other object."""
    kind: Any = type(value)
    if hasattr(kind, "__mapper__"):
        return {}  # a row of an ORM: reading it may ask the database
    for declared in ("__dataclass_fields__", "__struct_fields__", "model_fields"):
        if hasattr(kind, declared):
            return {name: getattr(value, name, None) for name in getattr(kind, declared)}
    return {field.name: getattr(value, field.name, None) for field in getattr(kind, "__attrs_attrs__", ())}


def secrets_in(text: str, names: Collection[str] = ()) -> list[str]:
    """Return the secret texts in JSON text of a row, the longest first.

    Of Secrets, of what has one of these names, numbers too, and passwords in URLs.
    """
    found: set[str] = set()

    def walk(value: Any, secret: bool) -> None:
        if isinstance(value, dict):
            if value.keys() == {MARK} and isinstance(value[MARK], str):
                if len(value[MARK]) >= _SHORTEST:
                    found.add(value[MARK])
                return
            for key, item in value.items():
                walk(item, secret or is_secret(key, names))
        elif isinstance(value, list):
            for item in value:
                walk(item, secret)
        elif isinstance(value, str):
            texts = [value] if secret else passwords(value) if _URL.fullmatch(value) else ()
            found.update(one for one in texts if len(one) >= _SHORTEST_BY_NAME)
        elif secret and type(value) in (int, float) and len(str(value)) >= _SHORTEST_BY_NAME:
            found.add(str(value))

    read = _read(text)
    if read is not None:
        walk(read[0], False)
    return sorted(found, key=len, reverse=True)


def scrub(text: str, secrets: Collection[str]) -> str:
    """Return text without these texts, as they are and as `repr` and JSON write them."""
    for secret in secrets:
        # not a set, whose order is another in each process
        for form in dict.fromkeys((secret, repr(secret)[1:-1], json.dumps(secret)[1:-1])):
            if len(secret) >= _LONG and not _NUMBER.fullmatch(secret):
                text = text.replace(form, HIDDEN)
            elif form in text:
                before = r"(?<!\w)" if form[0].isalnum() else ""
                after = r"(?!\w)" if form[-1].isalnum() else ""
                text = re.sub(f"{before}{re.escape(form)}{after}", HIDDEN, text)
    return text


def conceal(row: Row, names: Collection[str] = SECRET_NAMES) -> Row:
    """Return a job as it may be shown: its JSON redacted, and the secrets of its arguments taken out of all other texts."""
    from dataclasses import replace

    secrets = secrets_in(row.arguments, names)

    def json_of(text: str | None) -> str | None:
        return None if text is None else redact_text(text, names)

    def text_of(text: str | None) -> str | None:
        return None if text is None else scrub(text, secrets)

    attempts = row.attempts
    if secrets:
        attempts = tuple(
            replace(
                attempt,
                error_message=text_of(attempt.error_message),
                traceback=text_of(attempt.traceback),
                stacks=text_of(attempt.stacks),
                output_tail=text_of(attempt.output_tail),
            )
            for attempt in attempts
        )
    return replace(
        row,
        arguments=redact_text(row.arguments, names),
        result=json_of(row.result),
        cursor=json_of(row.cursor),
        error=text_of(row.error),
        attempts=attempts,
    )
