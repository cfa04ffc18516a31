"""README.md is executed: what it shows is what happens; and its generated tables are those of the code.

In the order of the page: a block that begins with `# file: NAME` is written to a folder; of `console` blocks the `$ `
lines are typed into one shell there, and what it prints is compared, `...` standing for anything; `python` blocks run
in one interpreter there. `forkrunner run` goes on in the background. A block that must not run has an HTML comment
before it, `<!-- not run: reason -->`.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import Cli, Process

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
MARK = "--- forkrunner test: done "
#: Reads one Python literal per line and executes it.
INTERPRETER = f"""
import sys, traceback
names = {{"__name__": "__main__"}}
for line in sys.stdin:
    status = 0
    try:
        exec(compile(eval(line), "README.md", "exec"), names)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        status = 1
    print("{MARK}%d" % status, flush=True)
"""


class Block(NamedTuple):
    kind: str
    text: str
    line: int
    #: Why it must not run.
    reason: str | None


def blocks(path: Path) -> Iterator[Block]:
    page = path.read_text(encoding="utf-8")
    for match in BLOCK.finditer(page):
        line = page.count("\n", 0, match.start("text")) + 1
        yield Block(match["kind"], match["text"], line, match["reason"])


class Session:
    """A program that reads commands and says when it has done each."""

    def __init__(self, command: list[str], cli: Cli) -> None:
        self.process = subprocess.Popen(
            command, cwd=cli.folder, env=cli.env, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ask(self, line: str, timeout: float = 60) -> tuple[int, str]:
        """Send one line; return its status and what was printed."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        output, end = "", time.monotonic() + timeout
        while not (match := re.search(rf"^{MARK}(\d+)\n", output, re.MULTILINE)):
            ready = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]
            data = os.read(self.process.stdout.fileno(), 65536).decode() if ready else ""
            assert data, f"no end of {line!r} within {timeout} s; it has printed {output!r}"
            output += data
        return int(match[1]), output[: match.start()]

    def close(self) -> None:
        self.process.communicate(timeout=20)


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.shell = Session(["/bin/sh"], cli)
        self.python = Session([sys.executable, "-c", INTERPRETER], cli)
        self.supervisors: list[Process] = []
        # however it is installed, it is this one
        self.type(f'forkrunner() {{ "{sys.executable}" -m forkrunner "$@"; }}')

    def type(self, command: str) -> str:
        return self.shell.ask(f"{command}\necho '{MARK}'$?")[1]

    def read(self, block: Block) -> None:
        where = f"README.md:{block.line}"
        if file := re.match(r"# file: (\S+)\n", block.text):
            self.cli.write(block.text, file[1])
        elif block.kind == "python":
            status, output = self.python.ask(repr(block.text))
            assert status == 0, f"{where}\n{output}"
        elif block.kind == "console":
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                self.check(where, command, expected)
        else:
            pytest.fail(f"{where}: expected a python or console block, got {block.kind!r}")

    def check(self, where: str, command: str, expected: str) -> None:
        if command.startswith("forkrunner run "):
            process = self.cli.start(*command.split()[1:])
            self.supervisors.append(process)
            process.wait_log(pattern(expected, "(?m)^"))
            return
        printed = self.type(command)
        assert re.fullmatch(pattern(expected), printed), f"{where}: $ {command}\n{printed}"

    def close(self) -> None:
        self.python.close()
        self.shell.close()
        for process in self.supervisors:
            process.signal(signal.SIGTERM)
            assert process.wait() == 0, process.describe()


def pattern(expected: str, prefix: str = "") -> str:
    """Return a regular expression for what the page shows: `...` is anything within a line, or lines if it is one."""
    lines = re.split(r"^\.\.\.\n", expected, flags=re.MULTILINE)
    return prefix + r"(?:.*\n)*?".join(
        r"[^\n]*".join(re.escape(part) for part in re.split(r"\.\.\.", text)) for text in lines
    )


@pytest.fixture
def reader(cli: Cli) -> Iterator[Reader]:
    cli.env |= {"XDG_RUNTIME_DIR": str(cli.folder / "run"), "PYTHONPATH": str(cli.folder)}
    reader = Reader(cli)
    yield reader
    for session in (reader.shell, reader.python):
        session.process.kill()
        session.process.communicate()


@pytest.mark.timeout(110)
def test_what_the_readme_says_is_what_happens(reader):
    found = list(blocks(ROOT / "README.md"))
    for block in found:
        if block.reason is None:
            reader.read(block)
    reader.close()
    # a block that is never read would be a page that nobody checks
    assert len([block for block in found if block.reason]) == 6
    assert {block.kind for block in found} == {"python", "console", "html", "toml"}
    assert len(found) >= 10


def test_every_fence_of_the_readme_is_seen():
    for path in (ROOT / "README.md", ROOT / "forkrunner/README.md"):
        page = path.read_text(encoding="utf-8")
        assert page.count("\n```") == 2 * len(list(blocks(path))), path


def test_the_first_job_fits_on_a_screen():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    first = page.partition("## The first job")[2].partition("\n## ")[0]
    assert first.count("\n") <= 66


def test_the_generated_tables_are_those_of_the_code():
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_links_of_the_pages_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "forkrunner/README.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_architecture_page_is_short_and_names_files_that_exist():
    path = ROOT / "forkrunner/README.md"
    page = path.read_text(encoding="utf-8")
    assert page.count("\n") <= 190
    for name in set(re.findall(r"`(\w+\.py)`", page)):
        assert (path.parent / name).exists(), name


def test_the_pattern_of_a_transcript():
    assert re.fullmatch(pattern("a ... (c)\n"), "a b b (c)\n")
    assert not re.fullmatch(pattern("a ... (c)\n"), "a b\nb (c)\n")
    assert re.fullmatch(pattern("a\n...\nd\n"), "a\nb\nc\nd\n")
    assert re.fullmatch(pattern("a\n...\nd\n"), "a\nd\n")
    assert not re.fullmatch(pattern("a\n"), "a\nb\n")
