"""The test bed itself: a check that never fails would go unnoticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import Postgres
from tests.support import alive, wait_until

ROOT = Path(__file__).parent.parent

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
#: Leaves a grandchild behind that ignores SIGTERM and has left the session.
DEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('orphan', flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
print('up', flush=True)
"""


def run_pytest(
    folder: Path, source: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run this test bed over one file of tests, in a folder beside it."""
    tests = folder / "tests"
    tests.mkdir()
    for path in (ROOT / "tests").glob("*.py"):
        if not path.name.startswith("test_"):
            (tests / path.name).symlink_to(path)
    (folder / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    (tests / "test_it.py").write_text(source)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(folder / "temp"),
            *arguments,
        ],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_wait_until_returns_the_value_and_shows_the_last_one():
    values = iter([0, "", "here"])
    assert wait_until(lambda: next(values)) == "here"
    with pytest.raises(AssertionError, match=r"the answer: not within 0.05 s; the last value was \[\]"):
        wait_until(list, timeout=0.05, message="the answer")


def test_a_command_shows_its_log_its_processes_and_its_status(cli):
    process = cli.start("-c", SLEEPER, python=[])
    assert process.wait_log("^up$")
    assert [found.pid for found in process.ps()] == [process.pid] == process.wait_ps("time.sleep")
    process.signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    process.wait_gone()
    assert not process.running
    assert "KeyboardInterrupt" in process.stderr


def test_a_command_that_ends_gives_status_and_output(cli):
    done = cli.run("-c", "import os; print(sorted(os.environ)); raise SystemExit(3)", python=[], status=3)
    assert done.status == 3
    assert "FORKRUNNER" not in done.stdout
    with pytest.raises(AssertionError, match="expected status 0"):
        cli.run("-c", "raise SystemExit(2)", python=[])


def test_a_log_that_never_comes_is_reported_with_what_came(cli):
    with pytest.raises(AssertionError, match=r"no 'never' in the output(.|\n)*only this"):
        cli.start("-c", "print('only this')", python=[]).wait_log("never")


def test_what_a_command_left_behind_is_found_and_killed(cli):
    process = cli.start("-c", DEMON, python=[])
    orphan = process.wait_log("up") and process.ps()[-1].pid
    assert process.wait() == 0
    assert [found.pid for found in process.ps()] == [orphan]
    with pytest.raises(AssertionError, match="left behind"):
        process.close(grace=0.5)
    assert not alive(orphan)
    process.wait_gone()


def test_a_command_that_ignores_sigterm_is_killed_and_reported(cli):
    process = cli.start("-c", "import signal; signal.signal(15, signal.SIG_IGN);" + SLEEPER, python=[])
    process.wait_log("up")
    with pytest.raises(AssertionError, match="SIGTERM did not end it"):
        process.close(grace=0.2)
    assert process.wait() == -signal.SIGKILL


def test_a_command_dies_with_the_tests(cli):
    """The nursery is killed, as it is when the tests are."""
    process = cli.start("-c", SLEEPER, python=[])
    process.wait_log("up")
    os.kill(process._nursery.pid, signal.SIGKILL)
    wait_until(lambda: not alive(process.pid))
    process.wait_gone()


def test_a_child_left_behind_fails_the_test_that_left_it(tmp_path):
    source = (
        "import os, time\ndef test_it():\n    if os.fork() == 0: time.sleep(60)\ndef test_other(): pass\n"
    )
    done = run_pytest(tmp_path, source)
    assert "child processes left behind" in done.stdout
    assert done.returncode == 1
    assert "2 passed, 1 error" in done.stdout.splitlines()[-1]


def test_a_failure_keeps_the_folder_and_shows_its_logs(tmp_path):
    source = "def test_it(workdir):\n    (workdir / 'a.log').write_text('the reason')\n    assert 0\n"
    done = run_pytest(tmp_path, source)
    assert "the reason" in done.stdout
    assert [path.read_text() for path in tmp_path.glob("temp/work0/a.log")] == ["the reason"]


SERVERS = "def test_a(postgresql_database): pass\ndef test_b(database): pass\ndef test_c(memcached): pass\n"


def test_a_missing_server_is_skipped_and_counted_before_the_closing_line(tmp_path):
    source = "import tests.conftest\ntests.conftest.find = lambda binary: None\n" + SERVERS
    *_, summary, closing = run_pytest(tmp_path, source).stdout.splitlines()
    assert summary == "missing here: memcached (1 tests skipped), postgresql (2 tests skipped)"
    assert "1 passed, 3 skipped" in closing


def test_a_missing_server_that_is_required_fails_its_tests(tmp_path):
    source = "import tests.conftest\ntests.conftest.find = lambda binary: None\n" + SERVERS
    done = run_pytest(tmp_path, source, FORKRUNNER_REQUIRE="postgresql")
    assert "1 passed, 1 skipped, 2 errors" in done.stdout.splitlines()[-1]


def test_each_test_has_a_database_of_its_own(postgres, postgresql_database):
    other = postgres.create_database()
    assert other != postgresql_database
    with postgres.connect(other.rpartition("/")[2]) as connection:
        connection.execute("create table t (n int)")
        # Somebody is still connected.
        postgres.drop(other)


def answers(postgres: Postgres) -> bool:
    import psycopg

    try:
        psycopg.connect(
            f"host=127.0.0.1 port={postgres.port} user=forkrunner dbname=postgres connect_timeout=2"
        ).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_postgresql_comes_back_with_its_data(postgres, postgresql_database, mode):
    name = postgresql_database.rpartition("/")[2]
    with postgres.connect(name) as connection:
        connection.execute("create table kept (n int)")
    postgres.stop(mode)
    assert not answers(postgres)
    postgres.start()
    with postgres.connect(name) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_postgresql_that_is_paused_is_silent_until_it_is_healed(postgres):
    postgres.pause()
    assert not answers(postgres)
    postgres.heal()
    assert answers(postgres)


def test_memcached_is_paused_and_restarted(memcached):
    from pymemcache.client.base import Client

    def version() -> bool:
        client = Client(("127.0.0.1", memcached.port), connect_timeout=1, timeout=0.3)
        try:
            return bool(client.version())
        except OSError:
            return False
        finally:
            client.close()

    assert version()
    memcached.pause()
    assert not version()
    memcached.resume()
    assert version()
    memcached.restart()
    assert version()


def test_pgbouncer_hands_on(pgbouncer):
    import psycopg

    with psycopg.connect(pgbouncer.url().replace("+psycopg", ""), prepare_threshold=None) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_servers_do_not_outlive_the_process_that_started_them(postgres, tmp_path):
    code = (
        "import sys, time\nfrom tests.servers import Postgres\n"
        "server = Postgres()\nprint(server.process.pid, server.folder, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pid, folder = owner.stdout.readline().split()
        assert alive(int(pid))
        owner.kill()
    wait_until(lambda: not alive(int(pid)))
    from tests.servers import sweep

    sweep()
    assert not Path(folder).exists()
