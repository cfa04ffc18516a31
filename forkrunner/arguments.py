"""Arguments and results of a task as JSON: what may be in a row, and how it fits a signature.

A row holds a JSON object, parameter name → value. `Signature.dump` makes it and refuses at enqueue
whatever would not arrive as it was passed; `Signature.load` reads it in the job. Whoever can write a row
can write anything into it, so a text is only ever made into the declared types.

Parameters of plain types (str, int, float, bool, None, list and dict of these, unions of these, Any,
nothing declared) are handled here with the standard library alone, since molds import this file: no
inspect, no typing, no msgspec. All other types are in typed.py, which is imported when one occurs.

What every JSON text of ours keeps, on every database:
(1) nested at most MAX_DEPTH deep; (2) numbers are finite, integers fit 64 bits (pass larger ones as text);
(3) no text holds NUL or half of a surrogate pair; (4) an object names each key once; (5) there is a limit of bytes.
"""

from __future__ import annotations

import json
import re
import sys

from forkrunner.errors import ArgumentError, ConfigError, FileError, ForkrunnerError
from forkrunner.redaction import MARK, SECRET_NAMES, holds_secret, is_secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any, Protocol

    from forkrunner.filing import Files

    class Kind(Protocol):
        """What a parameter takes: `dump` makes JSON of a value, `load` is its inverse; both raise Misfit.

        `files` stores the files in the value, and fetches them.
        """

        def dump(self, value: Any, files: Files | None = None, /) -> Any: ...
        def load(self, wire: Any, files: Files | None = None, /) -> Any: ...


#: Of the whole text: the object that holds the arguments counts as one.
MAX_DEPTH = 64
#: Bytes; the default of the setting `argument_limit`.
ARGUMENT_LIMIT = 2**20

_NONE = type(None)
_UNION = type(int | None)
_NOTHING: Any = object()
#: bool before int: isinstance(True, int) holds.
_JSON_TYPES = (str, bool, int, float, _NONE, list, dict)
_BAD_TEXT = re.compile("[\0\ud800-\udfff]")

_VARARGS, _VARKEYWORDS = 0x04, 0x08


class Misfit(Exception):
    """A value does not fit. `path` says where in the value, as `[0]['x']`; filled in on the way out."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"at {self.path}: {self.message}" if self.path else self.message


# --------------------------------------------------------------------------- the JSON in a row


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
    elif isinstance(value, (bool, _NONE)):
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
        raise Misfit(f"expected a JSON value, got {describe(value)}{_advice(value)}")


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


# --------------------------------------------------------------------------- words for errors


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


def is_model(value: object) -> bool:
    """Tell whether this is a row of an ORM (SQLAlchemy, SQLModel, Django), without importing one."""
    kind = type(value)
    if hasattr(kind, "__mapper__") or "_sa_instance_state" in getattr(value, "__dict__", ()):
        return True
    return hasattr(kind, "_meta") and hasattr(kind, "pk")


def _advice(value: object) -> str:
    if is_model(value):
        return MODEL_ADVICE
    if isinstance(value, (tuple, set, frozenset)):
        return f"; it would arrive as a list: pass a list, or annotate the parameter as {type(value).__name__}[…]"
    return f"; annotate the parameter as {type(value).__name__} if it is to be converted"


MODEL_ADVICE = "; pass its id and load it in the task"


def name_of(note: object) -> str:
    """Word an annotation as its author wrote it."""
    if isinstance(note, type) and not hasattr(note, "__origin__"):
        return "None" if note is _NONE else note.__name__
    return "None" if note is None else str(note).replace("typing.", "")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f", did you mean {close[0]!r}?" if close else ""


# --------------------------------------------------------------------------- plain types


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


def plain(note: Any) -> Plain | None:
    """Return the kind of a plain annotation, None for any other."""
    typing = sys.modules.get("typing")
    if note is _NOTHING or note is object or (typing and note is typing.Any):
        return ANY
    if note is None:
        note = _NONE
    if any(note is kind for kind in _JSON_TYPES):
        return Plain({note: None})
    parts: tuple[Any, ...]
    origin, parts = getattr(note, "__origin__", None), getattr(note, "__args__", ())
    if isinstance(note, _UNION) or (typing and origin is typing.Union):
        types: dict[type, Plain | None] = {}
        for member in map(plain, parts):
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
        inner = plain(parts[-1])
        return inner and Plain({origin: inner})
    return None


# --------------------------------------------------------------------------- signatures


class Signature:
    """The parameters of a task's function. Reads the function's own attributes: importing inspect costs 2 MB."""

    def __init__(self, function: Callable[..., Any], task: str) -> None:
        self.task = task
        inner: Any = function
        # what functools.wraps leaves behind: the wrapper itself is (*args, **kwargs)
        while hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        self._function = inner
        code = inner.__code__
        by_position = code.co_argcount
        self.names: tuple[str, ...] = code.co_varnames[: by_position + code.co_kwonlyargcount]
        #: Those that take an argument by position, and of these the ones that take it only so.
        self.by_position: tuple[str, ...] = self.names[:by_position]
        self.position_only: tuple[str, ...] = self.names[: code.co_posonlyargcount]
        optional = {*(inner.__kwdefaults__ or ())}
        if inner.__defaults__:
            optional.update(self.by_position[-len(inner.__defaults__) :])
        self.required = tuple(name for name in self.names if name not in optional)
        if code.co_flags & _VARARGS:
            extra = code.co_varnames[len(self.names)]
            raise ConfigError(
                f"task {task}: arguments are stored by name, *{extra} has none; take a list instead",
                name=task,
                value=extra,
                source=None,
            )
        #: Name of the `**kwargs`, which are stored under their own names.
        self.rest: str | None = code.co_varnames[len(self.names)] if code.co_flags & _VARKEYWORDS else None
        self._kinds: dict[str, Kind] | None = None
        #: Parts of names whose values no error shows; asked for when there is one.
        self.secret_names: Callable[[], Collection[str]] = lambda: SECRET_NAMES

    # ------------------------------------------------------------------------- types

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each parameter takes, found when first needed: annotations may name what is defined later.

        Raises ConfigError for an annotation that cannot be resolved or has no form in JSON.
        """
        if self._kinds is None:
            names = (*self.names, self.rest) if self.rest else self.names
            self._kinds = {name: self.kind_of(name) for name in names}
        return self._kinds

    @property
    def has_secrets(self) -> bool:
        """Whether a parameter is, or may hold, a Secret. Raises ConfigError as `kinds`."""
        return any(getattr(kind, "secret", False) for kind in self.kinds.values())

    def kind_of(self, name: str) -> Kind:
        """Return the kind of one annotation; `return` is the name of the function's own."""
        try:
            note = self._function.__annotations__.get(name, _NOTHING)
            # text, because of `from __future__ import annotations`; typing.get_type_hints would do the same
            resolved = eval(note, self._function.__globals__) if isinstance(note, str) else note
            found = plain(resolved)
            if found is not None:
                return found
            # if nothing has imported it, no annotation can mean it
            secret = sys.modules.get("forkrunner.secret")
            if secret is not None and resolved is secret.Secret:
                kind: Kind = secret.KIND
                return kind
            if hasattr(resolved, "forkrunner_file"):
                from forkrunner.filing import FileKind

                return FileKind(resolved)
            from forkrunner.typed import Typed

            return Typed(note, self._function.__globals__)
        except ConfigError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - an annotation is any expression
            reason = f"cannot be resolved when tasks are called: {error}"
        if name == "return":
            return ANY
        try:
            shown = name_of(self._function.__annotations__[name])
        except Exception:  # noqa: BLE001 - as above
            shown = "as written"
        raise ConfigError(
            f"task {self.task}: the annotation {shown} of {name!r} {reason}",
            name=self.task,
            value=shown,
            source=None,
        )

    @property
    def takes_files(self) -> bool:
        """Whether there is an InputFile anywhere in its parameters. Raises ConfigError, as `kinds`."""
        # without that module nobody has named one
        return "forkrunner.files" in sys.modules and any(map(_has_files, self.kinds.values()))

    # ------------------------------------------------------------------------- names

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Give each argument the name of its parameter; defaults are left out, the job's code decides them.

        Raises ArgumentError.
        """
        if len(args) > len(self.by_position):
            most = f"at most {len(self.by_position)} by position" if self.by_position else "none by position"
            raise self._error(None, f"expected {most}, got {len(args)}")
        values = dict(zip(self.by_position, args, strict=False))
        for name, value in kwargs.items():
            if name in values:
                raise self._error(name, f"argument {name!r} is given twice, by position and by name")
            if name in self.position_only:
                raise self._error(name, f"argument {name!r} is taken by position only")
            values[name] = value
        self.check_names(values)
        return values

    def check_names(self, values: Mapping[str, Any]) -> None:
        """Raises ArgumentError when names are missing or unknown."""
        for name in values:
            if name not in self.names and not self.rest:
                guess = did_you_mean(name, self.names)
                raise self._error(name, f"there is no argument {name!r}{guess}")
        missing = [name for name in self.required if name not in values]
        if missing:
            names = ", ".join(map(repr, missing))
            raise self._error(missing[0], f"argument{'s'[: len(missing) > 1]} {names} missing")

    # ------------------------------------------------------------------------- values

    def dump(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        limit: int = ARGUMENT_LIMIT,
        files: Files | None = None,
    ) -> str:
        """Return the arguments of a call as JSON text of at most `limit` bytes.

        Raises ArgumentError; StorageError when files in them cannot be stored.
        """
        wire = {}
        values = list(self.bind(args, kwargs).items())
        if files is not None:
            # no file is read for a call that is wrong in another argument
            values.sort(key=lambda item: _has_files(self._kind(item[0])))
        for name, value in values:
            kind = self._kind(name)
            if files is not None:
                files.begin(f"arguments.{name}")
            try:
                check_json(name)
                wire[name] = kind.dump(value, files)
            except FileError as error:
                raise self._error(name, f"argument {name!r}: {error}") from error
            except Misfit as misfit:
                raise self._misfit(name, value, kind, misfit) from None
        return seal(wire, self.task, limit)

    def load(self, text: str, files: Files | None = None) -> tuple[list[Any], dict[str, Any]]:
        """Return what to call the function with: positional arguments, and the others by name.

        Raises ArgumentError, in the same words as `dump`: a row may be written by other, or older, code. StorageError.
        """
        try:
            wire = parse(text)
        except Misfit as misfit:
            raise self._error(None, f"arguments: {misfit}") from None
        self.check_names(wire)
        values = {}
        for name, value in wire.items():
            kind = self._kind(name)
            if files is not None:
                files.begin(f"arguments.{name}")
            try:
                values[name] = kind.load(value, files)
            except Misfit as misfit:
                raise self._misfit(name, value, kind, misfit) from None
        by_position = []
        for name in self.position_only:
            # the first that has no value is left to its default, and so are all behind it
            if name not in values:
                break
            by_position.append(values.pop(name))
        return by_position, values

    def _kind(self, name: str) -> Kind:
        return self.kinds[name if name in self.names else self.rest or name]

    def _misfit(self, name: str, value: object, kind: Kind, misfit: Misfit) -> ArgumentError:
        reason = str(misfit)
        names = self.secret_names()
        if is_secret(name, names):
            reason = f"expected {kind}, got {type(value).__name__} (not shown, for its name)"
        elif getattr(kind, "secret", False) or holds_secret(value, names):
            reason = f"expected {kind}, got {type(value).__name__} (not shown, it holds a secret)"
        return self._error(name, f"argument {name!r}: {reason}")

    def _error(self, argument: str | None, message: str) -> ArgumentError:
        return ArgumentError(f"{self.task}(): {message}", task=self.task, argument=argument)


def seal(wire: Mapping[str, Any], task: str, limit: int) -> str:
    """Return checked arguments as the text of a row.

    Raises ArgumentError when it is longer than `limit` bytes; names the largest argument.
    """
    text = to_json(wire)
    # a character has up to four bytes; counting them exactly is for texts near the limit
    if len(text) * 4 > limit and (length := len(text.encode())) > limit:
        largest = max(wire, key=lambda name: len(to_json(wire[name])))
        raise ArgumentError(
            f"{task}(): argument {largest!r}: the arguments are {length:,} bytes of JSON, more than the"
            f" {limit:,} of argument_limit; pass a path or an id instead",
            task=task,
            argument=largest,
        )
    return text


def dump_named(
    task: str, arguments: Mapping[str, Any], limit: int = ARGUMENT_LIMIT, files: Files | None = None
) -> str:
    """Return arguments for a task that is known by name only: JSON types, nothing converted but files.

    Raises ArgumentError, StorageError.
    """
    wire = dict(arguments)
    for name, value in wire.items():
        try:
            if not isinstance(name, str):
                raise Misfit("expected names of type str")
            check_json(name)
            if files is not None:
                files.begin(f"arguments.{name}")
                wire[name] = value = files.put_all(value)
            check_json(value, depth=1)
        except (Misfit, FileError) as misfit:
            raise ArgumentError(f"{task}(): argument {name!r}: {misfit}", task=task, argument=name) from None
    return seal(wire, task, limit)


def _has_files(kind: Kind) -> bool:
    found: bool = getattr(kind, "has_files", False)
    return found


def dump_result(value: Any, task: str, limit: int, files: Files | None = None) -> str:
    """Return what a task returned as JSON text of at most `limit` bytes, whatever its annotation says.

    Raises ForkrunnerError with `task`: changing the value silently would be worse. FileError and StorageError when the
    files in it cannot be stored.
    """
    try:
        try:
            check_json(value)
        except Misfit:
            # it may be a typed value, a dataclass say; only now is the library for those needed
            from forkrunner.typed import builtins

            value = builtins(value, files)
            check_json(value, pairs=True)
        text = to_json(value)
    except Misfit as misfit:
        message = f"{task}() returned {describe(value)}, which cannot be stored as JSON: {misfit}"
        raise ForkrunnerError(message, task=task) from None
    if len(text) * 4 > limit and (length := len(text.encode())) > limit:
        raise ForkrunnerError(
            f"{task}() returned {length:,} bytes of JSON, more than the {limit:,} of result_limit;"
            " write them to a file and return its path",
            task=task,
        )
    return text
