"""Values of declared types that JSON does not have: dates, paths, enums, dataclasses, models and the like.

The only user of msgspec. Imported when a task has a parameter of such a type, by whoever calls the
task and by the mold that runs it; never for tasks of plain types alone.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import typing
from pathlib import PurePath
from typing import Any

import msgspec

from forkrunner.describing import MODEL_ADVICE, describe, is_model, name_of
from forkrunner.errors import ConfigError
from forkrunner.filing import Files, is_file, needed
from forkrunner.payload import Misfit, check_json, to_json
from forkrunner.plain import unfit

_AT = re.compile(r"(.*?)(?: - at `(.*)`)?", re.DOTALL)


class Typed:
    """A declared type, by msgspec. What `dump` accepts arrives equal: it decodes what it made and compares."""

    def __init__(self, note: Any, namespace: dict[str, Any]) -> None:
        """Compile the type, so that a forked child finds it ready.

        Raises ConfigError when no JSON can stand for it.
        """

        def probe() -> None: ...

        # resolves names in it at any depth, and keeps Annotated[…] for msgspec
        probe.__annotations__ = {"note": note}
        self.note = typing.get_type_hints(probe, namespace, include_extras=True)["note"]
        try:
            msgspec.json.Decoder(self.note, dec_hook=_decode)
        except TypeError as error:
            reason = str(error).partition(" - type")[0].replace("`", "")
            raise ConfigError(f"has no form in JSON: {reason}") from None
        #: It is, or may hold, a Secret: no error shows what was given.
        self.secret = _may_hold(self.note, "forkrunner.secret", "Secret")
        #: There is a file in it.
        self.has_files = _may_hold(self.note, "forkrunner.files", "InputFile") or _may_hold(
            self.note, "forkrunner.files", "OutputFile"
        )

    def __str__(self) -> str:
        return name_of(self.note)

    def dump(self, value: Any, files: Files | None = None) -> Any:
        try:
            refuse_models(value)
            wire = builtins(value, files)
            check_json(wire, depth=1, pairs=True)
            # through the text: tuples become lists there, and only what the job will see can be compared
            wire = json.loads(to_json(wire))
            difference = _difference(value, self._convert(wire, files))
        except Misfit as misfit:
            raise unfit(self, value, str(misfit)) from None
        if difference is not None:
            raise unfit(self, value, difference)
        return wire

    def load(self, wire: Any, files: Files | None = None) -> Any:
        try:
            value = self._convert(wire, files)
            _refuse_unknown(wire, value)
        except Misfit as misfit:
            raise unfit(self, wire, str(misfit)) from None
        return value

    def _convert(self, wire: Any, files: Files | None) -> Any:
        decode = _decode if files is None else functools.partial(_decode, files=files)
        try:
            return msgspec.convert(wire, self.note, str_keys=True, dec_hook=decode)
        except msgspec.ValidationError as error:
            match = _AT.fullmatch(str(error))
            message, path = match.groups() if match else (str(error), None)
            message = message.replace("`", "")
            raise Misfit(message[:1].lower() + message[1:], (path or "").removeprefix("$")) from None
        except RecursionError:
            raise Misfit("nested too deep") from None


def _may_hold(note: Any, module: str, name: str) -> bool:
    """Say whether a class of ours is anywhere in a type; if nothing has imported its module, it is not."""
    wanted = getattr(sys.modules.get(module), name, None)
    if wanted is None:
        return False
    import msgspec.inspect

    met: set[int] = set()
    left: list[Any] = [msgspec.inspect.type_info(note)]
    while left:
        one = left.pop()
        if id(one) in met:
            continue  # a type may hold itself
        met.add(id(one))
        if isinstance(one, msgspec.inspect.CustomType) and one.cls is wanted:
            return True
        if isinstance(one, (list, tuple)):
            left += one
        elif isinstance(one, msgspec.Struct):
            left += (getattr(one, field) for field in one.__struct_fields__)
    return False


def builtins(value: Any, files: Files | None = None) -> Any:
    """Return the JSON form of a value of any supported type; tuples stay tuples. Its files are stored.

    Raises Misfit, FileError, StorageError.
    """
    encode = _encode if files is None else functools.partial(_encode, files=files)
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=encode)
    except RecursionError:
        raise Misfit("nested too deep, or it holds itself") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise Misfit(str(error)) from None


def _encode(value: Any, files: Files | None = None) -> Any:
    """Give msgspec the JSON form of what it does not know: one line per kind."""
    if is_file(type(value)):
        return needed(files).put(value)
    if is_model(value):
        raise Misfit(f"it holds {describe(value)}{MODEL_ADVICE}")
    if (secret := sys.modules.get("forkrunner.secret")) and isinstance(value, secret.Secret):
        return secret.to_wire(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, PurePath):
        return os.fspath(value)
    if _is_pydantic(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)
    raise Misfit(f"{type(value).__name__} has no form in JSON")


def _decode(kind: type, wire: Any, files: Files | None = None) -> Any:
    """Make what `_encode` took apart. msgspec words ValueError and TypeError with the place."""
    if is_file(kind):
        return needed(files).take(kind, wire)
    if issubclass(kind, PurePath):
        if not isinstance(wire, str):
            raise TypeError(f"Expected `{kind.__name__}`, got `{type(wire).__name__}`")
        return kind(wire)
    if (secret := sys.modules.get("forkrunner.secret")) and kind is secret.Secret:
        try:
            return secret.from_wire(wire)
        except Misfit as misfit:
            raise ValueError(misfit.message) from None
    if _is_pydantic(kind):
        model: Any = kind
        try:
            # from text: a strict model takes a date as text there, and only there
            return model.model_validate_json(json.dumps(wire))
        except sys.modules["pydantic_core"].ValidationError as error:
            # its own text has several lines and shows the values
            found = error.errors(include_url=False, include_context=False, include_input=False)
            reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:3]]
            raise ValueError("; ".join(reasons)) from None
    raise TypeError(f"a {name_of(kind)} cannot be made from JSON")


def _is_pydantic(kind: object) -> bool:
    # if the application uses no pydantic, no value is a model of it
    pydantic: Any = sys.modules.get("pydantic.main")
    if pydantic is None or not isinstance(kind, type):
        return False
    # pydantic 1 has no such method, and is not known here
    return issubclass(kind, pydantic.BaseModel) and hasattr(kind, "model_validate_json")


def _fields(value: object) -> tuple[str, ...] | None:
    """Return the names of the fields of a Struct, dataclass or attrs object; None for anything else."""
    kind: Any = type(value)
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if hasattr(kind, "__dataclass_fields__"):
        return tuple(kind.__dataclass_fields__)
    if hasattr(kind, "__attrs_attrs__"):
        return tuple(attribute.name for attribute in kind.__attrs_attrs__)
    return None


def refuse_models(value: Any, depth: int = 0) -> None:
    """Raises Misfit when an ORM's row is anywhere in the value.

    Before msgspec sees it: a mapped dataclass is a dataclass, and reading it may ask the database.
    """
    if is_model(value):
        raise Misfit(f"it holds {describe(value)}{MODEL_ADVICE}")
    if depth > 100:
        return  # too deep is for check_json to say
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            refuse_models(item, depth + 1)
    elif isinstance(value, dict):
        for item in value.values():
            refuse_models(item, depth + 1)
    else:
        for name in _fields(value) or ():
            refuse_models(getattr(value, name, None), depth + 1)


def _difference(value: Any, back: Any, path: str = "") -> str | None:
    """Say where and how `back` is not what was passed; None when it is equal."""
    try:
        if value == back:
            return None
    except Exception:  # noqa: BLE001 - an __eq__ may do anything; that of Decimal("sNaN") raises
        pass
    at = f"at {path}: " if path else ""
    if type(value) is not type(back):
        return f"{at}{type(value).__name__} would arrive as {type(back).__name__}"
    # objects without an __eq__ of their own are equal when their parts are
    parts: list[tuple[str, Any, Any]] | None = None
    names = _fields(value)
    if isinstance(value, (list, tuple)) and len(value) == len(back):
        parts = [(f"[{n}]", mine, back[n]) for n, mine in enumerate(value)]
    elif isinstance(value, dict) and value.keys() == back.keys():
        parts = [(f"[{describe(key, typed=False)}]", mine, back[key]) for key, mine in value.items()]
    elif names is not None:
        parts = [(f".{name}", getattr(value, name, None), getattr(back, name, None)) for name in names]
    if parts is None:
        return f"{at}it would arrive as {describe(back)}"
    for step, mine, its in parts:
        found = _difference(mine, its, path + step)
        if found is not None:
            return found
    return None


_UNKNOWN = object()


def _known(wire: dict[str, Any], value: Any) -> list[tuple[str, Any]]:
    """Return what each key of a JSON object became, `_UNKNOWN` if nothing."""
    names = _fields(value)
    if isinstance(value, dict):
        # a TypedDict drops what it does not know; any other dict keeps all, under keys of its own type
        if len(wire) == len(value):
            return list(zip(wire, value.values(), strict=True))
        return [(name, value.get(name, _UNKNOWN)) for name in wire]
    if names is None:
        return []
    keys = getattr(value, "__struct_encode_fields__", names)
    attributes = dict(zip(keys, names, strict=True))
    tag = value.__struct_config__.tag_field if isinstance(value, msgspec.Struct) else None
    return [
        (key, getattr(value, attributes[key], None) if key in attributes else _UNKNOWN)
        for key in wire
        if key != tag
    ]


def _refuse_unknown(wire: Any, value: Any, path: str = "") -> None:
    """Raises Misfit for a field that the declared type does not have: msgspec only ignores it.

    Pydantic models decide for themselves; what is in a set is not followed, it has no order.
    """
    if isinstance(wire, dict):
        for name, inner in _known(wire, value):
            if inner is _UNKNOWN:
                raise Misfit(f"there is no field {name!r}", path)
            step = f"[{describe(name, typed=False)}]" if isinstance(value, dict) else f".{name}"
            _refuse_unknown(wire[name], inner, path + step)
    elif isinstance(wire, list) and isinstance(value, (list, tuple)):
        for n, (item, inner) in enumerate(zip(wire, value, strict=False)):
            _refuse_unknown(item, inner, f"{path}[{n}]")
