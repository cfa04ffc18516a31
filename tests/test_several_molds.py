"""Several molds for several cores or applications, what `status` and `ps` show of them, and `--reload`."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import forkrunner
from forkrunner.job import Outcome, State
from tests.running import LONG, SOURCE, Bed
from tests.support import Cli, Process, wait_until
from tests.test_reload import returned, source

SHOP = """
from jobs import begin, note
from forkrunner import Runner
runner = Runner()

@runner.task
def sell() -> str:
    begin()
    note("end")
    return "sold"
"""


@pytest.fixture
def application() -> str:
    return source("old")


def parents(supervisor: Process) -> list[int]:
    """Return by which molds the jobs were forked that run now."""
    return [found.ppid for found in supervisor.ps() if re.search("forkrunner: job", found.title)]


# ---------------------------------------------------------------------------- several molds


def test_jobs_are_shared_by_several_molds(bed: Bed) -> None:
    supervisor = bed.start(slots=6, molds=3, spares=1)
    molds = supervisor.wait_ps(r"forkrunner: mold jobs:runner gen \d$", LONG, count=3)
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=6)
    bed.wait_noted("start", count=6)
    assert sorted(parents(supervisor)) == sorted(molds * 2)
    os.kill(molds[0], signal.SIGKILL)
    bed.wait_noted("start", attempt=2, count=2)
    bed.let_go()
    outcomes = [tuple(attempt.outcome for attempt in bed.ended(id).attempts) for id in ids]
    assert sorted(outcomes) == [(Outcome.DONE,)] * 4 + [(Outcome.LOST, Outcome.DONE)] * 2
    bed.check_history(ids)
    bed.stop(supervisor)


def test_hup_with_several_molds(bed: Bed) -> None:
    """One after the other: never are all of them importing, and in the end all have the new code."""
    supervisor = bed.start(slots=4, molds=2)
    bed.cli.write(source("new"))
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("mold 4 is up", LONG)
    supervisor.wait_log("mold 1 has finished", LONG)
    supervisor.wait_log("mold 2 has finished", LONG)
    assert {returned(bed, id) for id in bed.enqueue("which", count=8)} == {"new"}
    bed.cli.write("def :")
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("SyntaxError.*; mold . goes on", LONG)
    assert {returned(bed, id) for id in bed.enqueue("which", count=4)} == {"new"}
    assert len(re.findall("does not import", supervisor.log)) == 1, "the second one would fail alike"
    bed.stop(supervisor)


def test_usr2_with_several_molds_asked_for_in_the_code(cli: Cli, sqlite_database: str) -> None:
    text = source("old").replace("runner = Runner()", "runner = Runner(molds=2)")
    with Bed(cli, sqlite_database, source=text) as bed:
        supervisor = bed.start(slots=4)
        molds = supervisor.wait_ps("forkrunner: mold", LONG, count=2)
        supervisor.signal(signal.SIGUSR2)
        supervisor.wait_log("has taken over .* 2 molds", LONG)
        ids = bed.enqueue("hold", {"path": bed.path("go")}, count=4)
        bed.wait_noted("start", count=4)
        assert sorted(parents(supervisor)) == sorted(molds * 2)
        bed.let_go()
        bed.wait_counts(done=4)
        bed.check_history(ids)
        bed.stop(supervisor)


def test_molds_of_several_applications(bed: Bed) -> None:
    """Each job goes to one that knows its task; while that is missing it waits, and is refused by nobody."""
    (bed.folder / "shop.py").write_text(SHOP)
    supervisor = bed.start(slots=4, molds="1,shop:runner=2")
    supervisor.wait_ps("forkrunner: mold jobs:runner gen 1$", LONG)
    molds = supervisor.wait_ps("forkrunner: mold shop:runner gen [23]$", LONG, count=2)
    assert returned(bed, bed.put("sell")) == "sold"
    assert returned(bed, bed.put("which")) == "old"
    for pid in molds:
        os.kill(pid, signal.SIGKILL)
    assert [returned(bed, id) for id in bed.enqueue("sell", count=5)] == ["sold"] * 5
    row = bed.ended(bed.put("nothing_of_that_name"))
    assert (row.state, row.error and "no task 'nothing_of_that_name'" in row.error) == (State.FAILED, True)
    bed.stop(supervisor)


def test_an_application_that_does_not_come_up_again(bed: Bed) -> None:
    """Its jobs wait, and are not asked for in a loop; those of the other go on, and it all ends with the mended code."""
    (bed.folder / "shop.py").write_text(SHOP)
    supervisor = bed.start(slots=4, molds="1,shop:runner")
    (mold,) = supervisor.wait_ps("forkrunner: mold shop:runner", LONG)
    (bed.folder / "shop.py").write_text("def :")
    os.kill(mold, signal.SIGKILL)
    supervisor.wait_log("SyntaxError", LONG)
    sell = bed.put("sell")
    given_back = r"^(\S+ \S+) .* could not be started here were given back"
    # by the seconds that the lines carry
    wait_until(lambda: len(set(re.findall(given_back, supervisor.log, re.MULTILINE))) >= 3, LONG)
    by_second = Counter(re.findall(given_back, supervisor.log, re.MULTILINE))
    assert max(by_second.values()) <= 3, by_second
    assert returned(bed, bed.put("which")) == "old"
    (bed.folder / "shop.py").write_text(SHOP)
    supervisor.signal(signal.SIGHUP)
    assert returned(bed, sell) == "sold"
    bed.stop(supervisor)


def test_an_application_whose_jobs_are_elsewhere_is_refused(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    (bed.folder / "shop.py").write_text(SHOP.replace("Runner()", "Runner('sqlite:///shop.db')"))
    bed.cli.env.pop("FORKRUNNER_DATABASE")
    bed.cli.write(source("old").replace("Runner()", f"Runner({bed.database!r})"))
    done = bed.cli.run("run", "jobs:runner", "--molds", "1,shop:runner", status=2)
    assert "shop:runner: its jobs are in another database than those of jobs:runner" in done.stderr


@pytest.mark.parametrize(
    "value", ["0", "65", "x", "1,1", "1,shop:runner=0", "1,shop:runner,shop:runner", "-1"]
)
def test_nonsense_is_refused_in_one_line(sqlite_bed: Bed, value: str) -> None:
    done = sqlite_bed.cli.run("run", "jobs:runner", f"--molds={value}", status=2)
    assert re.fullmatch(r"forkrunner: molds: expected N, or N,MODULE:RUNNER=N.*\n", done.stderr)


# ------------------------------------------------------------------------------ what is shown


def test_status_shows_what_drains(bed: Bed) -> None:
    supervisor = bed.start(slots=3)
    ids = bed.enqueue("hold", {"path": bed.path("go")}, count=2)
    bed.wait_noted("start", count=2)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("mold 2 is up", LONG)

    def molds() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = bed.cli.run("status", "--json").json["supervisors"][0]["molds"]
        return [{key: mold.get(key) for key in ("generation", "stage", "busy")} for mold in found]

    wanted = [
        {"generation": 1, "stage": "draining", "busy": 2},
        {"generation": 2, "stage": "serving", "busy": None},
    ]
    wait_until(lambda: molds() == wanted, LONG, interval=0.2)
    assert "gen 1 draining 2, gen 2" in bed.cli.run("status").stdout
    bed.let_go()
    for id in ids:
        assert bed.ended(id).state == State.DONE
    wait_until(lambda: molds() == [wanted[1]], LONG, interval=0.2)
    bed.stop(supervisor)


def test_ps_shows_the_picture_of_the_architecture_page(sqlite_bed: Bed) -> None:
    """Each line of it, up to the numbers, and who is whose child."""
    bed = sqlite_bed
    page = (
        (Path(forkrunner.__file__).parent / "README.md").read_text().partition("```\n")[2].partition("```")[0]
    )
    lines = [re.match(r"\d+ ( *)(?:\\_ )?(forkrunner: .*)", line) for line in page.splitlines()[1:]]
    assert all(lines)
    picture = [([1, 2, 6].index(len(line[1])), line[2]) for line in lines if line]
    tasks = {task for _, title in picture for task in re.findall(r"job \S+ (\w+) attempt", title)}
    hold = SOURCE.read_text()
    for task in sorted(tasks):
        hold += (
            f"\n\n@runner.task(backoff=0.01, max_attempts=2)\ndef {task}(path: str, fail: bool = False, told: bool = False) -> None:\n"
            "    if fail and current_job().attempt == 1: raise ValueError\n"
            "    if told: progress(0.42)\n"
            "    hold.function(path)\n"
        )
    bed.cli.write(hold)
    supervisor = bed.start(slots=4, spares=1)

    def put(title: str) -> None:
        found = re.search(r"job \S+ (\w+) attempt (\d)(, 42%)?", title)
        assert found
        arguments = {"path": bed.path("go"), "fail": found[2] == "2", "told": bool(found[3])}
        id = bed.put(found[1], arguments)
        bed.wait_noted("start", id)

    draining = next(n for n, (_, title) in enumerate(picture) if "gen 2" in title)
    for _, title in picture[:draining]:
        if title.startswith("forkrunner: job"):
            put(title)
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_log("mold 2 is up", LONG)
    for _, title in picture[draining:]:
        if title.startswith("forkrunner: job"):
            put(title)

    def shape(title: str) -> str:
        return re.sub(r"\d+ done/s", "N done/s", re.sub(r"job [0-9a-f-]+(…\w+)?", "job ID", title))

    def seen() -> list[tuple[int, str]]:
        found = supervisor.ps()
        depth = {supervisor.pid: 0}
        for one in found:
            depth.setdefault(one.pid, depth.get(one.ppid, -1) + 1)
        return sorted((depth[one.pid], shape(one.title)) for one in found)

    wanted = sorted((depth, shape(title)) for depth, title in picture)
    wait_until(lambda: seen() == wanted, 20, f"{wanted}\n{seen()}")
    bed.let_go()
    bed.wait_counts(done=sum(title.startswith("forkrunner: job") for _, title in picture))
    bed.stop(supervisor)


# ----------------------------------------------------------------------------------- --reload


def test_reload_by_itself(bed: Bed) -> None:
    """A file is written, and the next job has the new code; what runs goes on; what is broken is told, and mended."""
    supervisor = bed.start("--reload", slots=3)
    running = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", running)
    bed.cli.write(source("new"))
    supervisor.wait_log("jobs.py has changed: reloading", LONG)
    supervisor.wait_log("mold 2 is up", LONG)
    assert returned(bed, bed.put("which")) == "new"
    bed.cli.write("def :")
    supervisor.wait_log("SyntaxError.*; mold 2 goes on", LONG)
    bed.cli.write(source("mended"))
    supervisor.wait_log("mold 4 is up", LONG)
    assert returned(bed, bed.put("which")) == "mended"
    bed.let_go()
    assert json.loads(bed.ended(running).result or "") == "old"
    assert [attempt.outcome for attempt in bed.row(running).attempts] == [Outcome.DONE]
    bed.stop(supervisor)


def test_reload_when_an_imported_file_changes_elsewhere(sqlite_bed: Bed, tmp_path: Path) -> None:
    bed = sqlite_bed
    library = tmp_path / "library"
    library.mkdir()
    (library / "words.py").write_text("WORD = 'one'\n")
    bed.cli.write(
        source("old") + "\n\nimport words\n\n@runner.task\ndef word() -> str:\n    return words.WORD\n"
    )
    supervisor = bed.start("--reload", env={"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"})
    assert bed.ended(bed.put("word")).result == '"one"'
    (library / "words.py").write_text("WORD = 'another'\n")
    supervisor.wait_log("words.py has changed: reloading", LONG)
    supervisor.wait_log("mold 2 is up", LONG)
    assert bed.ended(bed.put("word")).result == '"another"'
    bed.stop(supervisor)
