"""The example application: every format into every other, and what is not a file of tracks."""

from __future__ import annotations

import ast
import io
import itertools
import pickle
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trackconvert
from tests.support import need
from trackconvert import FORMATS, ImageSize, Keyframe, Tracker, TrackFileError
from trackconvert.__main__ import main
from trackconvert.names import Names

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "contrib" / "trackconvert"
OWN = {
    "3de": PACKAGE / "samples" / "orbit.3de.txt",
    "pftrack4": PACKAGE / "samples" / "pan.pftrack4.2dt",
    "pftrack5": PACKAGE / "samples" / "stereo.pftrack5.2dt",
    "shake": PACKAGE / "samples" / "handheld.shake.txt",
    "syntheyes": PACKAGE / "samples" / "flyover.syntheyes.txt",
    "nuke": PACKAGE / "samples" / "window.nuke.nk",
}
BROKEN = PACKAGE / "samples" / "broken.txt"

#: Written by the real programs; they are beside the checkout, not in it.
REAL_FOLDER = CHECKOUT.parent / "shared" / "samples" / "tracks"
REAL = {
    "3de_v4__3de_export_cube.txt": ("3de", 8, 701),
    "3de_v4__FB1880_man_v05.txt": ("3de", 27, 2320),
    "pftrack5__apft.2dt": ("pftrack5", 4, 142),
    "pftrack5__stereo.2dt": ("pftrack5", 1690, 15994),
    "shake_text__two_shake_trackers.txt": ("shake", 2, 72),
    "syntheyes_2d_paths__cola_plate.txt": ("syntheyes", 6, 507),
}
SIZE = ImageSize(1920, 1080)
SAMPLES = [*OWN.values(), *(REAL_FOLDER / name for name in REAL)]


def sample(path: Path) -> Path:
    need("samples", path.exists(), f"{path}: the real files are not beside the checkout")
    return path


def each_sample(test):
    return pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)(test)


each_format = pytest.mark.parametrize("target", sorted(FORMATS))


def parse(content: bytes | str, size: ImageSize = SIZE) -> list[Tracker]:
    content = content.encode() if isinstance(content, str) else content
    return list(trackconvert.parse(io.BytesIO(content), "some.txt", size))


def text_of(trackers: list[Tracker], target: str, size: ImageSize = SIZE) -> str:
    out = io.StringIO(newline="\n")
    FORMATS[target].write(out, trackers, size)
    return out.getvalue()


def frames_of(trackers: list[Tracker]) -> list[tuple[str, str, list[int]]]:
    return [(each.name, each.camera, [key.frame for key in each.keyframes]) for each in trackers]


def assert_same(found: list[Tracker], expected: list[Tracker], precision: float) -> None:
    """Names, cameras, frames and their order are equal; coordinates differ by `precision` pixels at most."""
    assert frames_of(found) == frames_of(expected)
    for one, other in zip(found, expected, strict=True):
        for key, original in zip(one.keyframes, other.keyframes, strict=True):
            allowed = precision + 1e-14 * max(abs(original.x), abs(original.y), SIZE.width)
            assert abs(key.x - original.x) <= allowed, (one.name, key, original)
            assert abs(key.y - original.y) <= allowed, (one.name, key, original)


def refused(content: bytes | str) -> TrackFileError:
    with pytest.raises(TrackFileError) as caught:
        parse(content)
    return caught.value


# ---------------------------------------------------------------- every format into every other


@each_format
@each_sample
def test_each_sample_survives_each_format_and_the_way_back(path, target, tmp_path):
    trackers = trackconvert.read(sample(path), SIZE)
    there, back = tmp_path / "there", tmp_path / "back"
    done = trackconvert.convert(path, target, there, SIZE)
    assert done == trackconvert.Conversion(
        there, done.source_format, target, len(trackers), sum(len(each.keyframes) for each in trackers)
    )
    precision = FORMATS[target].precision(SIZE)
    assert_same(trackconvert.read(there, SIZE), trackers, precision)
    assert trackconvert.convert(there, done.source_format, back, SIZE).source_format == target
    assert_same(
        trackconvert.read(back, SIZE), trackers, precision + FORMATS[done.source_format].precision(SIZE)
    )


@each_sample
def test_a_file_converted_to_its_own_format_says_the_same(path, tmp_path):
    name = trackconvert.convert(sample(path), "3de", tmp_path / "points").source_format
    trackconvert.convert(path, name, tmp_path / "again")
    if name == "nuke":  # reads more cells than it writes
        return
    words, again = (
        [line.split() for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
        for file in (path, tmp_path / "again")
    )
    assert again == words


@pytest.mark.parametrize(("name", "facts"), REAL.items())
def test_real_files_are_read_whole(name, facts, tmp_path):
    done = trackconvert.convert(sample(REAL_FOLDER / name), "nuke", tmp_path / "out.nk")
    assert (done.source_format, done.trackers, done.keyframes) == facts


@pytest.mark.parametrize(("name", "path"), OWN.items())
def test_the_format_is_found_in_the_content(name, path, tmp_path):
    copy = tmp_path / "no-hint.dat"
    copy.write_bytes(path.read_bytes())
    assert trackconvert.convert(copy, "3de", tmp_path / "out").source_format == name
    copy.write_bytes(
        b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
    )
    assert trackconvert.read(copy) == trackconvert.read(path)


def test_own_samples_are_small_and_show_what_matters():
    assert {path.name for path in (PACKAGE / "samples").iterdir()} == {
        path.name for path in [*OWN.values(), BROKEN]
    }
    assert all(path.stat().st_size <= 20_000 for path in (PACKAGE / "samples").iterdir())
    trackers = [tracker for path in OWN.values() for tracker in trackconvert.read(path)]
    assert any(not each.keyframes for each in trackers)
    assert any(each.camera == "Secondary" for each in trackers)
    assert any(b.frame - a.frame > 1 for each in trackers for a, b in itertools.pairwise(each.keyframes))


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("3de", "1 0.500000000000000 0.500000000000000"),
        ("pftrack4", "0 0.000 0.000 0.000"),
        ("pftrack5", "0 0.000 0.000 0.000"),
        ("shake", "    1.00         0.500         0.500         1.000 "),
        ("syntheyes", "p 0 -1.000000 1.000000 15"),
        ("nuke", "{curve x1 0.5}"),
    ],
)
def test_the_lower_left_pixel_of_the_first_frame_is_where_each_format_has_it(target, line):
    text = text_of([Tracker("p", [Keyframe(1, 0.5, 0.5)])], target)
    assert line in text.splitlines() or (target == "nuke" and line in text)
    assert parse(text)[0].keyframes[0].frame == 1


def test_syntheyes_coordinates_follow_the_image_size():
    text = "p 0 0.0 0.0 15\np 1 1.0 -1.0 7\n"
    for size in (ImageSize(2048, 1556), ImageSize(720, 576)):
        middle, corner = parse(text, size)[0].keyframes
        assert (middle.x, middle.y) == (size.width / 2, size.height / 2)
        assert (corner.x, corner.y) == (size.width - 0.5, size.height - 0.5)
    with pytest.raises(ValueError, match="expected an image size"):
        ImageSize(1, 1080)


def test_syntheyes_starts_anew_after_a_gap_and_may_lack_outcome_codes():
    text = text_of([Tracker("p", [Keyframe(frame, 5, 5) for frame in (1, 2, 3, 7, 8)])], "syntheyes")
    assert [line.split()[-1] for line in text.splitlines()] == ["15", "7", "7", "15", "7"]
    assert len(parse("p 0 0.5 0.5\np 1 0.5 0.5\n")[0].keyframes) == 2
    assert [key.frame for key in parse("p 0 0.5 0.5 7\np 1 0.5 0.5 2\np 2 0.5 0.5 7\n")[0].keyframes] == [
        1,
        3,
    ]


def test_nuke_curves_step_by_their_last_distance():
    row = "{ 1 a {curve i x1 196 326 440 x6 s95 554 658 752} {curve x1 1 2 3 x6 4 5 6} }"
    node = "Tracker4 {\n tracks { { 1 31 1 } { { 5 1 20 enable } { 3 1 75 name } { 2 1 58 track_x } { 2 1 58 track_y } } { %s } }\n}\n"
    assert [key.frame for key in parse(node % row)[0].keyframes] == [1, 2, 3, 6, 9, 12]
    assert refused(node % row.replace("x6 4", "x7 4")).reason == "x and y have keys at different frames"


NAMES = [
    "a b",
    'say "hi"',
    "naïve 跟踪 🎥",
    "100%",
    "%41",
    "50%25",
    "a@b",
    "@",
    "x@Primary",
    "p#2",
    "p",
    "{[$x]}",
    "b\\",
    " lead",
    "tab\tin",
    "line\nend",
    "\u2028",
    "x\u00a0",
    "#c",
    "5",
    "5 6 7",
    "-",
    "TrackName",
    "nan",
]


def difficult() -> list[Tracker]:
    """Return names, cameras, frames and orders that one format or another has no place for."""
    keys = [
        Keyframe(frame, 960 + frame / 7, -540.25 - frame / 3)
        for frame in (9, 1, 1, 2, 3, 3, -4, 0, 8, 10, 12)
    ]
    trackers = [Tracker(name, keys[: number % 5]) for number, name in enumerate(NAMES)]
    trackers += [Tracker("twice", keys), Tracker("twice", keys[:2]), Tracker("between"), Tracker("twice", [])]
    trackers += [
        Tracker(name, keys[:1], camera)
        for name in ("s", 's "q"')
        for camera in ("Primary", "Second eye", "a@b")
    ]
    trackers += [Tracker("far", [Keyframe(10_000_000, 9e8, -9e8)]), Tracker("last")]
    return trackers


@each_format
def test_difficult_names_frames_and_cameras_survive_each_format(target):
    trackers = difficult()
    text = text_of(trackers, target)
    again = parse(text)
    assert frames_of(again) == frames_of(trackers)
    assert_same(again[:-2], trackers[:-2], FORMATS[target].precision(SIZE))
    assert text_of(again, target) == text, "the second time changes nothing"


@each_format
def test_a_name_never_hides_the_format(target):
    for name in [*NAMES, '"hi"', '"hi', "TrackName 1 2 3", "version", "version 9.0", "Root {", "1 2 3 4"]:
        trackers = [Tracker(name, [Keyframe(7, 1.5, 2.5)]), Tracker("b", [Keyframe(7, 1.5, 2.5)])]
        assert frames_of(parse(text_of(trackers, target))) == frames_of(trackers)
        assert frames_of(parse(text_of([Tracker(name)], target))) == [(name, "Primary", [])]


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("3de", {"color": 2}),
        ("pftrack4", {"residual": 0.25}),
        ("pftrack5", {"residual": 0.25}),
        ("shake", {"correlation": 0.75}),
        ("syntheyes", {"status": 23}),
    ],
)
def test_what_only_one_format_knows_is_kept_there(target, kept):
    tracker = Tracker("p", [Keyframe(1, 10.5, 20.5, 0.25, 0.75, 23)], color=2)
    (again,) = parse(text_of([tracker], target))
    for name, value in kept.items():
        assert getattr(again if name == "color" else again.keyframes[0], name) == value


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from(["(?!)", '"', r"\s|#", r'["\\\[\]{}$]']))
@settings(max_examples=300, deadline=None)
def test_any_name_and_camera_can_be_joined_and_split(name, camera, unsafe):
    names = Names(unsafe)
    assert names.split(names.join(name, camera)) == (name, camera)
    assert names.decode(names.encode(name)) == name
    assert not re.search(rf"[\x00-\x1f]|^\s|\s\Z|{unsafe}", names.join(name, camera))


# ---------------------------------------------------------------- refusals

SHAKE = "TrackName a\n   Frame             X             Y   Correlation\n"


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, "the file is empty"),
        (" \n\t\n\r\n", 1, "the file is empty"),
        ("Dear diary,\ntoday\n", 1, "not a file of tracks that is known here"),
        (b"\x7fELF\x02\x01\x01\x00\x00", 1, "not a file of tracks that is known here"),
        ("a\n".encode("utf-16"), 1, "not a file of tracks that is known here"),
        ("3\na\n0\n0\n\n\n\n\n\n\n\n\n\n\n\n", 15, "cut short: the file ends where a point's name"),
        ("0\n", 1, "no trackers"),
        ("-1\na\n0\n0\n", 1, "expected the number of points, got '-1'"),
        ("900000000\na\n0\n0\n", 1, "more than the rest of the file can hold"),
        ("9" * 5000 + "\na\n0\n0\n", 1, "expected the number of points"),
        ("1\na\n0\n99999\n1 2 3\n", 4, "the number of keyframes is 99999, more than"),
        ("1\na\n0\n2\n1 2.5 3.5\n", 5, 'cut short: the file ends where "frame x y"'),
        ("1\na\nred\n1\n1 2 3\n", 3, "expected a point's colour, got 'red'"),
        ("1\na\n0\n1\n1 2\n", 5, "expected \"frame x y\", got '1 2'"),
        ("1\na\n0\n1\n1.5 2 3\n", 5, "expected a whole frame number, got '1.5'"),
        ("1\na\n0\n1\n1 nan 3\n", 5, "expected x to be a number, got 'nan'"),
        ("1\na\n0\n1\n1 2 -inf\n", 5, "expected y to be a number, got '-inf'"),
        ("1\na\n0\n1\n1 1e308 3\n", 5, "x is 1e308, out of range"),
        ("1\na\n0\n1\n1 1_0 3\n", 5, "expected x to be a number, got '1_0'"),
        ("1\na\n0\n1\n1 ١ 3\n", 5, "expected x to be a number"),
        ("1\na\n0\n1\n99999999 2 3\n", 5, "frame 99999999 is out of range"),
        ("1\na\n0\n1\n1 2.250 3.2", 5, "cut short: the last number has fewer decimals"),
        ("1\na\n0\n1\n1 2 3\nand more\n", 6, "expected the end of the file"),
        ("1\na\x00b\n0\n0\n", 2, "not a text file: control character 0x00 at 2"),
        (b"1\n\xfcber\n0\n0\n", 2, "not UTF-8 text: byte 0xfc at 1"),
        ('"a"\n', 1, "cut short: the file ends where the number of frames"),
        ('"a"\n-3\n', 2, "expected the number of frames, got '-3'"),
        ('"a"\n1\n0 1.0 2.0 0.0', 3, "cut short: the last line has no line end"),
        ('""\n0\n', 1, "expected a tracker's name in quotes"),
        ('"a"\n"Primary"\n"Secondary"\n', 3, "expected the number of frames"),
        ('"a"\n"Primary"\n0\nSecondary\n', 4, "expected a camera's name in quotes"),
        (SHAKE + "1.00 2.0 3.0 1.0\n", 3, "cut short: no blank line"),
        (SHAKE + "1.00 2.0 3.0\n\n", 3, 'expected "frame x y correlation"'),
        ("TrackName a\n1.00 2.0 3.0 1.0\n\n", 2, 'expected "Frame X Y Correlation"'),
        ("a 0 0.1 0.2 7\na 1 0.1\n", 2, 'expected "name frame u v outcome"'),
        ("a 0 0.1 0.2 7\na 1 0.1 0.2 seven\n", 2, "expected the outcome code"),
        ("a 0 900000000 0.2 7\n", 1, "u is 8.6355e+11 pixels, out of range"),
        ("version 9.0 v1\nRoot {\n}\n", 3, "no trackers"),
        ("version 9.0 v1\nTracker4 {\n name a\n", 3, "cut short: the file ends within braces"),
        ("version 9.0 v1\n}\n", 2, "a closing brace without its opening one"),
        ("Tracker4 {\n tracks " + "{ " * 50, 2, "braces nested more than 20 deep"),
    ],
)
def test_what_is_no_file_of_tracks_is_refused_with_line_and_reason(content, line, reason):
    error = refused(content)
    assert reason in error.reason
    assert error.line == line
    assert str(error) == f"some.txt:{line}: {error.reason}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_broken_sample_is_refused():
    with pytest.raises(TrackFileError, match=r"broken\.txt:9: expected y to be a number, got '-nan'"):
        trackconvert.read(BROKEN)


@each_sample
def test_a_file_cut_anywhere_is_refused_or_a_whole_beginning(path):
    """What a cut file yields, if anything, is the beginning of what the whole file yields."""
    content = sample(path).read_bytes()
    whole = trackconvert.read(path)
    chance = random.Random(path.name)
    small = len(content) < 30_000
    cuts = {*range(12), *(len(content) - n for n in range(1, 12 if small else 4))}
    for cut in cuts.union(chance.sample(range(len(content)), 60 if small else 5)):
        try:
            trackers = parse(content[:cut])
        except TrackFileError:
            continue
        if "3de" in path.name or "nuke" in path.name:
            assert content[cut:].strip() == b"", "their counts and braces tell"
        last = trackers[-1]
        assert trackers[:-1] == whole[: len(trackers) - 1]
        assert last == replace(whole[len(trackers) - 1], keyframes=last.keyframes)
        if "syntheyes" in path.name:
            assert last.keyframes == whole[len(trackers) - 1].keyframes[: len(last.keyframes)]
        else:
            assert last.keyframes == whole[len(trackers) - 1].keyframes


JUNK = [
    b"nan",
    b"-inf",
    b"-1",
    b"999999999",
    b"9" * 5000,
    b"1e999",
    b'"',
    b"{",
    b"}",
    b"\0",
    b"\xff",
    b"\n",
    b"\r",
    b" ",
    b"%",
    b"@",
    b"x",
    b"curve",
    b"\xe2\x80\xa8",
    b"",
]


@given(
    st.sampled_from(sorted(OWN)),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 9), st.sampled_from(JUNK) | st.binary(max_size=6)),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=150, deadline=None)
def test_a_changed_file_is_read_or_refused_and_raises_nothing_else(name, changes):
    content = OWN[name].read_bytes()
    for where, length, junk in changes:
        start = int(where * len(content))
        content = content[:start] + junk + content[start + length :]
    try:
        trackers = parse(content)
    except TrackFileError:
        return
    for target in FORMATS:
        assert frames_of(parse(text_of(trackers, target))) == frames_of(trackers)


# ---------------------------------------------------------------- conversions as a whole


def test_progress_goes_up_tracker_by_tracker(tmp_path):
    said: list[tuple[float, str]] = []
    trackconvert.convert(OWN["shake"], "nuke", tmp_path / "out.nk", progress=lambda *args: said.append(args))
    assert [message for _, message in said] == [f"corner {n}: 40 keyframes" for n in range(1, 6)]
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(set(fractions))
    assert 0.15 < fractions[0] < 0.25
    assert fractions[-1] == 1.0


def test_an_output_appears_whole_or_not_at_all(tmp_path):
    output = tmp_path / "out.txt"
    output.write_text("of yesterday")
    cut = tmp_path / "cut.2dt"
    cut.write_bytes(OWN["pftrack4"].read_bytes()[:-30])
    for source in (BROKEN, cut):
        with pytest.raises(TrackFileError):
            trackconvert.convert(source, "syntheyes", output)
    with pytest.raises(ValueError, match=r"expected one of the formats 3de, nuke, .* got 'maya'"):
        trackconvert.convert(OWN["3de"], "maya", output)
    assert output.read_text() == "of yesterday"
    trackconvert.convert(OWN["3de"], "3de", output)
    assert output.read_text().split() == OWN["3de"].read_text().split()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.2dt", "out.txt"]


def test_the_command_line(tmp_path, capsys):
    output = tmp_path / "out.nk"
    assert main([str(OWN["3de"]), "nuke", str(output), "--width", "2048"]) == 0
    assert capsys.readouterr().out == f"{output}: 7 trackers, 239 keyframes, from 3de\n"
    for arguments, complaint in [
        ([str(BROKEN), "nuke", str(output)], "broken.txt:9: expected y"),
        ([str(tmp_path / "none"), "nuke", str(output)], "No such file"),
        ([str(OWN["3de"]), "maya", str(output)], "invalid choice"),
        ([str(OWN["3de"]), "nuke", str(output), "--width", "0"], "expected an image size"),
        ([str(OWN["3de"]), "nuke", str(tmp_path / "no" / "folder")], "No such file"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert complaint in message
        assert message.count("\n") == 1


def test_it_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "trackconvert", str(OWN["nuke"]), "shake", str(tmp_path / "out.txt")]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("5 trackers, 185 keyframes, from nuke\n")


def test_the_job_converts_and_returns_what_it_did(tmp_path):
    from forkrunner import InputFile
    from trackconvert import jobs

    done = jobs.convert(InputFile.from_path(OWN["syntheyes"]), "pftrack5", width=2048, height=1556)
    made = done.pop("output")
    assert (
        made.display_name
        == f"{OWN['syntheyes'].name.removesuffix('.txt').removesuffix('.syntheyes')}.pftrack5.2dt"
    )
    assert done == {
        "source_format": "syntheyes",
        "format": "pftrack5",
        "trackers": 6,
        "keyframes": 338,
    }
    output = tmp_path / "out.2dt"
    with made.open_content() as content:
        output.write_bytes(content.read())
    assert len(trackconvert.read(output)) == 6


def test_only_the_job_and_the_site_import_anything_but_the_standard_library():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "web":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                allowed = top in sys.stdlib_module_names or top == "trackconvert"
                assert allowed or (top == "forkrunner" and path.name == "jobs.py"), (path, name)
