"""What a mold does with its memory before it forks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.running import SOURCE, Bed, tree_of
from tests.support import Cli, need

#: Behind the jobs: what an application may hold, of 280 bytes each.
BALLAST = """

ballast = [{"n": n, "name": f"item {n}"} for n in range(COUNT)]


@runner.task
def change(n: int) -> list[object]:
    ballast[n]["name"] = "changed"
    return [ballast[n]["name"], ballast[n + 1]["name"], len(ballast)]
"""


def in_huge_pages(pid: int) -> int:
    """Return how much memory of a process is in huge pages, bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (kilobytes,) = re.findall(r"^AnonHugePages:\s+(\d+) kB", text, re.MULTILINE)
    return int(kilobytes) * 1024


@pytest.mark.parametrize("count", [200_000, 10], ids=["much", "little"])
def test_what_an_application_holds_is_in_huge_pages(cli: Cli, sqlite_database: str, count: int) -> None:
    """If it is much; and jobs change it as their own."""
    release = tuple(map(int, re.findall(r"\d+", Path("/proc/sys/kernel/osrelease").read_text())[:2]))
    need("huge-pages", release >= (6, 1), "the kernel is older than 6.1")
    with Bed(cli, sqlite_database, source=SOURCE.read_text() + BALLAST.replace("COUNT", str(count))) as bed:
        supervisor = bed.start()
        _, mold, _ = tree_of(supervisor)
        assert (in_huge_pages(mold) > 16 << 20) == (count > 10)
        for n in (3, 3, count - 2):
            assert bed.ended(bed.put("change", {"n": n})).result == f'["changed","item {n + 1}",{count}]'
        bed.stop(supervisor)
