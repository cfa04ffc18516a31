"""Fixtures: throw-away servers, a fresh database for each test, the real CLI, and a check that nothing stays behind.

The helpers are in support.py, the servers in servers.py, the knobs in README.md.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.mailing import MailServer
from tests.servers import PACKAGES, Browser, Memcached, PgBouncer, Postgres, Server, find, tree
from tests.support import MISSING, REQUIRED, Cli, alive, descendants, kill_all, need, wait_until

if TYPE_CHECKING:
    from tests.running import Bed

# Before anything of forkrunner is imported: no setting of the machine reaches a test.
for _name in [name for name in os.environ if name.startswith("FORKRUNNER_")]:
    del os.environ[_name]
# Output that a killed job had buffered is part of what is tested.
os.environ.pop("PYTHONUNBUFFERED", None)

# A busy machine is no bug; the seed is pytest-randomly's and is printed at the head.
settings.register_profile("forkrunner", deadline=None)
settings.load_profile("forkrunner")

#: Fixture → the marker of each test that uses it, and the package that it needs.
_FIXTURES = {
    "postgres": "postgresql",
    "memcached": "memcached",
    "pgbouncer": "pgbouncer",
    "browser": "chromium",
}

#: Those that run; the check after each test leaves them alone and repairs what a test did to them.
_servers: list[Server | MailServer] = []


def _need(name: str) -> None:
    need(name, find(PACKAGES[name]))


def pytest_configure(config: pytest.Config) -> None:
    # in a process of `-n`, whose environment was cleared before it was started
    REQUIRED.update(getattr(config, "workerinput", {}).get("required", ()))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["required"] = sorted(REQUIRED)


def _serve(server: Server) -> Iterator[Server]:
    _servers.append(server)
    yield server
    _servers.remove(server)
    server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL cluster, started when the first test asks for it."""
    _need("postgresql")
    yield from _serve(Postgres())


@pytest.fixture(scope="session")
def memcached() -> Iterator[Server]:
    _need("memcached")
    yield from _serve(Memcached())


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[Server]:
    """PgBouncer in transaction mode before `postgres`."""
    _need("pgbouncer")
    yield from _serve(PgBouncer(postgres))


@pytest.fixture(scope="session")
def browser() -> Iterator[Server]:
    """Chromium; `browser.open()` gives a fresh one."""
    _need("chromium-driver")
    yield from _serve(Browser())


@pytest.fixture(scope="session")
def _mail_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    with MailServer(tmp_path_factory.mktemp("mail")) as server:
        _servers.append(server)
        yield server
        _servers.remove(server)


@pytest.fixture
def mail_server(_mail_server: MailServer) -> MailServer:
    """A mail server that takes whatever comes, and has taken nothing yet."""
    _mail_server.reset()
    return _mail_server


@pytest.fixture
def postgresql_database(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh, empty database on PostgreSQL."""
    url = postgres.create_database()
    yield url
    postgres.heal()
    postgres.drop(url)


@pytest.fixture
def sqlite_database(tmp_path: Path) -> str:
    """The URL of an SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty database, on each kind in turn; the tables are not there yet."""
    url: str = request.getfixturevalue(f"{request.param}_database")
    return url


@pytest.fixture
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is kept when the test fails; the report then shows the end of each log in it."""
    # Not in tmp_path, which is gone before a failure of the teardown is reported. It stays until a run without failures.
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def cli(workdir: Path) -> Iterator[Cli]:
    """The real CLI in `workdir`; afterwards whatever it started has gone, or the test fails."""
    cli = Cli(workdir)
    yield cli
    cli.close()


@pytest.fixture
def application() -> str | None:
    """The source of the application in a `bed`; a file of tests that has its own overrides this."""
    return None


@pytest.fixture
def bed(cli: Cli, database: str, application: str | None) -> Iterator[Bed]:
    """An application, its jobs and its supervisors, on each kind of database in turn."""
    from tests.running import Bed  # forkrunner comes with it

    with Bed(cli, database, source=application) as bed:
        yield bed


@pytest.fixture
def sqlite_bed(cli: Cli, sqlite_database: str, application: str | None) -> Iterator[Bed]:
    """The same for what has nothing to do with the database."""
    from tests.running import Bed

    with Bed(cli, sqlite_database, source=application) as bed:
        yield bed


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail the test that leaves a child process behind, and repair the servers that it broke."""
    yield
    for server in _servers:
        server.heal()
    own = {pid for server in _servers for pid in server.pids}
    me = os.getpid()

    def left() -> list[str]:
        return [str(found) for found in descendants(me) if found.pid not in own]

    try:
        wait_until(lambda: not left(), timeout=2)
    except AssertionError:
        listing = left()
        kill_all([pid for pid in tree(me)[1:] if pid not in own and alive(pid)])
        for pid in tree(me)[1:]:
            if pid not in own:
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    pass
        if listing:
            pytest.fail("child processes left behind:\n" + "\n".join(listing), pytrace=False)


#: Files that take long as a whole: they are about processes, not about an interpreter's version.
_LONG = {
    "test_browser",
    "test_cli",
    "test_database_away",
    "test_demo",
    "test_many",
    "test_progress_faults",
    "test_replay",
    "test_signals",
    "test_site",
    "test_trackconvert",
    "test_watch",
}
#: Files about what a version of Python decides: forks and the warnings at them, ctypes, signals and the exit of the
#: interpreter, threads and asyncio, annotations and signatures, JSON and dates, tracebacks and stacks, what an import
#: brings along, the command line. On the databases' side one kind is enough but where drivers are used directly.
_CORE = {
    "test_ahead",
    "test_streams",
    "test_channel",
    "test_children",
    "test_cli",
    "test_config",
    "test_endings",
    "test_hooks",
    "test_job",
    "test_loglines",
    "test_packaging",
    "test_progress",
    "test_runner",
    "test_store",
    "test_tasks",
    "test_wake",
    "test_watch",
    "test_wsgi",
}
_DRIVERS = {"test_store", "test_wake"}


def _is_core(item: pytest.Item) -> bool:
    name = item.path.stem
    if item.get_closest_marker("slow") or item.get_closest_marker("timing"):
        return False
    if name not in _CORE and not item.get_closest_marker("core"):
        return False
    needs = item.get_closest_marker("postgresql") or "postgres" in getattr(item, "fixturenames", ())
    return name in _DRIVERS or not needs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.path.stem
        if _is_core(item):
            item.add_marker(pytest.mark.core)
        if name in _LONG or (name == "test_endings" and "postgresql" in item.name):
            item.add_marker(pytest.mark.slow)
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in _FIXTURES:
                item.add_marker(_FIXTURES[fixture])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    folder = getattr(item, "funcargs", {}).get("workdir")
    if folder is not None and report.failed and folder.is_dir():
        report.sections.append(("workdir", f"kept: {folder}"))
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".out", ".err", ".log"} and path.is_file() and path.stat().st_size:
                lines = path.read_text(errors="replace").splitlines()[-100:]
                report.sections.append((str(path.relative_to(folder)), "\n".join(lines)))
    return report


# Outermost, so that it stands below the list of each skip, right before the closing line.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    yield
    skipped: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        if isinstance(report.longrepr, tuple) and MISSING in report.longrepr[2]:
            skipped[report.longrepr[2].partition(MISSING)[2]] += 1
    if skipped:
        counted = ", ".join(f"{name} ({count} tests skipped)" for name, count in sorted(skipped.items()))
        terminalreporter.line(f"{MISSING}{counted}", red=True, bold=True)
