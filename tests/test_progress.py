"""What a job says of itself: which values count, when it is sent, from which process, and how loops and steps add up.

Each source runs in a process of its own that believes to be a job, and writes to a real place: files, or memcached.
"""

from __future__ import annotations

import _socket
import json
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkrunner.places import ProgressFiles, Reader, sink
from tests.servers import Memcached, free_port
from tests.support import wait_until

JOB = "0198c5d0-0000-7000-8000-000000000001"
PRELUDE = """
import json, os, sys, time
from forkrunner import progress
from forkrunner.common import SIZE
from forkrunner.current import current
from forkrunner.memory import shared_memory
module = sys.modules["forkrunner.progress"]
from forkrunner.places import Reader
from forkrunner.progress import follow, step, tqdm, track, trange
place = json.loads(sys.argv[1])
current.place = place
current.job = {"id": place["job"], "task": "t", "queue": "q", "attempt": 1, "started_at": "2026-01-31T10:00:00+00:00"}
# as in a child of a mold
current.mold, current.commons, current.job["common"] = os.getppid(), shared_memory(SIZE).cast("d"), 0
reader = Reader(place)

def arrive():
    # wait until all that was said is where it is read
    sender = module._sender
    while sender.waiting is not None or sender.sending.locked():
        module.end()  # it does not wait for ever, which on a busy machine may be too short
    if place["url"] and (link := sender.sink.servers[0].link):
        # what was sent without an answer has been done when this is answered
        link.settimeout(5)
        link.sendall(b"mn\\r\\n")
        assert link.recv(4) == b"MN\\r\\n"
        link.setblocking(False)

def look():
    arrive()
    end = time.monotonic() + 30
    while (entry := reader.get(place["job"])) is None and time.monotonic() < end:
        time.sleep(0.01)  # the reader's patience with a busy machine is short
    return entry

def show(*names):
    entry = look()
    found = [entry[name] for name in names or ("fraction", "message")]
    print(json.dumps(found if len(found) > 1 else found[0]))
"""


class Runs:
    """Runs sources as a job whose progress goes to one place."""

    def __init__(self, folder: Path, url: str | None = None, rate: float = 20.0) -> None:
        folder.mkdir(exist_ok=True)
        self.place: dict[str, Any] = {
            "job": JOB, "url": url, "prefix": "test", "rate": rate, "folder": str(folder)
        }  # fmt: skip
        self.reader = Reader(self.place)

    def command(self, source: str) -> list[str]:
        # where a job's waits are used up a fork may meet the thread that sends, of which Python 3.12 warns
        warnings = ["-W", "ignore:This process:DeprecationWarning"]
        return [sys.executable, *warnings, "-c", PRELUDE + textwrap.dedent(source), json.dumps(self.place)]

    def __call__(self, source: str) -> list[Any]:
        """Return what the source printed, each line as JSON."""
        done = subprocess.run(self.command(source), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    def read(self) -> dict[str, Any] | None:
        return self.reader.get(JOB)


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "progress")


@pytest.fixture
def cached(tmp_path: Path, memcached: Memcached) -> Iterator[Runs]:
    """The same, where progress goes to memcached."""
    runs = Runs(tmp_path / "progress", memcached.url)
    runs.reader.drop(JOB)
    yield runs
    runs.reader.drop(JOB)
    runs.reader.close()


@pytest.fixture(params=["run", pytest.param("cached", marks=pytest.mark.memcached)])
def anywhere(request: pytest.FixtureRequest) -> Runs:
    runs: Runs = request.getfixturevalue(request.param)
    return runs


# ------------------------------------------------------------------------------- values


def test_values_that_make_no_sense_are_no_error_and_the_bar_never_goes_back(run):
    shown = run(
        """
        class Broken:
            def __float__(self): raise RuntimeError("no")
            def __str__(self): raise RuntimeError("no")
        for value in (None, float("nan"), -1, 0.25, 0.1, None, float("nan"), "0.5", "half", Broken(), [], 10**400, 7):
            progress(value, "x")
            show("fraction")
        """
    )
    assert shown == [None, None, 0.0, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0]


def test_messages_and_details_of_any_kind_are_no_error(run):
    shown = run(
        """
        class Broken:
            def __str__(self): raise RuntimeError("no")
            __repr__ = __str__
        progress(0.5, "é" * 600)
        print(len(look()["message"]))
        progress(0.5, 42, frame=3, name="a\\ud800b")
        show("message", "detail")
        progress(0.5, "x" , when=__import__("datetime").date(2026, 1, 31))
        show("message", "detail")
        loop = []; loop.append(loop)
        for bad in (float("nan"), float("inf"), loop, "x" * 20000, Broken(), {(1, 2): 3}):
            progress(0.5, "still here", bad=bad)
            show("message", "detail")
        progress(0.75, Broken())
        show("fraction", "message")
        """
    )
    assert shown == [
        500,
        ["42", {"frame": 3, "name": "a\ud800b"}],
        ["x", {"when": "2026-01-31"}],
        *[["still here", {}]] * 6,
        [0.75, None],
    ]


def test_fraction_and_message_may_be_given_by_name(run):
    shown = run(
        """
        for words in (
            {"fraction": 0.25, "message": "Frame 1", "frame": 1},
            {"message": "no further"},
            {"fraction": 0.5},
            {},
        ):
            progress(**words)
            show("fraction", "message", "detail")
        progress(0.75, message="Frame 3")
        show("fraction", "message", "detail")
        """
    )
    assert shown == [
        [0.25, "Frame 1", {"frame": 1}],
        [0.25, "no further", {}],
        [0.5, None, {}],
        [0.5, None, {}],
        [0.75, "Frame 3", {}],
    ]


def test_outside_of_a_job_nothing_happens(run):
    assert run(
        """
        current.job = None
        progress(0.5, "x")
        module.end()
        with step("a", weight=0.5) as a, step("b", parts=2) as b, b.part(1):
            print(json.dumps([sum(track([1, 2])), sum(tqdm([3])), list(follow(["1%"]))]))
        print(json.dumps(os.listdir(place["folder"])))
        """
    ) == [[3, 3, ["1%"]], []]


# ---------------------------------------------------------------------------------- when


def test_the_last_state_follows_without_another_word(anywhere):
    """Held back because another was sent just before, and then the job is busy with something long."""
    process = subprocess.Popen(
        anywhere.command(
            "progress(0.1, 'first'); progress(0.2, 'second'); print('said', flush=True); time.sleep(60)"
        ),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: (anywhere.read() or {}).get("message") == "second", message="the second word")
        assert anywhere.read()["fraction"] == 0.2
    finally:
        process.kill()
        process.communicate()


def test_the_last_state_is_there_at_the_end(anywhere):
    (fraction,) = anywhere("for n in range(1001): progress(n / 1000)\nshow('fraction')")
    assert fraction == 1.0


def test_a_word_is_sent_before_a_call_that_lets_no_thread_run(anywhere):
    """Comparing integers in C holds the interpreter for as long as it takes."""
    source = """
    data = [(n * 7919) % 1_000_003 for n in range(1_000_000)]
    progress(0.1)
    time.sleep(0.1)  # the time between two words, so that the next is due at once
    before = progress(0.5, "Sorting") or time.monotonic()
    data.sort()
    print(json.dumps([reader.get(place["job"])["message"]]))
    """
    assert anywhere(source) == [["Sorting"]]


def test_it_says_since_when_and_how_long_to_go(run):
    (entry,) = run(
        """
        for n in range(8):
            progress(n / 10, frame=n)
            time.sleep(0.1)  # what is told is how much time it takes
        print(json.dumps(look()))
        """
    )
    assert (entry["attempt"], entry["started_at"]) == (1, "2026-01-31T10:00:00+00:00")
    assert entry["detail"] == {"frame": 7}
    assert entry["updated_at"] > 1_700_000_000
    assert 0.2 < entry["eta_seconds"] < 10


@pytest.mark.memcached
def test_sent_at_most_at_its_rate(cached, memcached):
    before = memcached.stats()["cmd_set"]
    (calls,) = cached(
        """
        end = time.monotonic() + 2
        calls = 0
        while time.monotonic() < end:
            progress(calls / 1e9, f"call {calls}")
            calls += 1
        print(calls)
        arrive()
        """
    )
    sets = memcached.stats()["cmd_set"] - before
    assert calls > 10_000
    # at most: with the first and the last; at least: what a busy machine lets through
    assert 5 <= sets <= 2 * 20 + 2
    # a moment later: nobody waits for an answer of the server
    wait_until(lambda: (cached.read() or {}).get("message") == f"call {calls - 1}", message="the last one")


@pytest.mark.timing
def test_a_word_that_is_not_sent_costs_less_than_5_microseconds(anywhere):
    plain, loop, bar = anywhere(
        """
        def per_call(work, n=50_000):
            best = 1.0
            for _ in range(5):
                start = time.process_time()
                work(n)
                best = min(best, (time.process_time() - start) / n)
            return best
        def plain(n):
            for i in range(n): progress(i / n, "Frame")
        def loop(n):
            for i in track(range(n), "Frames"): pass
        def bar(n):
            for i in trange(n): pass
        progress(0)
        for work in (plain, loop, bar): print(per_call(work))
        """
    )
    assert max(plain, loop, bar) < 5e-6


# ------------------------------------------------------------------------ steps and loops


def test_steps_add_up_to_one_bar(run):
    assert run(
        """
        with step("Reading", weight=0.2):
            show()
            progress(0.5, "line 3"); show()
        show()
        with step("Writing"):
            with step("Header", weight=0.25): progress(1)
            show()
            with step("Body", weight=7):
                progress(0.5); show()
            show()
        show()
        """
    ) == [
        [0.0, "Reading"],
        [0.1, "Reading: line 3"],
        [0.2, "Reading"],
        [0.4, "Header"],
        [0.7, "Body"],
        [1.0, "Body"],
        [1.0, "Writing"],
    ]


def test_a_step_that_raises_leaves_the_bar_where_it_is(run):
    assert run(
        """
        try:
            with step("Reading", weight=0.5):
                progress(0.5)
                raise ValueError
        except ValueError:
            show("fraction")
        with step("Again", weight=0.5): progress(0.75); show("fraction")
        """
    ) == [0.25, 0.375]


def test_a_loop_counts_its_items_and_what_is_said_inside_is_about_one(run):
    shown = run(
        """
        for n in track(["a", "b", "c", "d"], "Files"):
            if n == "c":
                progress(0.5, "half of it"); show("fraction", "message", "detail")
        show("fraction", "detail")
        """
    )
    assert shown[0][0] == 0.625
    assert shown[0][1].startswith("Files 2 of 4 (")
    assert shown[0][1].endswith("/s): half of it")
    assert shown[1][0] == 1.0
    assert (shown[1][1]["done"], shown[1][1]["total"]) == (4, 4)
    assert shown[1][1]["rate"] > 1


def test_loops_nest_in_loops_and_in_steps(run):
    assert run(
        """
        with step("All", weight=0.5):
            for n in track(range(2)):
                for m in tqdm(range(4), desc="inner"):
                    if (n, m) == (1, 2): show("fraction")
        show("fraction")
        """
    ) == [0.375, 0.5]


def test_a_loop_that_is_left_early_gives_the_bar_back(run):
    assert run(
        """
        with step("a", weight=0.5):
            for n in track(range(4)):
                if n == 2: break
            progress(0.75); show("fraction")
        """
    ) == [0.375]


def test_of_unknown_length_the_message_counts_and_the_bar_stays(run):
    shown = run(
        """
        progress(None, "before"); show()
        for n in track((n for n in range(5)), "Lines"): pass
        show("fraction", "message", "detail")
        """
    )
    assert shown[0] == [None, "before"]
    assert shown[1][0] is None
    assert shown[1][1].startswith("Lines 5 (")
    assert (shown[1][2]["done"], shown[1][2]["total"]) == (5, None)
    (known,) = run("for n in track((n for n in range(5)), total=10): pass\nshow('fraction')")
    assert known == 0.5


def test_large_counts_are_written_as_people_read_them(run):
    (whole, unknown) = run(
        """
        bytes = tqdm(total=3_000_000, desc="Bytes")
        bytes.update(1_234_567); show("message"); bytes.close()
        numbers = tqdm(desc="Numbers", initial=0.25)
        numbers.update(1_234_567_890); show("message")
        """
    )
    assert re.fullmatch(r"Bytes 1,234,567 of 3,000,000 \([\d,]+/s\)", whole)
    assert re.fullmatch(r"Numbers 1,234,567,890 \([\d,]+/s\)", unknown)


def test_weights_totals_and_parts_of_the_wrong_type_are_no_error_in_a_job_either(run):
    source = """
        for weight in ("0.25", "half", float("nan"), [], None):
            with step("a", weight=weight): progress(0.5); show("fraction")
            module._sender and module._sender.restart()
            if module._sender: module._sender.used = 0.0
        for total in ("4", "many", float("nan"), float("inf"), -1, [], 10**400):
            for n in track(range(2), "Items", total=total): pass
            show("fraction")
            with tqdm(range(2), total=total) as bar:
                for n in bar: pass
        with step("Render", parts="2") as render:
            with render.part(1): progress(1)
            show("fraction")
        class Odd:
            def __len__(self): raise NotImplementedError
            def __iter__(self): return iter("ab")
        print(json.dumps(list(track(Odd()))))
        """
    # what is no number is as what is not there: after such a weight the whole, of such a total no share of the bar
    assert run(source) == [0.125, *[0.5] * 4, 0.5, *[None] * 6, 0.5, ["a", "b"]]
    nothing = "current.job = None; show = lambda name: None; look = lambda: {}\n"
    assert run(nothing + textwrap.dedent(source)) == [["a", "b"]]


def test_the_next_loop_begins_the_bar_anew(run):
    assert run(
        """
        for n in track(range(4), "first"): pass
        show("fraction")
        for n in track(range(4), "second"):
            if n == 1: show("fraction")
        """
    ) == [1.0, 0.25]


def test_tqdm_by_hand(run):
    shown = run(
        """
        with tqdm(total=200, desc="Download: ", unit="B", leave=False, ncols=80, mininterval=1) as bar:
            bar.update(50); show("fraction", "message")
            bar.set_postfix(loss=0.5, epoch=3)
            bar.update(); bar.n = 100; bar.refresh()
            show("fraction", "message")
            bar.set_description("Check"); bar.write('"a line"')
            print(json.dumps([len(bar), bar.n, bar.total, bar.desc, bool(bar), bar.format_dict["prefix"]]))
            bar.reset(total=400)
            bar.update(300); show("fraction")
        print(json.dumps([list(trange(3)), list(tqdm([1, 2], disable=True))]))
        """
    )
    assert shown[0][0] == 0.25
    assert shown[0][1].startswith("Download 50 of 200 B (")
    assert shown[1][0] == 0.5
    assert shown[1][1].startswith("Download loss=0.5, epoch=3 100 of 200 B (")
    assert shown[2] == "a line"
    assert shown[3] == [200, 100, 200, "Check", True, "Check"]
    assert shown[4] == 0.75
    assert shown[5] == [[0, 1, 2], [1, 2]]


def test_tqdm_has_what_loops_use_of_the_library(run):
    shown = run(
        """
        import asyncio, copy, decimal, io, pickle, threading
        say = lambda *values: print(json.dumps(values, default=str))
        tqdm.set_lock(threading.RLock())
        with tqdm.get_lock(): pass
        one = tqdm([1, 2, 3], "Items", None, True, sys.stderr, 80, 0.1, 10.0, None, None, False, "frame")
        say(list(reversed(one)), 2 in one, len(one), one.n)
        bar = tqdm(total=decimal.Decimal(4), position=1, leave=False, colour="red", nrows=2, unit="row", any_other=1)
        bar.update(decimal.Decimal(1)); show("fraction", "message")
        say(bar.leave, bar.pos, bar.desc, bar.disable, bar.unit, bar.postfix, bar.iterable, bar.initial, bar.miniters)
        say(bar.ncols, bar.fp, bar.start_t <= bar.last_print_t, bar.last_print_n, bar.dynamic_ncols, str(bar)[:6])
        bar.moveto(1); bar.display("x", pos=1); bar.clear(nolock=True); bar.unpause(); bar.refresh(nolock=True)
        bar.desc = "Rows"; bar.refresh(); show("message")
        bar.reset(); show("fraction"); bar.close()
        with tqdm.external_write_mode(): tqdm.write('["written"]')
        say(tqdm.format_sizeof(1_234_567, "B"), tqdm.format_interval(3723), tqdm.format_num(1234))
        with tqdm.wrapattr(io.BytesIO(b"x" * 4096), "read", total=8192, desc="Reading") as stream:
            say(len(stream.read(1024)), stream.tell()); show("fraction", "message")
            stream.note = 1
            say(len(stream.read()), stream.readable())
        show("fraction")
        with tqdm.wrapattr(io.BytesIO(), "write", total=100) as stream:
            say(stream.write(b"12345")); show("fraction")
        with tqdm(total=3_000_000, unit_scale=True, unit="B") as scaled:
            scaled.update(1_234_567); show("message")
        with tqdm(total=30, unit_scale=1000, unit="B") as scaled:
            scaled.update(15); show("message")
        class Later:
            def __aiter__(self): return self.each()
            async def each(self):
                for n in range(4): yield n
        async def work():
            return [n async for n in tqdm(Later(), total=8)], [n async for n in tqdm(range(2))]
        say(*asyncio.run(work()))
        off = tqdm(range(3), disable=True)
        off.update(); off.reset(5); off.set_postfix(a=1.23456)
        say(off.n, off.disable, off.postfix)
        """
    )
    assert shown[:4] == [
        [[3, 2, 1], True, 3, 3],
        [0.25, shown[1][1]],
        [False, -1, "", False, "row", None, None, 0, 0],
        [None, None, True, 0, False, "1 of 4"],
    ]
    assert shown[1][1].startswith("1 of 4 row (")
    assert shown[4].startswith("Rows 1 of 4 row (")
    assert shown[5:9] == [0.0, ["written"], ["1.23 MB", "1:02:03", "1,234"], [1024, 1024]]
    assert shown[9][0] == 0.125
    assert shown[9][1].startswith("Reading 1 kB of 8 kB (")
    assert shown[10:14] == [[3072, True], 0.5, [5], 0.05]
    assert re.fullmatch(r"1\.23 MB of 3 MB \([\d.]+ [MG]B/s\)", shown[14])
    assert shown[15].startswith("15 kB of 30 kB (")
    assert shown[16:] == [[[0, 1, 2, 3], [0, 1]], [0, True, "a=1.23"]]


# ------------------------------------------------------------------------------ processes


PROGRAM = r"""
import sys, time
for n in range(0, 101, 25):
    sys.stdout.write(f"\rencoding {n}%" if n else "starting\r\nencoding 0%")
    sys.stdout.flush()
print("\nfile 3/4 done")
"""


@pytest.mark.parametrize("how", ["", "text=True", "bufsize=0"])
def test_the_output_of_a_program_is_progress(run, how):
    shown = run(
        f"""
        import subprocess
        with step("Encoding", weight=0.5):
            with subprocess.Popen([sys.executable, "-c", {PROGRAM!r}], stdout=subprocess.PIPE, {how}) as program:
                for line in follow(program.stdout):
                    if line: print(json.dumps([line, look()["fraction"]]))
        """
    )
    assert shown == [
        ["starting", 0.0],
        ["encoding 0%", 0.0],
        ["encoding 25%", 0.125],
        ["encoding 50%", 0.25],
        ["encoding 75%", 0.375],
        ["encoding 100%", 0.5],
        ["file 3/4 done", 0.5],
    ]


def test_the_output_of_a_program_is_read_as_one_likes(run):
    assert run(
        r"""
        for line in follow(["frame= 10 of 40", "time 7"], r"frame= *(\d+) of (\d+)"): pass
        show("fraction")
        for line in follow([b"50 done\n"], r"(\d+) done"): pass
        show("fraction")
        for line in follow(["x"], lambda line: (0.75, f"read {line}")): show()
        for line in follow(["0/0", "99 bottles"]): show("fraction")
        for line in follow(["time N/A", "time", "time 90"], r"time(?: (\S+))?"): show("fraction")
        """
    ) == [0.25, 0.5, [0.75, "read x"], 0.75, 0.75, 0.75, 0.75, 0.9]


def test_what_only_looks_like_progress_in_the_output_of_a_program_is_none(run):
    """The bar never comes back from its end, so a wrong guess would be the last."""
    lines = [
        "2026/10/05 12:00:00 reading",
        "05/10/2026 reading",
        "ratio 16/9 detected",
        "Compressed 150% of original",
        "page 3/1",
        "1.5/3.5 MB",
        "reading /data/3/7/frame",
        "at 10/12:30",
    ]
    shown = run(f"progress(0)\nfor line in follow({lines}): show('fraction')\nshow('fraction')")
    assert shown == [0.0] * (len(lines) + 1)
    assert run(
        r"""
        for line in follow(["150% of 2/8 files", "[3/8]", "frame 5 of 8.", "6/8, 1.5 MB", "at 100 %"]): show("fraction")
        """
    ) == [0.25, 0.375, 0.625, 0.75, 1.0]


def test_parts_are_worked_on_side_by_side_in_forked_processes(anywhere):
    (entry, order) = anywhere(
        """
        with step("Render", weight=0.8, parts=4) as render:
            pids = []
            for number in range(4):
                pid = os.fork()
                if pid == 0:
                    with render.part(number):
                        for n in track(range(5), f"Part {number}"): pass
                        if number == 3:
                            progress(0.2)
                    module.end()
                    os._exit(0)
                pids.append(pid)
            for pid in pids: assert os.waitpid(pid, 0)[1] == 0
            print(json.dumps(reader.get(place["job"])))
        show("fraction")
        """
    )
    assert 0 < entry["fraction"] <= 0.8
    assert order == 0.8


def test_helpers_of_a_pool_say_it_of_the_job_and_share_its_rate(cached, memcached):
    before = memcached.stats()["cmd_set"]
    seconds, children = cached(
        """
        import multiprocessing, warnings
        warnings.simplefilter("error")  # a fork while a thread of ours runs is one, from 3.12 on
        def work(number):
            for n in range(500):
                progress((number * 500 + n) / 2000, f"worker {number}")
                time.sleep(0.001)
        progress(0, "starting"); progress(0, "held back")
        start = time.monotonic()
        with multiprocessing.get_context("fork").Pool(4) as pool:
            pool.map(work, range(4), chunksize=1)
            pool.close(); pool.join()
        print(time.monotonic() - start)
        progress(None, "joined")
        print(json.dumps(look()))
        reader.close()
        """
    )
    sets = memcached.stats()["cmd_set"] - before
    assert sets <= 20 * (seconds + 0.1) + 4 + 4 + 2  # each worker's last one, and now and then two at once
    assert children["fraction"] == 1999 / 2000


#: Notes what is sent, by whichever process, in a file: when, how far the bar is, and the message.
SPY = """
import fcntl, multiprocessing
from forkrunner import places
notes = os.open("NOTES", os.O_CREAT | os.O_RDWR | os.O_APPEND)
kind = places._Memcached if place["url"] else places.ProgressFiles
put = kind.put
def note(self, id, data):
    entry = json.loads(data)
    os.write(notes, (json.dumps([time.monotonic(), entry["fraction"], entry["message"]]) + "\\n").encode())
    return put(self, id, data)
kind.put = note
fork = multiprocessing.get_context("fork")
"""


class Spy:
    """Sees each word that is sent, and from where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, source: str) -> str:
        return SPY.replace("NOTES", str(self.path)) + textwrap.dedent(source)

    def words(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def spy(tmp_path: Path) -> Spy:
    return Spy(tmp_path / "notes")


def test_helpers_share_rate_and_bar_also_where_the_job_itself_says_nothing(anywhere, spy):
    anywhere(
        spy(
            """
            import warnings
            warnings.simplefilter("error")
            def work(number):
                for n in range(100):
                    progress((number * 100 + n) / 400, f"worker {number}")
                    time.sleep(0.01)
            with fork.Pool(4) as pool:  # which kills them at its end
                pool.map(work, range(4), chunksize=1)
            module.end()
            if module._sender: arrive()  # the end waits for 15 ms only
            """
        )
    )
    wait_until(lambda: (anywhere.read() or {}).get("fraction") == 399 / 400, message="the last word")
    words = spy.words()
    fractions = [fraction for _, fraction, _ in words]
    assert fractions == sorted(fractions)
    # with the first and the last, and the last of each of the four helpers ahead of its time
    assert 10 < len(words) <= 20 * (words[-1][0] - words[0][0]) + 2 + 4


@pytest.mark.timing  # 15 ms are not enough for it on every busy machine
@pytest.mark.parametrize("first", ["", "progress(0.1, 'by the job')"])
def test_the_last_word_of_a_helper_is_sent_when_it_ends(anywhere, first):
    assert anywhere(
        f"""
        {first}
        pid = os.fork()
        if pid == 0:
            progress(0.2)
            progress(0.4, "last", frame=3)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        end = time.monotonic() + 5
        while (entry := reader.get(place["job"])) is None or entry["message"] != "last":
            assert time.monotonic() < end, entry
            time.sleep(0.01)  # memcached has it, but nobody waited for its answer
        print(json.dumps([entry["fraction"], entry["detail"]]))
        """
    ) == [[0.4, {"frame": 3}]]


def test_the_bar_of_a_helper_that_is_killed_is_told_by_who_speaks_next(run):
    assert run(
        """
        for then in ("progress(None, 'by the job')", "module.end()"):
            pid = os.fork()
            if pid == 0:
                progress(0.2); progress(0.4 if "by" in then else 0.6)
                os.kill(os.getpid(), 9)
            os.waitpid(pid, 0)
            time.sleep(0.1)
            exec(then)
            show()
        """
    ) == [[0.4, "by the job"], [0.6, "by the job"]]


def test_many_short_helpers_keep_the_rate_together(cached, spy):
    cached(
        spy(
            """
            def work(number): progress(number / 40, f"worker {number}")
            for number in range(40):
                process = fork.Process(target=work, args=(number,)); process.start(); process.join()
            module.end()
            if module._sender: arrive()  # the end waits for 15 ms only
            """
        )
    )
    wait_until(lambda: (cached.read() or {}).get("fraction") == 39 / 40, message="the last word")
    words = spy.words()
    # with the first and the last, and two or three that are ahead of their time
    assert len(words) <= 20 * (words[-1][0] - words[0][0]) + 2 + 3


#: What is between the job and memcached, and what is done twenty times.
UNHEARD = {
    "unreachable": """
        import socket
        deaf, waiting = socket.socket(), [socket.socket() for _ in range(4)]
        deaf.bind(("127.0.0.1", 0)); deaf.listen(0)
        for each in waiting: each.setblocking(False); each.connect_ex(deaf.getsockname())
        place["url"] = f"memcached://127.0.0.1:{deaf.getsockname()[1]}"
    """,
    "a name server that is silent": """
        import _socket
        _socket.getaddrinfo = lambda *question: time.sleep(60)
        place["url"] = "memcached://somewhere.test:11211"
    """,
}


@pytest.mark.timing
@pytest.mark.parametrize("who", ["helpers", "the job before each fork"])
@pytest.mark.parametrize("trouble", list(UNHEARD))
def test_a_job_that_forks_waits_50_ms_at_most_with_all_that_it_forks(run, trouble, who):
    quiet, loud, end = run(
        textwrap.dedent(UNHEARD[trouble])
        + f"helpers = {who == 'helpers'}\n"
        + textwrap.dedent(
            """
            import forkrunner.sender  # what it takes to load that is not meant
            def twenty(say):
                start = time.monotonic()
                for number in range(20):
                    if not helpers: say(number)
                    pid = os.fork()
                    if pid == 0:
                        if helpers: say(number)
                        os._exit(0)
                    os.waitpid(pid, 0)
                return time.monotonic() - start
            twenty(str)
            for say in (str, lambda number: progress(number / 20, "x")): print(twenty(say))
            start = time.monotonic(); module.end(); print(time.monotonic() - start)
            sys.stdout.flush(); os._exit(0)
            """
        )
    )
    print(f"{trouble}, {who}: {quiet * 1000:.0f} ms, {loud * 1000:.0f} ms, {end * 1000:.0f} ms")
    assert loud - quiet + end < 0.05 + 0.1  # what twenty forks more or less take on a busy machine


def test_a_job_that_forks_hundreds_of_times_still_has_its_last_word_sent(anywhere):
    assert anywhere(
        """
        for number in range(300):
            progress(number / 1000, f"fork {number}")
            pid = os.fork()
            if pid == 0: os._exit(0)
            os.waitpid(pid, 0)
        spent = module._sender.numbers[2]
        module.end(); show()
        print(json.dumps(spent < 0.06))
        """
    ) == [[0.299, "fork 299"], True]


def test_a_job_that_closes_all_that_it_has_writes_nothing_into_what_it_opens_then(tmp_path, cached):
    (fraction, written) = cached(
        """
        # what goes over one connection may overtake, in memcached, what went over an earlier one
        progress(0.25); arrive()
        os.closerange(3, 100)
        files = [os.open(f"FOLDER/file{n}", os.O_CREAT | os.O_RDWR) for n in range(10)]
        progress(0.5)
        show("fraction")
        print(json.dumps([os.fstat(fd).st_size for fd in files]))
        """.replace("FOLDER", str(tmp_path))
    )
    assert fraction == 0.5
    assert written == [0] * 10


# --------------------------------------------------------------------------- where it goes


def test_files_are_whole_private_and_dropped(run):
    (modes,) = run(
        """
        progress(0.5); arrive()
        print(json.dumps({name: os.stat(place["folder"] + "/" + name).st_mode & 0o777 for name in os.listdir(place["folder"])}))
        """
    )
    assert modes == {JOB: 0o600}
    run.reader.drop(JOB)
    assert run.read() is None
    assert list(Path(run.place["folder"]).iterdir()) == []


def test_a_missing_folder_costs_the_bar_and_nothing_else(tmp_path):
    runs = Runs(tmp_path / "progress")
    runs.place["folder"] += "/missing"
    assert runs("progress(0.5); module.end(); print(json.dumps('fine'))") == ["fine"]


def test_a_folder_that_comes_later_gets_the_last_state(tmp_path):
    runs = Runs(tmp_path / "progress")
    runs.place["folder"] += "/later"
    assert runs(
        """
        progress(0.5, "said before"); module.end()
        os.mkdir(place["folder"])
        while not reader.get(place["job"]): time.sleep(0.01)
        print(json.dumps(reader.get(place["job"])["message"]))
        """
    ) == ["said before"]


def test_what_is_no_entry_is_none(run):
    path = Path(run.place["folder"], JOB)
    for text in ("", "{", "[]", "{}", '{"fraction": "x"}', '"\\ud800"', "\x00\xff"):
        path.write_text(text)
        assert run.read() is None
    path.write_text('{"fraction": null}')
    assert run.read() == {"fraction": None}


def test_keys_carry_a_prefix_and_expire(cached, memcached):
    cached("progress(0.5); arrive()")
    wait_until(cached.read, message="the entry")
    (line,) = [line for line in memcached.ask("lru_crawler metadump all").splitlines() if JOB in line]
    facts = dict(pair.split("=", 1) for pair in line.split())
    assert facts["key"] == f"test%3A{JOB}" or facts["key"] == f"test:{JOB}"
    assert 0 < int(facts["exp"]) - int(facts["la"]) <= 24 * 3600


def test_several_servers_share_the_keys_and_when_one_is_gone_the_next_is_used(tmp_path, memcached):
    with Memcached() as second:
        url = f"memcached://127.0.0.1:{memcached.port},127.0.0.1:{second.port}"
        jobs = [f"{JOB[:-2]}{n:02}" for n in range(40)]
        runs = Runs(tmp_path / "progress", url)

        def tell() -> None:
            place = sink(runs.place)
            for job in jobs:
                assert place.put(job, b'{"fraction": 0.5}')
            reader = Reader(runs.place)
            wait_until(lambda: len(reader.get_many(jobs)) == 40, message="all entries")
            reader.close()
            place.close()

        before = [server.stats()["cmd_set"] for server in (memcached, second)]
        tell()
        after = [server.stats()["cmd_set"] for server in (memcached, second)]
        shares = [now - then for now, then in zip(after, before, strict=True)]
        assert sum(shares) == 40
        assert min(shares) >= 8
        second.stop("kill")
        tell()
        reader = Reader(runs.place)
        for job in jobs:
            reader.drop(job)
        assert reader.get_many(jobs) == {}
        reader.close()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_servers_have_the_same_share_of_the_keys(count):
    """Names of one length, as those of most are, and ids that differ in their last digits only."""
    places = [f"10.0.0.{number}:11211" for number in range(count)]
    place = sink({"url": f"memcached://{','.join(places)}", "prefix": "forkrunner-0123456789abcdef"})
    assert not isinstance(place, ProgressFiles)
    firsts = [place._in_order(place._key(f"{JOB[:-4]}{number:04}"))[0].place for number in range(3000)]
    shares = [firsts.count(place) / 3000 * count for place in places]
    assert 0.85 < min(shares) <= max(shares) < 1.15


@pytest.mark.parametrize("first", ["127.0.0.2", "127.0.0.1"])
def test_of_a_name_with_two_addresses_that_one_is_used_where_somebody_listens(
    tmp_path, memcached, monkeypatch, first
):
    """As `localhost` is ::1 and 127.0.0.1 on most machines, and a memcached listens at the latter alone."""
    numeric = _socket.getaddrinfo

    def both(host: str, *options: Any) -> Any:
        hosts = [first, "127.0.0.1"] if host == "two.test" else [host]
        return [found for each in hosts for found in numeric(each, *options)]

    monkeypatch.setattr(_socket, "getaddrinfo", both)
    runs = Runs(tmp_path / "progress", f"memcached://two.test:{memcached.port}")
    writer, reader = sink(runs.place), Reader(runs.place)
    wait_until(lambda: writer.put(JOB, b'{"fraction": 0.5}'), message="a connection")
    wait_until(lambda: reader.get(JOB) == {"fraction": 0.5}, message="the entry")
    reader.close()
    writer.close()


@pytest.mark.memcached
@pytest.mark.parametrize("trouble", ["nobody at the port", "stopped", "unreachable"])
def test_a_reader_falls_back_in_little_time(tmp_path, memcached, trouble):
    url = memcached.url
    if trouble == "nobody at the port":
        url = f"memcached://127.0.0.1:{free_port()}"
    elif trouble == "unreachable":
        url = "memcached://192.0.2.1:11211"
    else:
        memcached.pause()
    reader = Reader(Runs(tmp_path / "progress", url).place)
    start = time.monotonic()
    for _ in range(20):
        assert reader.get(JOB) is None
    reader.drop(JOB)
    reader.close()
    assert time.monotonic() - start < 2
