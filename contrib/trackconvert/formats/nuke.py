"""Nuke scripts with Tracker4 nodes (Nuke 7 and later): one node, a table of tracks, their curves in its cells.

    Tracker4 {
    tracks { { 1 31 2 }                             kind, columns, tracks
    { { 5 1 20 enable e 1 }                         columns: … … … name …
      … }
    { { {curve K x1 1} "track 1" {curve x1 322 328.27 x18 249 x19 242.13} {curve x1 448 …} … }
      … } }
    }

In a curve, `x18` says the frame of the next value, and further values follow at the distance between the last two
frames. Other tokens with a letter are hints for interpolation. Frames count from 1, coordinates
from the lower left corner. Nodes of other kinds are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from trackconvert.formats.base import Format
from trackconvert.lines import Lines
from trackconvert.model import ImageSize, Keyframe, Tracker
from trackconvert.names import Names

#: A token, or the list between a pair of braces.
Value = str | list["Value"]

_FIRST_FRAME = 1
#: In Tcl, brackets in a quoted text are code to run.
_NAMES = Names(r'["\\\[\]{}$]')
_TOKEN = re.compile(r'[{}]|"(?:[^"\\]|\\.)*"|(?:[^\s{}\\]|\\.)+')
_HINT = re.compile(r"[A-Za-z]|[a-wyz][-+.0-9]\S*")
_DEEPEST = 20
#: Kind, whether shown, width and label of each column of the table, as the program itself writes them.
_COLUMNS = """\
5 1 20 enable e 1
3 1 75 name name 1
2 1 58 track_x track_x 1
2 1 58 track_y track_y 1
2 1 63 offset_x offset_x 1
2 1 63 offset_y offset_y 1
4 1 27 T T 1
4 1 27 R R 1
4 1 27 S S 1
2 0 45 error error 1
1 1 0 error_min error_min 1
1 1 0 error_max error_max 1
1 1 0 pattern_x pattern_x 1
1 1 0 pattern_y pattern_y 1
1 1 0 pattern_r pattern_r 1
1 1 0 pattern_t pattern_t 1
1 1 0 search_x search_x 1
1 1 0 search_y search_y 1
1 1 0 search_r search_r 1
1 1 0 search_t search_t 1
2 1 0 key_track key_track 1
2 1 0 key_search_x key_search_x 1
2 1 0 key_search_y key_search_y 1
2 1 0 key_search_r key_search_r 1
2 1 0 key_search_t key_search_t 1
2 1 0 key_track_x key_track_x 1
2 1 0 key_track_y key_track_y 1
2 1 0 key_track_r key_track_r 1
2 1 0 key_track_t key_track_t 1
2 1 0 key_centre_offset_x key_centre_offset_x 1
2 1 0 key_centre_offset_y key_centre_offset_y 1
""".splitlines()
#: The cells behind track_y: no offset, no transformation, no error, usual boxes, no pattern yet.
_REST = "0 0 0 0 0 0 0 0 -16 -16 16 16 -32 -32 32 32" + " {}" * 11


def detect(head: Sequence[str]) -> bool:
    return re.match(r"#!.*Nuke|set cut_paste_input|version [0-9]|(Root|Tracker4) \{", head[0]) is not None


def read(lines: Lines, size: ImageSize) -> Iterator[Tracker]:
    tokens = _Tokens(lines)
    before = ""
    while (token := tokens.next()) is not None:
        if token == "{" and before == "Tracker4":
            yield from _node(tokens)
        elif token == "{":
            tokens.skip()
        elif token == "}":
            raise lines.error("a closing brace without its opening one")
        before = token


class _Tokens:
    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self._line: Iterator[str] = iter(())

    def next(self) -> str | None:
        while (token := next(self._line, None)) is None:
            text = self.lines.next()
            if text is None:
                return None
            self._line = iter(_TOKEN.findall(text))
        return token

    def need(self) -> str:
        token = self.next()
        if token is None:
            raise self.lines.error("cut short: the file ends within braces")
        return token

    def expect(self, expected: str) -> None:
        token = self.need()
        if token != expected:
            raise self.lines.unexpected(repr(expected), token)

    def skip(self) -> None:
        """Pass over everything up to the closing brace that belongs to the opening one before."""
        depth = 1
        while depth:
            depth += {"{": 1, "}": -1}.get(self.need(), 0)

    def value(self, token: str | None = None) -> Value:
        """Read a token, or a list with all that is in it."""
        open_lists: list[list[Value]] = []
        token = token or self.need()
        while True:
            done: Value | None = None
            if token == "{":
                open_lists.append([])
                if len(open_lists) > _DEEPEST:
                    raise self.lines.error(f"braces nested more than {_DEEPEST} deep")
            elif token != "}":
                done = token
            elif open_lists:
                done = open_lists.pop()
            else:
                raise self.lines.unexpected("a value", token)
            if done is not None:
                if not open_lists:
                    return done
                open_lists[-1].append(done)
            token = self.need()


def _node(tokens: _Tokens) -> Iterator[Tracker]:
    while (token := tokens.need()) != "}":
        if token == "{":
            tokens.skip()
        elif token == "tracks":
            tokens.expect("{")
            yield from _table(tokens)
            tokens.expect("}")


def _table(tokens: _Tokens) -> Iterator[Tracker]:
    lines = tokens.lines
    shape, columns = tokens.value(), tokens.value()
    if not (isinstance(shape, list) and len(shape) == 3 and isinstance(shape[2], str)):
        raise lines.error("expected the table's shape: { kind columns tracks }")
    count = lines.integer(shape[2], "the number of tracks")
    labels = [column[3] if isinstance(column, list) and len(column) > 3 else "" for column in columns]
    if not {"name", "track_x", "track_y"} <= {label for label in labels if isinstance(label, str)}:
        raise lines.error("expected columns name, track_x and track_y")
    name, x, y = (labels.index(label) for label in ("name", "track_x", "track_y"))
    tokens.expect("{")
    found = 0
    while (token := tokens.need()) != "}":
        row = tokens.value(token)
        if not isinstance(row, list) or len(row) <= max(name, x, y):
            raise lines.error("expected a track: { enable name track_x track_y … }")
        yield Tracker(*_named(lines, row[name], _keyframes(lines, row[x], row[y])))
        found += 1
    if found != count:
        raise lines.error(f"expected {count} tracks, got {found}")


def _named(lines: Lines, value: Value, keyframes: list[Keyframe]) -> tuple[str, list[Keyframe], str]:
    if not isinstance(value, str) or value == '""':
        raise lines.error("expected a track's name")
    if value.startswith('"'):
        if len(value) < 3 or not value.endswith('"'):
            raise lines.unexpected("a track's name in quotes", value)
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    name, camera = _NAMES.split(value)
    return name, keyframes, camera


def _keyframes(lines: Lines, x: Value, y: Value) -> list[Keyframe]:
    frames_x, values_x = _curve(lines, x, "x")
    frames_y, values_y = _curve(lines, y, "y")
    if frames_x != frames_y:
        raise lines.error("x and y have keys at different frames")
    return [Keyframe(*key) for key in zip(frames_x, values_x, values_y, strict=True)]


def _curve(lines: Lines, value: Value, what: str) -> tuple[list[int], list[float]]:
    """Return the frames and values of a curve; a number alone, where nothing was tracked, has none."""
    if isinstance(value, str):
        lines.pixel(value, what)
        return [], []
    if value[:1] != ["curve"]:
        raise lines.error(f"expected a curve for {what}")
    frames: list[int] = []
    values: list[float] = []
    step, said = 1, None
    for token in value[1:]:
        if not isinstance(token, str):
            raise lines.error(f"a list within the curve of {what}")
        if token.startswith("x"):
            if said is not None:
                raise lines.error(f"a frame without a value in the curve of {what}")
            said = lines.frame(token[1:], _FIRST_FRAME)
        elif not _HINT.fullmatch(token):
            if said is None and not frames:
                raise lines.unexpected(f"the first frame of the curve of {what}", token)
            if said is not None and frames:
                step = said - frames[-1]
            frames.append(lines.within(frames[-1] + step) if said is None else said)
            values.append(lines.pixel(token, what))
            said = None
    if said is not None:
        raise lines.error(f"a frame without a value in the curve of {what}")
    return frames, values


def write(out: TextIO, trackers: Iterable[Tracker], size: ImageSize) -> None:
    """Write a script of one Tracker4 node, values with all their digits; all trackers are held in memory.

    A tracker without keyframes is a disabled track without curves. Keys stay in the order of
    the keyframes, repeated frames too; Nuke itself keeps one key for each frame.
    Not carried: colour, residual, correlation, status. A camera becomes a part of the name.
    """
    trackers = list(trackers)
    frames = {key.frame - 1 + _FIRST_FRAME for tracker in trackers for key in tracker.keyframes}
    first, last = min(frames, default=_FIRST_FRAME), max(frames, default=_FIRST_FRAME)
    out.write(
        f"version 9.0 v1\nRoot {{\n inputs 0\n first_frame {first}\n last_frame {last}\n"
        f' format "{size.width} {size.height} 0 0 {size.width} {size.height} 1 trackconvert"\n}}\n'
    )
    out.write(f"Tracker4 {{\ninputs 0\ntracks {{ {{ 1 {len(_COLUMNS)} {len(trackers)} }}\n{{ ")
    out.write("".join(f"{{ {column} }}\n" for column in _COLUMNS) + "}\n{\n")
    for tracker in trackers:
        keys = tracker.keyframes
        enable = f"{{curve K x{keys[0].frame - 1 + _FIRST_FRAME} 1}}" if keys else "{curve K x1 0}"
        x = _curve_text([(key.frame, key.x) for key in keys])
        y = _curve_text([(key.frame, key.y) for key in keys])
        out.write(f' {{ {enable} "{_NAMES.join(tracker.name, tracker.camera)}" {x} {y} {_REST} }}\n')
    out.write("}\n}\nname Tracker1\n}\n")


def _curve_text(keys: Sequence[tuple[int, float]]) -> str:
    if not keys:
        return "0"
    words = ["curve"]
    previous, step = None, 1
    for frame, value in keys:
        if previous is None or not step == frame - previous == 1:
            words.append(f"x{frame - 1 + _FIRST_FRAME}")
        words.append(repr(value))
        if previous is not None:
            step = frame - previous
        previous = frame
    return f"{{{' '.join(words)}}}"


FORMAT = Format("nuke", "Nuke Tracker4 script", detect, read, write, lambda size: 0.0)
