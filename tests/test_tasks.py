"""Tasks and their arguments: what a function may declare, and how its arguments become text and arguments again.

No database here; the jobs made of tasks are in test_runner.py.
"""

from __future__ import annotations

import asyncio
import enum
import json
import math
import re
import subprocess
import sys
import typing
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union, cast
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import orm

from forkrunner import ArgumentError, ConfigError, EnqueueError, ForkrunnerError, Runner, TaskNotFound
from forkrunner.arguments import dump_named
from forkrunner.payload import MAX_DEPTH, Misfit, parse
from forkrunner.tasks import AsyncTask, Task

if typing.TYPE_CHECKING:
    from collections.abc import Callable


NAIVE = datetime(2024, 7, 1, 12)  # noqa: DTZ001 - what is tested


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Word(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


@dataclass
class Shape:
    name: str
    points: list[Point]
    made: datetime
    where: Path = Path("here")
    color: Color | None = None


@dataclass(eq=False)
class Plain:
    """Has no __eq__ of its own."""

    x: int
    inner: Point | None = None


@dataclass
class Counter:
    """Holds what its constructor does not take."""

    x: int
    counted: int = field(default=0, init=False)


@dataclass
class Lossy:
    """Changes what it is given each time it is made."""

    x: int

    def __post_init__(self):
        self.x *= 2


class Pair(NamedTuple):
    left: int
    right: str


class Movie(TypedDict):
    name: str
    year: int


class Packet(msgspec.Struct, rename="camel", tag="packet"):
    packet_id: int
    load: bytes = b""


class Model(pydantic.BaseModel):
    name: str
    born: date
    price: Decimal = Decimal("1.50")


class Strict(pydantic.BaseModel, strict=True, extra="forbid"):
    born: date
    kind: str = pydantic.Field("x", alias="type")


@pytest.fixture
def runner() -> Runner:
    return Runner("sqlite:///never-opened.db")


def taking(annotation: Any, *, name: str = "value") -> Task[..., Any]:
    """Make a task with one parameter of the given annotation."""

    def function(value): ...

    function.__annotations__ = {} if annotation is None else {"value": annotation}
    return Runner().task(name="work")(function)


def trip(annotation: Any, value: Any) -> Any:
    """Send a value the whole way and return what the task gets."""
    task = taking(annotation)
    _, kwargs = task.load(task.dump((value,), {}))
    return kwargs["value"]


def complaint(annotation: Any, value: Any) -> str:
    with pytest.raises(ArgumentError) as caught:
        taking(annotation).dump((value,), {})
    assert caught.value.facts == {"task": "work", "argument": "value"}
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("work(): argument 'value': ")
    return message.removeprefix("work(): argument 'value': ")


# --------------------------------------------------------------------------- values arrive as they were passed


SAFE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | NUMBERS | SAFE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SAFE, inner, max_size=4),
    max_leaves=20,
)
# offsets of whole minutes: ISO 8601 knows no others
ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
POINTS = st.builds(Point, NUMBERS, NUMBERS)
MOMENTS = st.datetimes(timezones=st.none() | ZONES)

TYPES: dict[Any, st.SearchStrategy[Any]] = {
    str: SAFE,
    int: INTEGERS,
    float: NUMBERS,
    bool: st.booleans(),
    type(None): st.none(),
    Any: JSON,
    object: JSON,
    list: st.lists(JSON, max_size=4),
    dict: st.dictionaries(SAFE, JSON, max_size=4),
    list[float]: st.lists(NUMBERS | st.integers(-(2**53), 2**53)),
    dict[str, list[int]]: st.dictionaries(SAFE, st.lists(INTEGERS)),
    str | None: SAFE | st.none(),
    Optional[int]: INTEGERS | st.none(),  # noqa: UP045 - the old spelling is what is tested
    Union[int, list[str]]: INTEGERS | st.lists(SAFE),  # noqa: UP007 - as above
    typing.List[int]: st.lists(INTEGERS),  # noqa: UP006 - as above
    typing.List: st.lists(JSON, max_size=4),  # noqa: UP006 - as above
    datetime: MOMENTS,
    date: st.dates(),
    time: st.times(timezones=st.none() | ZONES),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    UUID: st.uuids(),
    bytes: st.binary(),
    Path: SAFE.map(Path),
    Color: st.sampled_from(Color),
    Word: st.sampled_from(Word),
    Level: st.sampled_from(Level),
    Access: st.sampled_from([*Access, Access.READ | Access.WRITE]),
    Literal["a", 1, None]: st.sampled_from(["a", 1, None]),
    Point: POINTS,
    Pair: st.builds(Pair, INTEGERS, SAFE),
    Movie: st.fixed_dictionaries({"name": SAFE, "year": INTEGERS}),
    Packet: st.builds(Packet, INTEGERS, st.binary()),
    Model: st.builds(
        Model, name=SAFE, born=st.dates(), price=st.decimals(allow_nan=False, allow_infinity=False)
    ),
    Annotated[int, msgspec.Meta(ge=0)]: st.integers(0, 2**63 - 1),
    tuple[int, ...]: st.lists(INTEGERS).map(tuple),
    tuple[str, date]: st.tuples(SAFE, st.dates()),
    set[int]: st.sets(INTEGERS),
    frozenset[UUID]: st.frozensets(st.uuids()),
    list[Path]: st.lists(SAFE.map(Path)),
    dict[int, date]: st.dictionaries(INTEGERS, st.dates()),
    dict[UUID, tuple[int, ...]]: st.dictionaries(st.uuids(), st.lists(INTEGERS).map(tuple)),
    Sequence[Decimal]: st.lists(st.decimals(allow_nan=False, allow_infinity=False)),
    Mapping[str, Color]: st.dictionaries(SAFE, st.sampled_from(Color)),
    Path | None: SAFE.map(Path) | st.none(),
    datetime | None: MOMENTS | st.none(),
    list[Point | None]: st.lists(POINTS | st.none()),
    dict[str, list[Model]]: st.dictionaries(
        SAFE, st.lists(st.builds(Model, name=SAFE, born=st.dates()), max_size=2), max_size=3
    ),
}


@pytest.mark.parametrize("annotation", TYPES, ids=str)
def test_what_is_passed_arrives_equal(annotation):
    task = taking(annotation)

    @given(TYPES[annotation])
    def check(value):
        text = task.dump((), {"value": value})
        args, kwargs = task.load(text)
        assert args == []
        assert kwargs["value"] == value
        if annotation is not float:
            assert type(kwargs["value"]) is type(value)
        # one form for every database: no NUL, no surrogate, one line
        assert "\0" not in text
        assert len(text.encode().splitlines()) == 1

    check()


def test_shape_of_the_text_is_an_object_of_names_without_what_was_left_out(runner):
    @runner.task
    def convert(source: str, scale: float = 1.0, *, when: date | None = None): ...

    assert convert.dump(("ü",), {"when": date(2024, 2, 29)}) == '{"source":"ü","when":"2024-02-29"}'


def test_an_int_for_a_float_arrives_as_a_float_unless_it_would_be_another_number():
    value = trip(float, 3)
    assert value == 3
    assert type(value) is float
    assert type(trip(int | float, 3)) is int
    assert [type(item) for item in trip(list[float], [1, 2.5])] == [float, float]
    assert complaint(float, 2**53 + 1) == f"expected float, got int {2**53 + 1}"
    assert "would arrive as" in complaint(Point, Point(2**53 + 1))


def test_subclasses_of_plain_types_arrive_as_plain_equals():
    class Name(str): ...

    class Count(int): ...

    for annotation in (str, Any, list[str] | str, Annotated[str, "rich"]):
        assert trip(annotation, Name("x")) == "x"
        assert type(trip(annotation, Word.RED)) is str
    assert type(trip(int, Level.LOW)) is int
    assert trip(Annotated[int, "rich"], Count(3)) == 3
    assert trip(dict, OrderedDict(a=1)) == {"a": 1}


def test_fields_that_the_constructor_does_not_take_arrive():
    counter = Counter(1)
    counter.counted = 3
    assert trip(Counter, counter) == counter


def test_a_zone_arrives_as_the_same_moment():
    moment = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    there = trip(datetime, moment)
    assert there == moment
    assert there.utcoffset() == timedelta(hours=2)
    assert trip(datetime, NAIVE).tzinfo is None


def test_objects_without_equality_are_compared_by_their_fields():
    there = trip(list[Plain], [Plain(1, Point(2.0))])[0]
    assert (there.x, there.inner) == (1, Point(2.0))


def test_a_model_with_strict_fields_and_aliases_arrives():
    there = trip(Strict, Strict(born=date(2024, 1, 1), type="y"))
    assert (there.born, there.kind) == (date(2024, 1, 1), "y")


def test_attrs_objects_arrive():
    import attrs

    Box = attrs.make_class("Box", {"size": attrs.field(type=int), "at": attrs.field(type=date)})
    assert trip(Box, Box(3, date(2024, 1, 1))) == Box(3, date(2024, 1, 1))
    assert "expected Box" in complaint(Box, Box("3", date(2024, 1, 1)))


# --------------------------------------------------------------------------- what does not fit is refused


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (float, "big", "expected float, got str 'big'"),
        (int, True, "expected int, got bool True"),
        (bool, 1, "expected bool, got int 1"),
        (int, 1.0, "expected int, got float 1.0"),
        (str, None, "expected str, got None"),
        (str | None, 3, "expected str | None, got int 3"),
        (str, Path("a"), "expected str, got PosixPath PosixPath('a')"),
        (list[float], [1, "b"], "expected list[float], got list [1, 'b'] (at [1]: expected float, got str 'b')"),
        (dict[str, list[int]], {"a": [None]}, "(at ['a'][0]: expected int, got None)"),
        (dict, {1: 2}, "expected keys of type str, got int 1"),
        (list, (1, 2), "expected list, got tuple (1, 2)"),
        (Any, [{1, 2}], "at [0]: expected a JSON value, got set {1, 2}; it would arrive as a list"),
        (Any, date(2024, 1, 1), "annotate the parameter as date if it is to be converted"),
        (None, Point(1.0), "annotate the parameter as Point"),
        (datetime, "2024-01-01T00:00:00", "expected datetime, got str '2024-01-01T00:00:00'"),
        (datetime, date(2024, 1, 1), "expected datetime, got date"),
        (date, NAIVE, "expected date, got datetime"),
        (datetime, datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=30))), "would arrive as"),
        (Decimal, 0.1, "float would arrive as Decimal"),
        (Decimal, Decimal("sNaN"), "would arrive as"),
        (timedelta, 3, "expected timedelta, got int 3"),
        (tuple[int, ...], [1], "expected tuple[int, ...], got list [1] (list would arrive as tuple)"),
        (tuple[int, str], (1, 2), "(at [1]: expected str, got int)"),
        (Sequence[int], (1, 2), "tuple would arrive as list"),
        (set[int], [1], "list would arrive as set"),
        (Color, "red", "str would arrive as Color"),
        (Color, Word.RED, "Word would arrive as Color"),
        (Literal["a", "b"], "c", "expected Literal['a', 'b'], got str 'c'"),
        (Path, "a", "str would arrive as PosixPath"),
        (list[Path], ["a"], "at [0]: str would arrive as PosixPath"),
        (Movie, {"name": "x"}, "missing required field year"),
        (Movie, {"name": "x", "year": 1, "more": 2}, "would arrive as"),
        (Point, {"x": 1.0, "y": 2.0}, "dict would arrive as Point"),
        (Shape, Shape("a", [Point(cast(Any, "b"))], NAIVE), "at .points[0].x: expected float, got str"),
        (Lossy, Lossy(3), "at .x: it would arrive as int 12"),
        (Annotated[int, msgspec.Meta(ge=0)], -1, "expected int >= 0"),
        (Model, Model.model_construct(name=3, born=date(2024, 1, 1), price=Decimal(1)), "(name: Input should be a valid string)"),
        (deque[int], deque([1]), "deque has no form in JSON"),
        (complex, 1j, "complex has no form in JSON"),
        (date, (n for n in "a"), "generator has no form in JSON"),
    ],
    # without addresses: two processes must give a test the same name
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),
)  # fmt: skip
def test_the_error_names_the_argument_what_was_expected_and_what_was_got(annotation, value, words):
    assert words in complaint(annotation, value)


@pytest.mark.parametrize("annotation", [Any, list, list[Any], list[list[int]], tuple[Any, ...]], ids=str)
def test_nesting_has_an_end(annotation):
    def nest(depth: int) -> Any:
        value: Any = () if annotation == tuple[Any, ...] else []
        for _ in range(depth - 1):
            value = [value]
        return value

    if annotation in (Any, list):
        # the object of the arguments is the first level
        assert trip(annotation, nest(MAX_DEPTH - 1)) == nest(MAX_DEPTH - 1)
        assert f"nested more than {MAX_DEPTH} deep" in complaint(annotation, nest(MAX_DEPTH))
    for depth in (MAX_DEPTH, 100_000):
        assert complaint(annotation, nest(depth))
    loop: list[Any] = []
    loop.append(loop)
    assert complaint(annotation, loop)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "expected a finite number, got nan"),
        (-math.inf, "expected a finite number, got -inf"),
        ("a\0b", "NUL at character 1"),
        ("\ud800", "half of a surrogate pair, '\\ud800', at character 0"),
        (2**63, "an integer of at most 64 bits"),
        (-(2**63) - 1, "an integer of at most 64 bits"),
        (10**5000, "an integer of at most 64 bits"),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) else "int",
)
def test_what_some_database_refuses_is_refused_at_any_depth_on_all(value, words):
    for annotation in (Any, type(value), list[Any], dict[str, list[Any]], Annotated[Any, "rich"]):
        nested: Any = value
        if annotation == list[Any]:
            nested = [value]
        elif annotation == dict[str, list[Any]]:
            nested = {"k": [1, value]}
        assert words in complaint(annotation, nested)
    if isinstance(value, str):
        assert words in complaint(dict, {value: 1})
        assert words in complaint(Point, Point(cast(Any, value)))
        assert words in complaint(Path, Path(value))
    with pytest.raises(ArgumentError, match=r"argument 'x': "):
        dump_named("work", {"x": [value]})


def test_arguments_have_a_limit_in_bytes_and_the_largest_is_named(runner):
    @runner.task
    def work(small: str, large: str): ...

    size = len('{"small":"x","large":""}') + 20
    assert len(work.dump(("x", "ü" * 10), {}, limit=size).encode()) == size
    words = rf"argument 'large': the arguments are {size} bytes .* more than the {size - 1} of argument_limit"
    with pytest.raises(ArgumentError, match=words):
        work.dump(("x", "ü" * 10), {}, limit=size - 1)
    with pytest.raises(ArgumentError, match=r"1,000,024 bytes"):
        work.dump(("x", "y" * 10**6), {}, limit=10**6)


@pytest.mark.parametrize("name", ["password", "api_key", "Token", "secret_of_life", "auth", "dsn"])
def test_values_of_arguments_with_secret_names_are_not_shown(runner, name):
    def login(user): ...

    for annotation in (int, date, list[int]):
        function = eval(f"lambda {name}: None")
        function.__annotations__ = {name: annotation}
        task = runner.task(name=f"login-{annotation}".translate(dict.fromkeys(map(ord, "<>[]' "))))(function)
        with pytest.raises(ArgumentError) as caught:
            task.dump((["hunter2"],), {})
        assert "hunter2" not in str(caught.value)
        assert "got list" in str(caught.value)


def test_an_error_survives_values_that_cannot_be_shown():
    class Broken:
        def __repr__(self):
            raise RuntimeError

        def __eq__(self, other):
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    for annotation in (str, Any, date, list[date]):
        assert "Broken" in complaint(annotation, [Broken()] if annotation == list[date] else Broken())


# --------------------------------------------------------------------------- rows of an ORM


class Base(orm.DeclarativeBase): ...


class User(Base):
    __tablename__ = "users"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    def __repr__(self):
        raise AssertionError("this may ask the database")


class MappedUser(orm.MappedAsDataclass, Base):
    """Is a dataclass, too."""

    __tablename__ = "mapped_users"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


def test_rows_of_sqlalchemy_are_refused_wherever_they_are():
    for value in (User(id=3), MappedUser(id=3)):
        for annotation, nested in [
            (type(value), value), (int, value), (Any, value), (Any, {"user": [value]}), (list[Any], [value]),
            (dict, {"user": value}), (date, value), (tuple[Any, ...], (value,)), (Plain, Plain(1, cast(Any, value))),
        ]:  # fmt: skip
            words = complaint(annotation, nested)
            assert "pass its id and load it in the task" in words
            assert f"an instance of {type(value).__name__}" in words


def test_rows_of_django_are_refused():
    class Book:
        _meta = object()
        pk = 3

    assert complaint(Any, [Book()]).endswith("an instance of Book; pass its id and load it in the task")
    assert complaint(str, Book()).endswith("an instance of Book; pass its id and load it in the task")


# --------------------------------------------------------------------------- names and signatures


@pytest.fixture
def convert(runner):
    @runner.task
    def convert(source: str, /, scale: float = 1.0, *, name: str, note: str = ""): ...

    return convert


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "convert(): arguments 'source', 'name' missing"),
        (("a",), {}, "convert(): argument 'name' missing"),
        (("a", 2.0, "b"), {"name": "n"}, "convert(): expected at most 2 by position, got 3"),
        (("a",), {"name": "n", "scal": 1}, "convert(): there is no argument 'scal', did you mean 'scale'?"),
        (("a",), {"name": "n", "zzz": 1}, "convert(): there is no argument 'zzz'"),
        (("a", 2.0), {"name": "n", "scale": 1}, "convert(): argument 'scale' is given twice, by position and by name"),
        ((), {"name": "n", "source": "a"}, "convert(): argument 'source' is taken by position only"),
    ],
)  # fmt: skip
def test_a_call_that_the_function_would_not_take_is_refused(convert, args, kwargs, words):
    with pytest.raises(ArgumentError) as caught:
        convert.dump(args, kwargs)
    assert str(caught.value) == words
    with pytest.raises(TypeError):
        convert(*args, **kwargs)


def test_arguments_come_back_by_position_where_they_must(convert):
    assert convert.load(convert.dump(("a",), {"name": "n"})) == (["a"], {"name": "n"})
    assert convert.load('{"scale":2,"name":"n","source":"a"}') == (["a"], {"scale": 2.0, "name": "n"})


def test_keyword_arguments_without_a_name_keep_theirs(runner):
    @runner.task
    def work(first: int, **others: date): ...

    args, kwargs = work.load(work.dump((1,), {"a": date(2024, 1, 1), "b": date(2024, 1, 2)}))
    assert (args, kwargs) == ([], {"first": 1, "a": date(2024, 1, 1), "b": date(2024, 1, 2)})
    with pytest.raises(ArgumentError, match="argument 'a': expected date, got int 3"):
        work.dump((1,), {"a": 3})
    with pytest.raises(ArgumentError, match="NUL"):
        work.dump((1,), {"a\0": date(2024, 1, 1)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a JSON object, got no JSON"),
        ("[]", "expected a JSON object (parameter name → value), got list []"),
        ("null", "got None"),
        ('{"source":"a","source":"b","name":"n"}', "'source' is there twice in one object"),
        ('{"source":"a","name":"n","scale":NaN}', "expected finite numbers, got NaN"),
        ('{"source":"a","name":"n","scale":-Infinity}', "expected finite numbers, got -Infinity"),
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"source":' + "9" * 5000 + "}", "expected a JSON object, got no JSON"),
        ('{"source":"a"}', "argument 'name' missing"),
        ('{"source":"a","name":"n","__class__":"os.system"}', "there is no argument '__class__'"),
        ('{"source":{"__reduce__":[]},"name":"n"}', "argument 'source': expected str, got dict"),
        ('{"source":"a","name":"n","scale":"2"}', "argument 'scale': expected float, got str '2'"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_in_the_same_words(convert, text, words):
    with pytest.raises(ArgumentError) as caught:
        convert.load(text)
    assert words in str(caught.value)
    assert not convert.retryable(caught.value)


@pytest.mark.parametrize(
    ("annotation", "wire", "words"),
    [
        (Point, {"x": 1, "__class__": "os.system"}, "there is no field '__class__'"),
        (Shape, {"name": "a", "points": [{"x": 1, "z": 2}], "made": "2024-01-01T00:00:00"}, "at .points[0]: there is no field 'z'"),
        (Movie, {"name": "x", "year": 1, "more": 2}, "there is no field 'more'"),
        (Packet, {"packetId": 1, "packet_id": 2}, "there is no field 'packet_id'"),
        (dict[str, Point], {"a": {"x": 1, "z": 2}}, "at ['a']: there is no field 'z'"),
        (Strict, {"born": "2024-01-01", "more": 1}, "Extra inputs are not permitted"),
        (date, "2024-02-30", "expected date, got str '2024-02-30'"),
        (Color, "green", "expected Color, got str 'green'"),
        (Path, 3, "expected Path, got int 3"),
    ],
    ids=str,
)  # fmt: skip
def test_typed_values_in_a_row_are_made_into_the_declared_type_or_refused(annotation, wire, words):
    with pytest.raises(ArgumentError) as caught:
        taking(annotation).load(json.dumps({"value": wire}))
    assert words in str(caught.value)


def test_fields_with_other_names_and_a_tag_are_known():
    assert taking(Packet).load('{"value":{"type":"packet","packetId":1,"load":"YQ=="}}')[1] == {
        "value": Packet(1, b"a")
    }


def test_arguments_by_name_are_json_only():
    assert dump_named("work", {"a": [1, {"b": None}]}) == '{"a":[1,{"b":null}]}'
    for value in (date(2024, 1, 1), (1, 2), {1: 2}, Point(1.0)):
        with pytest.raises(ArgumentError, match=r"work\(\): argument 'a': "):
            dump_named("work", {"a": value})
    with pytest.raises(ArgumentError, match="expected names of type str"):
        dump_named("work", {1: 2})  # type: ignore[dict-item]


def test_a_json_object_of_a_stranger_is_read_strictly():
    assert parse(' {"a": 1.5} ') == {"a": 1.5}
    for text in ("{", "[1]", '{"a":1,"a":2}', '{"a":NaN}'):
        with pytest.raises(Misfit):
            parse(text)


# --------------------------------------------------------------------------- annotations


def test_annotations_as_text_are_found_when_first_needed(runner):
    # this file has `from __future__ import annotations`
    @runner.task
    def work(when: date, shape: Later | None = None, *, tags: list[str] | None = None): ...

    assert work.load(work.dump((date(2024, 1, 1), Later(2)), {}))[1] == {
        "when": date(2024, 1, 1),
        "shape": Later(2),
    }


@dataclass
class Later:
    x: int


def test_an_annotation_that_cannot_be_resolved_is_said_by_name(runner):
    @runner.task
    def work(a: int, call: Callable[[], None]): ...

    for use in (work.prepare, lambda: work.dump((1, 2), {})):
        with pytest.raises(ConfigError) as caught:
            use()
        assert "task work: the annotation Callable[[], None] of 'call' cannot be resolved" in str(
            caught.value
        )
        assert "name 'Callable' is not defined" in str(caught.value)


def test_a_type_that_no_json_can_stand_for_is_said_by_name():
    for annotation in (Path | str, datetime | str, dict[date, int] | dict[str, int]):
        with pytest.raises(
            ConfigError, match=r"task work: the annotation .* of 'value' has no form in JSON: .* union"
        ):
            taking(annotation).prepare()


def test_a_wrapped_function_is_checked_by_what_it_wraps(runner):
    def logged(function):
        @wraps(function)
        def wrapper(*args, **kwargs):
            return ["logged", function(*args, **kwargs)]

        return wrapper

    @runner.task
    @logged
    def work(when: date):
        return when.year

    args, kwargs = work.load(work.dump((date(2024, 1, 1),), {}))
    assert work.run(*args, **kwargs) == ["logged", 2024]
    with pytest.raises(ArgumentError, match="'when'"):
        work.dump((), {})


# --------------------------------------------------------------------------- running and results


def test_calling_a_task_runs_the_function_here(runner):
    @runner.task
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    assert add(1) == 3
    assert add(1, b=3) == 4
    assert (add.__doc__, add.__name__, add.__module__) == ("Add.", "add", __name__)
    assert add.__wrapped__ is add.function
    assert repr(add) == "<Task add>"


def test_an_async_task_is_run_to_its_end_in_a_job_and_awaited_elsewhere(runner):
    @runner.task
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    assert isinstance(add, AsyncTask)
    assert add.run(1, 2) == 3
    assert asyncio.run(add(1, 2)) == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ({"frames": [1, 2.5, "ü"]}, '{"frames":[1,2.5,"ü"]}'),
        ((1, 2), "[1,2]"),
        (date(2024, 1, 1), '"2024-01-01"'),
        ({"at": Path("a"), "color": Color.RED}, '{"at":"a","color":"red"}'),
        ([Point(1.0)], '[{"x":1.0,"y":0.0}]'),
        (Model(name="a", born=date(2024, 1, 1)), '{"name":"a","born":"2024-01-01","price":"1.50"}'),
        ({date(2024, 1, 1): 1}, '{"2024-01-01":1}'),
    ],
    ids=str,
)
def test_a_result_of_any_type_with_a_form_in_json_is_stored(value, text):
    assert taking(None).dump_result(value, 1000) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), ": object has no form in JSON"),
        ({"a": [math.nan]}, "at ['a'][0]: expected a finite number, got nan"),
        ("a\0", "NUL at character 1"),
        (["\ud800"], "half of a surrogate pair"),
        (2**64, "at most 64 bits"),
        ((n for n in [1]), "generator has no form in JSON"),
        ({(1, 2): 3}, "keys"),
        ("x" * 99, "work() returned 101 bytes of JSON, more than the 100 of result_limit"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_a_result_that_cannot_be_stored_is_refused_with_the_reason(value, words):
    with pytest.raises(ForkrunnerError) as caught:
        taking(None).dump_result(value, 100)
    assert str(caught.value).startswith("work() returned ")
    assert words in str(caught.value)
    assert "annotate" not in str(caught.value)


def test_a_result_is_read_as_declared_and_plainly_if_it_does_not_fit(runner):
    @runner.task
    def work() -> list[Point]:
        return []

    @runner.task
    def other(): ...

    assert work.load_result('[{"x":1.0,"y":2.0}]') == [Point(1.0, 2.0)]
    assert work.load_result('["of an older version"]') == ["of an older version"]
    assert other.load_result("[1]") == [1]


def test_retryable_follows_retry_for_and_give_up_on(runner):
    @runner.task(retry_for=(OSError, ValueError), give_up_on=FileNotFoundError)
    def work(): ...

    assert work.retryable(OSError())
    assert work.retryable(ConnectionError())
    assert not work.retryable(FileNotFoundError())
    assert not work.retryable(KeyError())
    # an error about the row itself stays; that of a task called in the task may pass
    every = runner.task(name="every")(lambda: None)
    assert not every.retryable(ArgumentError("x", task="every"))
    assert every.retryable(ArgumentError("x", task="work"))
    assert not every.retryable(KeyboardInterrupt())


# --------------------------------------------------------------------------- options


def test_options_have_defaults_and_go_to_the_mold_as_json(runner):
    @runner.task
    def a(): ...

    @runner.task(
        queue="slow", max_attempts=3, max_crashes=2, backoff=[1, "10s", timedelta(minutes=1)], backoff_cap="1h",
        timeout="10m", grace=2, memory="200MB", priority=-3,
        cpu_seconds="90s", open_files=5, file_size="1MiB", nice=19,
    )  # fmt: skip
    def b(): ...

    assert json.loads(json.dumps(a.policy())) == {
        "queue": "default", "max_attempts": 1, "max_crashes": 3, "backoff": 10.0, "backoff_cap": 3600.0,
        "timeout": None, "grace": None, "memory": None, "at_most_once": False,
        "cpu_seconds": None, "open_files": None, "file_size": None, "nice": None, "temporary_folder": False, "requeue_on_reload": False,
        "mail_to": None,
        "mail_on": None,
    }  # fmt: skip
    assert b.policy() == {
        "queue": "slow", "max_attempts": 3, "max_crashes": 2, "backoff": [1.0, 10.0, 60.0], "backoff_cap": 3600.0,
        "timeout": 600.0, "grace": 2.0, "memory": 200_000_000, "at_most_once": False,
        "cpu_seconds": 90.0, "open_files": 5, "file_size": 1 << 20, "nice": 19, "temporary_folder": False, "requeue_on_reload": False,
        "mail_to": None,
        "mail_on": None,
    }  # fmt: skip
    assert b.priority == -3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_attempts": 0}, "max_attempts: expected a whole number from 1 to"),
        ({"max_attempts": True}, "max_attempts: expected a whole number from 1 to"),
        ({"max_crashes": 1.5}, "max_crashes: expected a whole number"),
        ({"priority": 2**31}, "priority: expected a whole number"),
        ({"timeout": 0}, "timeout: expected more than 0 seconds, or None for no limit"),
        ({"timeout": -1}, "timeout: expected 0 seconds to"),
        ({"timeout": "soon"}, "timeout: expected seconds as a number, or text like"),
        ({"timeout": math.nan}, "timeout: expected 0 seconds to"),
        ({"memory": "much"}, "memory: expected bytes"),
        ({"memory": 1.5}, "memory: expected bytes"),
        ({"memory": 0}, "memory: expected"),
        ({"cpu_seconds": 0}, "cpu_seconds: expected more than 0 seconds"),
        ({"open_files": 0}, "open_files: expected a whole number from 1 to 1048576, got int 0"),
        ({"open_files": "many"}, "open_files: expected a whole number"),
        ({"file_size": -1}, "file_size: expected"),
        ({"nice": 20}, "nice: expected a whole number from -20 to 19, got int 20"),
        ({"temporary_folder": "yes"}, "temporary_folder: expected True or False"),
        ({"nice": 1.5}, "nice: expected a whole number"),
        ({"backoff": []}, "backoff: expected at least one"),
        ({"backoff": [1, "x"]}, "backoff: expected seconds"),
        ({"queue": "a b"}, "queue: expected 1 to 200 letters"),
        ({"queue": ""}, "queue: expected 1 to 200 letters"),
        ({"name": "os.system()"}, "name: expected 1 to 200 letters"),
        ({"name": "x" * 201}, "name: expected 1 to 200 letters"),
        ({"name": "convеrt"}, "name: expected 1 to 200 letters"),  # the е is Cyrillic
        ({"name": "a\n"}, "name: expected 1 to 200 letters"),
        ({"retry_for": "OSError"}, "retry_for: expected types of exceptions, got str 'OSError'"),
        ({"give_up_on": [OSError()]}, "give_up_on: expected types of exceptions"),
        ({"at_most_once": 1}, "at_most_once: expected True or False"),
        ({"at_most_once": True, "max_attempts": 2}, "expected max_attempts=1 beside at_most_once, got 2"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_when_decorating(runner, options, words):
    with pytest.raises(ConfigError) as caught:

        @runner.task(**options)
        def work(): ...

    assert words in str(caught.value)
    assert str(caught.value).startswith("task ")
    assert not runner.tasks


def test_an_unknown_option_is_a_type_error_as_in_any_call(runner):
    with pytest.raises(TypeError, match="unexpected option 'max_attempt', did you mean 'max_attempts'"):
        runner.task(max_attempt=3)


class Owner:
    def method(self): ...


def test_what_cannot_be_a_task_is_refused_when_decorating(runner):
    def generator():
        yield

    async def agenerator():
        yield

    def starred(*args): ...

    class Callable:
        def __call__(self): ...

    for function, words in [
        (lambda: None, "give it one with name="),
        (generator, "a generator, whose body would never run"),
        (agenerator, "a generator, whose body would never run"),
        (starred, "take a list instead"),
        (Owner.method, "got one of class Owner"),
        (Owner().method, "expected a function"),
        (Callable(), "expected a function"),
        (Callable, "expected a function"),
        (print, "expected a function"),
        ("convert", "expected a function, got str 'convert'"),
    ]:
        with pytest.raises(ConfigError) as caught:
            runner.task(function)
        assert words in str(caught.value)
    assert runner.task(name="nameless")(lambda: 3)() == 3


def test_a_name_belongs_to_one_function(runner):
    def convert(): ...

    first = runner.task(convert)
    again = runner.task(convert)
    assert runner.tasks["convert"] is again is not first

    def other(): ...

    with pytest.raises(
        ConfigError, match=r"task convert: two functions have this name, .*convert and .*other"
    ):
        runner.task(name="convert")(other)


def test_the_registry_knows_names_and_says_which(runner):
    def convert(): ...

    task = runner.task(convert)
    assert list(runner.tasks) == ["convert"]
    assert list(runner.tasks.values()) == [task]
    assert runner.tasks.get("x") is None
    for name in ("conver", "os.system", "__init__", "../convert"):
        with pytest.raises(TaskNotFound, match=r"there is no task .*\(known: convert\)"):
            runner.tasks[name]
        assert name not in runner.tasks


# --------------------------------------------------------------------------- using


def test_using_changes_a_copy(runner):
    @runner.task(queue="slow", max_attempts=2)
    def work(a: int): ...

    other = work.using(
        queue="fast",
        priority=5,
        delay="10m",
        timeout="1m",
        memory="1MB",
        max_attempts=7,
        nice=3,
        open_files=4,
    ).using(backoff=(1, 2), grace=1, max_crashes=9, cpu_seconds=8, file_size="1kB")
    call = other.call(1)
    assert (call.task, call.arguments, call.queue, call.priority, call.delay) == (
        "work",
        '{"a":1}',
        "fast",
        5,
        600.0,
    )
    assert json.loads(call.options or "") == {
        "timeout": 60.0, "memory": 10**6, "max_attempts": 7, "backoff": [1.0, 2.0], "grace": 1.0, "max_crashes": 9,
        "nice": 3, "open_files": 4, "cpu_seconds": 8.0, "file_size": 1000,
    }  # fmt: skip
    plain = work.call(1)
    assert (plain.queue, plain.priority, plain.delay, plain.options, plain.run_at) == (
        "slow",
        0,
        0.0,
        None,
        None,
    )
    assert runner.tasks["work"] is work
    assert json.loads(work.using(timeout=None).call(1).options or "") == {"timeout": None}


def test_run_at_is_kept_in_utc(runner):
    @runner.task
    def work(): ...

    moment = datetime(2030, 1, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    run_at = work.using(run_at=moment).call().run_at
    assert run_at == moment
    assert run_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "expected delay or run_at, got both"),
        ({"run_at": NAIVE}, "expected an aware datetime, got the naive 2024-07-01 12:00:00; say datetime.now(UTC)"),
        ({"run_at": date(2030, 1, 1)}, "run_at: expected a datetime"),
        ({"run_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}, "is no date in UTC"),
        ({"delay": -1}, "delay: expected 0 seconds to"),
        ({"delay": 1e14}, "delay: "),
        ({"priority": "high"}, "priority: expected a whole number"),
        ({"queue": None}, "queue: expected"),
        ({"max_attempts": 2}, "it is run at most once: expected max_attempts=1, got 2"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options_of_a_call_are_refused(runner, options, words):
    @runner.task(at_most_once=True)
    def work(): ...

    with pytest.raises(EnqueueError) as caught:
        work.using(**options)
    assert words in str(caught.value)


# --------------------------------------------------------------------------- what importing costs


def fresh(code: str, *options: str) -> str:
    """Run code in an interpreter of its own and return what it printed."""
    path = str(Path(__file__).parent.parent)
    command = [
        sys.executable,
        "-I",
        "-W",
        "error",
        *options,
        "-c",
        f"import sys; sys.path.insert(0, {path!r})\n{code}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = {
    "asyncio", "click", "dataclasses", "datetime", "difflib", "inspect", "logging", "msgspec", "pathlib", "psycopg",
    "pydantic", "pymemcache", "rich", "socket", "sqlalchemy", "threading", "tomllib", "traceback", "typing", "uuid",
    "forkrunner.config", "forkrunner.job", "forkrunner.store", "forkrunner.typed",
}  # fmt: skip


def test_importing_loads_no_library():
    loaded = fresh("before = set(sys.modules)\nfrom forkrunner import *\nprint(*set(sys.modules) - before)")
    assert "forkrunner.job" in loaded  # State is one of the names
    names = "ArgumentError, Runner, Task, Job, current_job, progress"
    loaded = fresh(
        f"before = set(sys.modules)\nfrom forkrunner import {names}\nprint(*set(sys.modules) - before)"
    )
    assert "forkrunner.runner" in loaded.split()
    assert not HEAVY & set(loaded.split())


PLAIN_TASKS = (
    """
before = set(sys.modules)
from forkrunner import Runner
runner = Runner("sqlite:///jobs.db")
@runner.task(timeout=600, max_attempts=3)
def a(source: str, scale: "float | None" = 1.0, *rest: int) -> dict: ...
""".replace(", *rest: int", "")
    + """
@runner.task
def b(x, y: list[dict[str, int]], **more: object) -> None: ...
for task in runner.tasks.values():
    task.prepare()
    task.policy()
assert a.load('{"source":"a","scale":2}') == ([], {"source": "a", "scale": 2.0})
assert a.dump_result({"a": [1]}, 100) == '{"a":[1]}'
assert b.run(1, y=[]) is None
print(*set(sys.modules) - before)
"""
)


def test_a_mold_and_its_jobs_load_no_library_for_tasks_of_plain_types():
    assert not HEAVY & set(fresh(PLAIN_TASKS).split())


def test_a_mold_loads_what_typed_tasks_need_before_it_forks():
    code = """
from datetime import date
from forkrunner import Runner
runner = Runner("sqlite:///jobs.db")
@runner.task
async def a(when: date): ...
a.prepare()
before = set(sys.modules)
assert "msgspec" in before and "asyncio" in before
assert "pydantic" not in before
assert a.load('{"when":"2024-01-01"}')[1] == {"when": date(2024, 1, 1)}
print(*set(sys.modules) - before)
"""
    # the parser of dates is a part of C modules that are loaded when first used
    assert set(fresh(code).split()) <= {"_strptime"}


def test_public_names_are_sorted_and_all_there():
    import forkrunner

    assert forkrunner.__all__ == sorted(forkrunner.__all__)
    for name in forkrunner.__all__:
        assert getattr(forkrunner, name) is not None
        assert name in dir(forkrunner)
    with pytest.raises(AttributeError, match="'forkrunner' has no attribute 'nothing'"):
        _ = forkrunner.nothing


@pytest.mark.parametrize(
    "first", ["import forkrunner.progress", "from forkrunner.progress import track", "pass"]
)
def test_progress_is_the_function_whatever_was_imported_before(first):
    assert fresh(f"{first}\nfrom forkrunner import progress\nprint(type(progress).__name__)") == "function\n"


def test_everything_public_is_the_same_object_wherever_it_is_found():
    import forkrunner
    from forkrunner import errors, job, runner, tasks

    assert forkrunner.Runner is runner.Runner
    assert forkrunner.Task is tasks.Task
    assert forkrunner.State is job.State
    assert forkrunner.StoreError is errors.StoreError


def test_two_uuids_are_two(runner):
    @runner.task
    def work(id: UUID): ...

    assert work.call(uuid4()).arguments != work.call(uuid4()).arguments


def test_a_pure_path_stays_one():
    assert type(trip(PurePosixPath, PurePosixPath("a/b"))) is PurePosixPath
