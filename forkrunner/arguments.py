"""Arguments and results of a task as JSON: how a call fits the signature of its function.

A row holds a JSON object, parameter name → value. `Signature.dump` makes it and refuses at enqueue
whatever would not arrive as it was passed; `Signature.load` reads it in the job. Whoever can write a row
can write anything into it, so a text is only ever made into the declared types: those of plain.py, and those of
typed.py, which is imported when one occurs.
"""

from __future__ import annotations

import sys

from .describing import describe, did_you_mean, name_of
from .errors import ArgumentError, ConfigError, FileError, ForkrunnerError
from .payload import Misfit, check_json, parse, to_json
from .plain import ANY, NOTHING, plain_kind
from .redaction import SECRET_NAMES, holds_secret, is_secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from .filing import Files
    from .plain import Kind

#: Bytes; the default of the setting `argument_limit`.
ARGUMENT_LIMIT = 2**20

_VARARGS, _VARKEYWORDS = 0x04, 0x08


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
            note = self._function.__annotations__.get(name, NOTHING)
            # text, because of `from __future__ import annotations`; typing.get_type_hints would do the same
            resolved = eval(note, self._function.__globals__) if isinstance(note, str) else note
            found = plain_kind(resolved)
            if found is not None:
                return found
            # if nothing has imported it, no annotation can mean it
            secret = sys.modules.get("forkrunner.secret")
            if secret is not None and resolved is secret.Secret:
                kind: Kind = secret.KIND
                return kind
            if hasattr(resolved, "forkrunner_file"):
                from .filing import FileKind

                return FileKind(resolved)
            from .typed import Typed

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
            from .typed import builtins

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
