"""The demo as a person sees it: the real program, with and without a terminal, and what is left afterwards."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

import trackconvert
from tests.support import Cli, Process

CONTRIB = Path(trackconvert.__file__).resolve().parents[1]
SAMPLES = CONTRIB / "trackconvert/samples"
ROOT = Path(__file__).parent.parent
DEMO = ["-P", str(ROOT / "scripts" / "demo.py")]
#: Gives the command a terminal of its own and copies what it writes there to standard output.
IN_A_TERMINAL = [
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, *sys.argv[1:]])))",
    *DEMO,
]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def demo(cli: Cli) -> Cli:
    cli.env |= {
        "PYTHONPATH": str(CONTRIB),
        "TMPDIR": str(cli.folder),
        "XDG_RUNTIME_DIR": str(cli.folder / "run"),
        # somebody's own settings, which the demo must leave alone
        "FORKRUNNER_DATABASE": "postgresql://nobody@127.0.0.1:1/production",
        "FORKRUNNER_SLOTS": "none",
    }
    return cli


def finish(process: Process) -> int:
    status = process.wait(100)
    process.wait_gone()
    # no lock of a supervisor, no progress of a job
    assert [path for path in (process.folder / "run").rglob("*") if path.is_file()] == []
    return status


def test_the_samples_are_converted_and_the_bars_move(demo):
    process = demo.start(python=IN_A_TERMINAL, env={"TERM": "xterm"})
    assert finish(process) == 0, process.describe()
    shown = ESCAPES.sub("", process.stdout).replace("\r", "\n")
    table = shown.partition("CONVERSION")[2]
    results = {path.name for path in demo.folder.glob("forkrunner-demo-*/results/*")}
    for sample in SAMPLES.iterdir():
        labels = re.findall(rf"^({re.escape(sample.name)} to \w+) ", table, re.MULTILINE)
        assert len(labels) == (0 if sample.stem == "broken" else 2), shown
        for label in labels:
            values = {int(value) for value in re.findall(rf"{re.escape(label)} .*?([0-9]+)%", shown)}
            assert len(values) >= 3, (label, values)
            assert values >= {100}
            assert re.search(
                rf"^{re.escape(label)} +done +1 +[0-9.]+ m?s +[0-9]+ ms +[0-9.]+ MB$", table, re.M
            )
    assert len(results) == 12
    for path in demo.folder.glob("forkrunner-demo-*/results/*"):
        assert trackconvert.read(path)
        assert path.name.split(".")[1] in trackconvert.FORMATS


def test_without_a_terminal_it_prints_lines_and_a_bad_file_its_reason(demo):
    demo.folder.joinpath("shot 1.txt").write_bytes((SAMPLES / "orbit.3de.txt").read_bytes())
    demo.folder.joinpath("bad\x1b[2J.txt").write_bytes((SAMPLES / "broken.txt").read_bytes())
    process = demo.start("shot 1.txt", "bad\x1b[2J.txt", python=DEMO)
    assert finish(process) == 1, process.describe()
    assert re.search(r"^shot 1\.txt to \w+ +100%  done$", process.stdout, re.MULTILINE)
    assert re.search(r"^bad\\x1b\[2J\.txt to \w+ +raised +1 ", process.stdout, re.MULTILINE)
    # as it was named, without what does not print
    assert "\n    bad[2J.txt:9: expected y to be a number, got '-nan'\n" in process.stdout
    assert all(line.isprintable() for line in process.stdout.splitlines())
    assert process.stderr == ""
    (folder,) = re.findall(r"^The results are in (.*)$", process.stdout, re.MULTILINE)
    assert {path.name.split(".")[0] for path in Path(folder).iterdir()} == {"shot 1"}
    # the command that it names for a closer look
    (look,) = re.findall(r"-m forkrunner (show --database .*)$", process.stdout, re.MULTILINE)
    assert "convert" in demo.run(*look.split(), env={"FORKRUNNER_SLOTS": "1"}).stdout


@pytest.mark.parametrize("file", ["nowhere.txt", "."])
def test_a_file_that_cannot_be_read_is_refused_before_anything_starts(demo, file):
    done = demo.run(file, python=DEMO, status=2)
    assert done.stdout == ""
    assert re.fullmatch(rf"scripts/demo: {re.escape(file)}: [A-Z].*\n", done.stderr)
    assert list(demo.folder.glob("forkrunner-demo-*")) == []


@pytest.mark.parametrize(
    ("signum", "to_all"),
    [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)],
    ids=["control-c", "int", "term"],
)
def test_a_signal_while_conversions_run_leaves_nothing(demo, signum, to_all):
    process = demo.start(python=DEMO)
    process.wait_log("keyframes")
    (os.killpg if to_all else os.kill)(process.pid, signum)
    assert finish(process) == 130, process.describe()
    assert list(demo.folder.glob("forkrunner-demo-*")) == []
    assert "Traceback" not in process.log


def test_a_reader_that_has_had_enough_leaves_nothing(demo):
    head = (
        "import subprocess, sys\n"
        "process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "process.stdout.readline(); process.stdout.close()\n"
        "sys.exit(process.wait())"
    )
    process = demo.start(python=["-c", head, *DEMO])
    assert finish(process) == 1
    assert process.log == ""


def test_a_supervisor_that_dies_is_told_with_its_log(demo):
    process = demo.start(python=DEMO)
    process.wait_log("keyframes")
    (supervisor,) = process.pids("forkrunner: supervisor")
    os.kill(supervisor, signal.SIGKILL)
    assert process.wait() == 1, process.describe()
    process.wait_gone()
    assert "the supervisor ended too early, with status -9" in process.stderr
    (log,) = re.findall(r"^Its log: (.*)$", process.stderr, re.MULTILINE)
    assert "runs trackconvert.jobs:runner" in Path(log).read_text()
