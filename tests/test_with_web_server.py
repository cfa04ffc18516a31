"""forkrunner started by real web servers: one supervisor, which lives, is renewed and dies with them.

What is asked of each server is the same; how it is started, renewed and what it calls a worker is one row of a table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from forkrunner.job import Outcome, State
from tests.running import LONG, Bed, check_gone
from tests.servers import find, free_port
from tests.support import Cli, Process, alive, need, wait_until
from tests.test_reload import source

#: Beside the jobs, which tell which code they are of: it makes one of each request, and tells of its own.
SITE = """
from forkrunner.wsgi import start
from jobs import runner, which

start(runner)
version = "CODE"

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        words = which.enqueue().id if scope["path"] == "/job" else version
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": words.encode()})

def app(environ, start_response):
    words = which.enqueue().id if environ["PATH_INFO"] == "/job" else version
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [words.encode()]

if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer

    WSGIServer(app).run()
"""
#: Instead of an application beside the site.
OWN = """
import sys
import types

from forkrunner import Runner

sys.modules["IPython"] = types.ModuleType("IPython")
runner = Runner()

@runner.task
def which():
    return "of the site"
"""
#: Behind the site, for tools that ask for more than a WSGI application.
IMPORTED = """
from flask import Flask

app = Flask(__name__)
urlpatterns = []
print("imported:", start(runner), flush=True)
"""
LIGHTTPD = """
server.modules = ("mod_fastcgi")
server.document-root = "FOLDER"
server.bind = "127.0.0.1"
server.port = PORT
server.errorlog = "FOLDER/lighttpd.log"
fastcgi.server = ("/" => ((
    "socket" => "FOLDER/fcgi.sock", "bin-path" => "PYTHON FOLDER/site1.py", "max-procs" => 2, "check-local" => "disable", "fix-root-scriptname" => "enable",
    "bin-copy-environment" => ("PATH", "HOME", "LEDGER", "FORKRUNNER_DATABASE", "FORKRUNNER_RUNTIME_DIR", "FORKRUNNER_GRACE_PERIOD",
                               "FORKRUNNER_LEASE", "FORKRUNNER_STORE_TIMEOUT", "FORKRUNNER_SLOTS"),
)))
"""
#: Behind the jobs.
VARIABLE = """

@runner.task
def variable() -> str:
    return os.environ["OWN_VARIABLE"]
"""
#: Seconds within which all is gone after a KILL, or there again.
SOON = 2.0
#: Seconds that a running job has when the web server is stopped.
GRACE = 1.0


class Watch:
    """How long something takes, without the time in which the machine let somebody wait for its processors or disks."""

    def __init__(self) -> None:
        self._begun, self._waited = time.monotonic(), self._pressure()

    def check(self, limit: float) -> None:
        passed, waited = time.monotonic() - self._begun, self._pressure() - self._waited
        assert passed - waited < limit, f"{passed:.2f} s, {waited:.2f} s of which somebody had to wait"

    @staticmethod
    def _pressure() -> float:
        found = 0
        for kind in ("cpu", "io"):
            with contextlib.suppress(OSError), open(f"/proc/pressure/{kind}") as file:
                found += int(file.readline().rpartition("total=")[2])
        return found / 1e6


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to serve the site."""

    #: Arguments of Python.
    command: tuple[str, ...]
    #: Processes that are no master; 0: there is no master, or nobody renews a worker.
    workers: int = 0
    #: What makes it take new code: a signal, or a file to be touched; None: it must be started anew.
    reload: int | str | None = signal.SIGHUP
    #: It takes new code itself at that: else its jobs do, but not its pages.
    reloads_pages: bool = True
    #: Its workers outlive a KILL of it, and go on waiting for requests: nothing has to end then but with them.
    workers_stay: bool = False
    #: What has to be installed.
    needs: str | None = None


def gunicorn(worker: str, workers: int, *, preload: bool = False) -> Kind:
    flags = [
        "--worker-class",
        worker,
        "--workers",
        str(workers),
        "--bind",
        "127.0.0.1:{port}",
        "--no-control-socket",
        "--timeout=3",
    ]
    flags += ["--graceful-timeout", "3", "--preload"] if preload else ["--graceful-timeout", "3"]
    return Kind(("-m", "gunicorn", *flags, "site1:app"), workers, reloads_pages=not preload)


UWSGI = ("--http-socket", "127.0.0.1:{port}", "--master", "--processes", "2", "--need-app", "--die-on-term",
         "--wsgi-file", "site1.py", "--callable", "app")  # fmt: skip


def become(program: str, *arguments: str) -> tuple[str, ...]:
    """Return arguments of Python with which it becomes another program."""
    return ("-c", f"import os; os.execv({program!r}, {[program, *arguments]!r})")


def wheel(*flags: str) -> Kind:
    """uWSGI as a wheel, which does not find its way back at a reload: that is for the real one."""
    return Kind(("-c", "import pyuwsgi; pyuwsgi.run()", *UWSGI, *flags), 2, reload=None)


def uwsgi(reload: int | str, *flags: str) -> Kind:
    """uWSGI as Debian has it, with its plugin for one Python."""
    program = find(f"uwsgi_python3{sys.version_info[1]}") or ""
    command = become(program, *UWSGI, "--virtualenv", sys.prefix, "--touch-reload", "touched", *flags)
    return Kind(command, 2, reload=reload, needs=f"uwsgi_python3{sys.version_info[1]}")


def uvicorn(workers: int) -> Kind:
    common = ("-m", "uvicorn", "--port", "{port}", "--timeout-graceful-shutdown", "3", "site1:asgi")
    if workers == 1:
        return Kind(common, reload=None)
    return Kind((*common, "--workers", str(workers)), workers, workers_stay=True)


WAITRESS = Kind(("-m", "waitress", "--listen=127.0.0.1:{port}", "site1:app"), reload=None)
GRANIAN = Kind(
    (*("-m", "granian", "--interface", "wsgi", "--port", "{port}", "--workers", "2", "--respawn-failed-workers"),
     *("--workers-kill-timeout", "3", "site1:app")),
    2,
    workers_stay=True,
)  # fmt: skip
LIGHTTPD_FASTCGI = Kind(
    become(find("lighttpd") or "", "-D", "-f", "lighttpd.conf"),
    2,
    reload=None,
    workers_stay=True,
    needs="lighttpd",
)
KINDS = {
    "gunicorn-sync-1": gunicorn("sync", 1),
    "gunicorn-gthread-4-preload": gunicorn("gthread", 4, preload=True),
    "uwsgi-hup": uwsgi(signal.SIGHUP),
    "uwsgi-wheel": wheel(),
    "waitress": WAITRESS,
    "uvicorn-1": uvicorn(1),
    "lighttpd-fastcgi": LIGHTTPD_FASTCGI,
}
#: The same in other sizes.
MORE = {
    "gunicorn-sync-4": gunicorn("sync", 4),
    "gunicorn-sync-1-preload": gunicorn("sync", 1, preload=True),
    "gunicorn-sync-4-preload": gunicorn("sync", 4, preload=True),
    "gunicorn-gthread-1": gunicorn("gthread", 1),
    "gunicorn-gthread-1-preload": gunicorn("gthread", 1, preload=True),
    "gunicorn-gthread-4": gunicorn("gthread", 4),
    "gunicorn-gevent-2": gunicorn("gevent", 2),
    "granian-2": GRANIAN,
    "uwsgi-touch-lazy": uwsgi("touched", "--lazy-apps"),
    "uwsgi-wheel-threads": wheel("--enable-threads", "--threads", "2"),
    "uvicorn-2": uvicorn(2),
}
EACH = [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


class Web:
    """A web server with the site."""

    def __init__(self, bed: Bed, kind: Kind, port: int | None = None, **env: str) -> None:
        self.bed = bed
        self.kind = kind
        self.port = port or free_port()
        command = [word.replace("{port}", str(self.port)) for word in kind.command]
        if kind.needs == "lighttpd":
            text = LIGHTTPD.replace("PORT", str(self.port)).replace("PYTHON", sys.executable)
            bed.cli.write(text.replace("FOLDER", str(bed.folder)), "lighttpd.conf")
        self.process: Process = bed.cli.start(python=command, env={"GRACE": "3", **env})
        wait_until(self.answers, LONG, "an answer of the web server")

    def get(self, path: str = "/") -> str:
        """Ask until there is an answer: on a busy machine gunicorn takes its workers for dead, whatever they are at."""
        return wait_until(lambda: self.answers(path), LONG, f"an answer to {path}")

    def answers(self, path: str = "/") -> str:
        assert self.process.running, self.process.describe()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=LONG) as answer:
                text: str = answer.read().decode()
                return text
        except OSError:  # RemoteDisconnected is one too
            return ""

    def workers(self) -> list[int]:
        """Return the children of the web server that serve."""
        return [
            one.pid
            for one in self.process.ps()
            if self.kind.workers
            and (one.ppid, one.state != "Z") == (self.process.pid, True)
            and "resource_tracker" not in one.title
        ]

    def family(self) -> tuple[int, int, int]:
        """Return keeper, supervisor and serving mold, when there is exactly one of each."""

        def one_each() -> tuple[int, ...]:
            titles = (r"forkrunner: keeper", r"forkrunner: supervisor", r"forkrunner: mold \S+ gen \d+$")
            found = [self.process.pids(title) for title in titles]
            return tuple(pids[0] for pids in found) if all(len(pids) == 1 for pids in found) else ()

        keeper, supervisor, mold = wait_until(one_each, LONG, "one keeper, one supervisor, one mold")
        return keeper, supervisor, mold

    def generation(self) -> int:
        """Return the generation of the newest mold."""
        found = [
            re.search(r"gen (\d+)", one.title) for one in self.process.ps() if "forkrunner: mold" in one.title
        ]
        return max(int(match[1]) for match in found if match)

    def ours(self) -> list[int]:
        return self.process.pids("forkrunner: ")

    def renew(self) -> None:
        """Tell it to take new code."""
        if isinstance(self.kind.reload, str):
            (self.bed.folder / self.kind.reload).touch()
        elif self.kind.reload is not None:
            self.process.signal(self.kind.reload)

    def stop(self, *, while_a_job_runs: bool = False) -> None:
        """TERM: the port is free when it has ended, and all is gone when the grace period is over."""
        held = ""
        if while_a_job_runs:
            held = self.bed.put("which", {"path": self.bed.path("never")})
            self.bed.wait_noted("start", held)
        ours = self.ours()
        self.process.signal(signal.SIGTERM)
        self.process.wait(LONG)
        watch = Watch()
        self.bind_again()
        check_gone(ours)
        watch.check(GRACE + SOON)
        self.process.wait_gone(LONG)
        self.bed.nothing_left()
        if held:  # for the next start
            row = self.bed.row(held)
            assert (row.state, [attempt.outcome for attempt in row.attempts]) == (
                State.PENDING,
                [Outcome.REQUEUED],
            )

    def bind_again(self) -> None:
        """Nobody has inherited the port."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", self.port))
            probe.listen()


def write(cli: Cli, code: str) -> None:
    cli.write(SITE.replace("CODE", code), "site1.py")
    cli.write(source(code))


@pytest.fixture
def bed(cli: Cli, sqlite_database: str) -> Iterator[Bed]:
    with Bed(cli, sqlite_database) as bed:
        write(cli, "old")
        cli.env |= {"FORKRUNNER_GRACE_PERIOD": str(GRACE), "FORKRUNNER_SLOTS": "2", "FORKRUNNER_LEASE": "4"}
        cli.env |= {"FORKRUNNER_STORE_TIMEOUT": "0.9", "PYTHONWARNINGS": "default"}
        yield bed


def start(bed: Bed, name: str) -> Web:
    kind = (KINDS | MORE)[name]
    if kind.needs:
        need("uwsgi-plugin-python3" if "uwsgi" in kind.needs else kind.needs, find(kind.needs))
    (bed.folder / "touched").touch()
    return Web(bed, kind)


def result(bed: Bed, id: str) -> str | None:
    row = bed.ended(id)
    assert row.state == State.DONE, row
    return row.result


@pytest.mark.parametrize("name", EACH)
def test_a_web_server_from_its_start_to_its_end(bed: Bed, name: str) -> None:
    web = start(bed, name)
    # one of each, however many processes there are, and a job of a request is done
    keeper, supervisor, mold = web.family()
    assert result(bed, web.get("/job")) == '"old"'
    (shown,) = bed.cli.run("status", "--json").json["supervisors"]
    assert (shown["pid"], shown["web"]["pid"], shown["web"]["generation"]) == (supervisor, keeper, 1)
    assert shown["web"]["clients"]

    if web.kind.workers:  # KILL of one worker changes nothing
        victim = web.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not alive(victim) and len(web.workers()) >= web.kind.workers, LONG, "a new worker")
        assert web.answers()
        assert result(bed, web.get("/job")) == '"old"'
        assert web.family() == (keeper, supervisor, mold)

    # kill -9 of the supervisor: a new one, and the job is run again
    held = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", held, attempt=1)
    os.kill(supervisor, signal.SIGKILL)
    watch = Watch()
    wait_until(lambda: {*web.process.pids("forkrunner: supervisor")} - {supervisor}, LONG, "a new supervisor")
    watch.check(SOON)
    check_gone([mold])
    bed.wait_noted("start", held, attempt=2)
    assert [attempt.outcome for attempt in bed.row(held).attempts] == [Outcome.LOST]
    _, supervisor, mold = web.family()

    if web.kind.reload is not None:  # new code runs the next job, the running one ends on the old code
        write(bed.cli, "new")
        web.renew()
        if web.kind.reloads_pages:
            wait_until(lambda: web.answers() == "new", LONG, "the new code of the site")
        wait_until(lambda: web.generation() == 2, LONG, "a new mold")
        wait_until(lambda: result(bed, web.get("/job")) == '"new"', LONG, "the new code")
        assert bed.row(held).state == State.BUSY
        bed.let_go()
        assert result(bed, held) == '"old"'
        assert web.family()[:2] == (keeper, supervisor)
        assert web.generation() == 2
    bed.let_go()
    bed.ended(held)
    web.stop(while_a_job_runs=True)


@pytest.mark.parametrize("name", EACH)
def test_kill_of_a_web_server(bed: Bed, name: str) -> None:
    """Nobody could say a word: the kernel tells of its end."""
    web = start(bed, name)
    web.family()
    ours, workers = web.ours(), web.workers() if web.kind.workers_stay else []
    for pid in (web.process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    watch = Watch()
    check_gone(ours)
    watch.check(SOON)
    # workers notice in their own time that their master is gone; until then they have the port
    web.process.wait_gone(LONG)
    web.bind_again()
    bed.nothing_left()


# ------------------------------------------------------------------------------ one thing at a time

ONE = gunicorn("sync", 1)


def test_a_worker_that_is_renewed_after_so_many_requests_changes_nothing(bed: Bed) -> None:
    web = Web(bed, dataclasses.replace(ONE, command=(*ONE.command, "--max-requests", "2")))
    family = web.family()
    before = web.workers()
    for _ in range(3):
        assert result(bed, web.get("/job")) == '"old"'
        wait_until(web.answers, LONG)
    wait_until(lambda: not {*before} & {*web.workers()}, LONG, "another worker")
    assert result(bed, web.get("/job")) == '"old"'
    assert web.family() == family
    assert web.generation() == 1
    assert "generation 2" not in web.process.log
    web.stop()


def test_hup_without_a_change_renews_nothing_and_with_one_in_a_module_that_is_imported_later_it_does(
    bed: Bed,
) -> None:
    (bed.folder / "later.py").write_text("x = 1\n")
    web = Web(bed, ONE)
    family, before = web.family(), web.workers()
    web.process.signal(signal.SIGHUP)
    wait_until(lambda: not {*before} & {*web.workers()}, LONG, "another worker")
    assert result(bed, web.get("/job")) == '"old"'
    assert web.family() == family
    (bed.folder / "later.py").write_text("x = 22\n")
    web.process.signal(signal.SIGHUP)
    web.process.wait_log("generation 2 of the web server .later.py has changed", LONG)
    wait_until(lambda: web.generation() == 2, LONG)
    web.stop()


def test_term_while_a_job_runs_gives_it_the_grace_period(bed: Bed) -> None:
    bed.cli.env["FORKRUNNER_GRACE_PERIOD"] = "60"
    web = Web(bed, ONE)
    held = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", held)
    web.process.signal(signal.SIGTERM)
    web.process.wait(LONG)
    web.bind_again()
    wait_until(lambda: "the web server has ended: stopping" in web.process.log, LONG)
    bed.let_go()
    assert result(bed, held) == '"old"'
    web.process.wait_gone(LONG)
    bed.nothing_left()


def test_a_web_server_that_starts_while_the_old_supervisor_waits_for_its_job(bed: Bed) -> None:
    """A restart: the new one does not wait, and the old one does not take its jobs."""
    bed.cli.env["FORKRUNNER_GRACE_PERIOD"] = "60"
    web = Web(bed, ONE)
    held = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", held)
    web.process.signal(signal.SIGTERM)
    web.process.wait(LONG)
    wait_until(lambda: "the web server has ended: stopping" in web.process.log, LONG)
    write(bed.cli, "new")
    again = Web(bed, ONE, web.port)
    assert result(bed, again.get("/job")) == '"new"'
    bed.let_go()
    assert result(bed, held) == '"old"'
    wait_until(lambda: len(web.process.pids("forkrunner: supervisor")) == 1, LONG, "the end of the old one")
    again.process.signal(signal.SIGTERM)
    again.process.wait(LONG)
    web.process.wait_gone(LONG)
    bed.nothing_left()


@pytest.mark.parametrize("moment", ["at once", "when it was told to stop"])
def test_a_web_server_that_is_started_again_brings_its_environment_and_its_log(bed: Bed, moment: str) -> None:
    """As by Ctrl-C, arrow up, Enter while a job runs: the keeper of the one before is still there."""
    bed.cli.env["FORKRUNNER_GRACE_PERIOD"] = "60"
    bed.cli.write(source("old") + VARIABLE)
    web = Web(bed, ONE, OWN_VARIABLE="old")
    held = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", held)
    keeper, supervisor, _ = web.family()
    if moment == "at once":
        # what has started it is all that there is to say that it has ended
        os.kill(keeper, signal.SIGSTOP)
    web.process.signal(signal.SIGTERM)
    web.process.wait(LONG)
    if moment == "at once":
        again = Web(bed, ONE, web.port, OWN_VARIABLE="new")
        os.kill(keeper, signal.SIGCONT)
    else:
        wait_until(lambda: "the web server has ended: stopping" in web.process.log, LONG)
        again = Web(bed, ONE, web.port, OWN_VARIABLE="new")
    again.process.wait_log("forkrunner .* runs jobs:runner", LONG)
    assert "runs jobs:runner" not in web.process.log.partition("ended: stopping")[2]
    # both have a slot free, and the old one takes no more
    assert result(bed, bed.put("variable")) == '"new"'
    bed.let_go()
    assert result(bed, held) == '"old"'
    wait_until(lambda: not alive(supervisor), LONG, "the end of the old one")
    again.process.signal(signal.SIGTERM)
    again.process.wait(LONG)
    web.process.wait_gone(LONG)
    assert "the web server has ended: stopping" in again.process.log
    bed.nothing_left()


def test_kill_of_all_that_is_ours_and_the_next_request_starts_it_again(bed: Bed) -> None:
    web = Web(bed, ONE)
    assert result(bed, web.get("/job")) == '"old"'
    keeper, supervisor, mold = web.family()
    os.kill(keeper, signal.SIGKILL)
    check_gone([keeper, supervisor, mold])
    # the first request in which the look is due
    wait_until(
        lambda: web.get("/job") and web.process.pids("forkrunner: keeper"), LONG, "a keeper", interval=0.2
    )
    _, again, _ = web.family()
    bed.wait_counts(pending=0, busy=0)
    wait_until(lambda: [row.pid for row in bed.store.supervisors()] == [again], LONG, "the dead one's end")
    web.stop()


def test_a_supervisor_that_keeps_dying_is_started_ever_more_rarely(bed: Bed) -> None:
    """The site answers all the same; mended, it works at once."""
    cli = bed.cli
    site = SITE.replace("start(runner)", "start(runner, target='other:runner')").replace("CODE", "old")
    cli.write(site, "site1.py")
    (bed.folder / "other.py").write_text("import nothing_of_that_name\n")
    web = Web(bed, ONE)
    web.process.wait_log("exit status 2.*after 0.5 s", LONG)
    assert web.answers() == "old"
    id = web.get("/job")
    web.process.wait_log("exit status 2.*after 1 s", LONG)
    assert "Traceback" not in web.process.log
    (bed.folder / "other.py").write_text("from jobs import runner\n")
    assert result(bed, id) == '"old"'
    web.stop()


@pytest.mark.parametrize(
    ("site", "env"),
    [
        ("start(runner)", {"FORKRUNNER_START": "0"}),
        ("start(runner)", {"FORKRUNNER_START": "maybe"}),
        ("start(runner, start=False)", {}),
        ("import sys; sys.ps1 = '>>> '; start(runner)", {}),
        ("import sys; sys.modules['_pytest'] = sys; start(runner)", {}),
    ],
)
def test_where_it_is_not_wanted_nothing_starts(bed: Bed, site: str, env: dict[str, str]) -> None:
    bed.cli.write(SITE.replace("start(runner)", site).replace("CODE", "old"), "site1.py")
    bed.cli.env |= env
    web = Web(bed, ONE)
    id = web.get("/job")
    assert web.ours() == []
    assert bed.row(id).state == State.PENDING
    assert not bed.runtime.exists()
    web.process.signal(signal.SIGTERM)
    web.process.wait_gone(LONG)


def test_a_runner_in_the_file_that_uwsgi_loads_under_a_name_of_its_own(bed: Bed) -> None:
    """And with IPython imported, which by itself is no shell."""
    bed.cli.write(SITE.replace("from jobs import runner, which", OWN), "site1.py")
    web = Web(bed, wheel())
    assert result(bed, web.get("/job")) == '"of the site"'
    web.stop()


#: Django's: how a project's own looks that has one file.
MANAGE = """
import sys
from django.conf import settings
from django.core.management import execute_from_command_line

settings.configure(ROOT_URLCONF="site1", ALLOWED_HOSTS=["*"], INSTALLED_APPS=["site1"],
                   DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
execute_from_command_line(sys.argv)
"""


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "flask", "--app", "site1", "shell"),
        ("-c", "import runpy, sys; sys.argv = ['/bin/flask', '--app', 'site1', 'routes']; "
         "from flask.cli import main; main()"),
        ("manage.py", "migrate"),
        ("manage.py", "shell"),
        ("-m", "pytest", "-qs", "-p", "no:cacheprovider", "-p", "no:randomly", "site1.py"),
        ("-m", "unittest", "site1"),
        ("test_site1.py",),
        ("-i", "site1.py"),
    ],
    ids=lambda command: " ".join(command)[-24:],
)  # fmt: skip
def test_what_only_imports_the_site_starts_nothing(bed: Bed, command: tuple[str, ...]) -> None:
    """A shell, a migration, a run of tests; each real, and ended by the end of its input."""
    bed.cli.write(SITE.replace("CODE", "old").partition("if __name__")[0] + IMPORTED, "site1.py")
    bed.cli.write(MANAGE, "manage.py")
    bed.cli.write("import unittest\nimport site1\n\nunittest.main()\n", "test_site1.py")
    process = bed.cli.start(python=[*command])
    process.wait_log("imported: False", LONG)
    process.wait(LONG)
    process.wait_gone(LONG)
    assert not bed.runtime.exists()


def test_the_server_of_flask_starts_it(bed: Bed) -> None:
    bed.cli.write(SITE.replace("CODE", "old").partition("if __name__")[0] + IMPORTED, "site1.py")
    process = bed.cli.start(python=["-m", "flask", "--app", "site1", "run", "--port", str(free_port())])
    process.wait_log("imported: True", LONG)
    process.wait_ps("forkrunner: supervisor")
    process.signal(signal.SIGINT)
    process.wait(LONG)
    process.wait_gone(LONG)


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("a command that imports the site", ["-m", "forkrunner", "check", "site1:runner"]),
        ("a run that imports the site", ["-m", "forkrunner", "run", "site1:runner"]),
    ],
)
def test_a_command_starts_no_keeper(bed: Bed, name: str, script: list[str]) -> None:
    process = bed.cli.start(python=script)
    if "run" in script:
        process.wait_log("runs site1:runner", LONG)
        assert result(bed, bed.put("which")) == '"old"'
        assert process.pids("forkrunner: keeper") == []
        process.signal(signal.SIGTERM)
    assert process.wait(LONG) == 0, process.describe()
    process.wait_gone()
    assert list(bed.runtime.rglob("keeper*")) == []


def test_settings_that_are_wrong_do_not_keep_the_site_from_answering(bed: Bed) -> None:
    bed.cli.write(SITE.replace("CODE", "old"), "site1.py")
    bed.cli.env["FORKRUNNER_SLOTS"] = "many"
    web = Web(bed, ONE)
    assert web.answers() == "old"
    web.process.wait_log(
        "forkrunner is not started with the web server: slots: expected a whole number", LONG
    )
    web.process.signal(signal.SIGTERM)
    web.process.wait_gone(LONG)


def test_two_applications_on_one_database(bed: Bed) -> None:
    """The first one's jobs are run for as long as it lives, then the other's."""
    (bed.folder / "other.py").write_text("from jobs import runner\n")
    site = SITE.replace("start(runner)", "start(runner, 'other')").replace("CODE", "old")
    web = Web(bed, ONE)
    keeper, supervisor, mold = web.family()
    bed.cli.write(site, "site1.py")
    second = Web(bed, ONE)
    web.process.wait_log("other:runner is not run while jobs:runner is", LONG)
    assert web.family() == (keeper, supervisor, mold)
    web.process.signal(signal.SIGTERM)
    web.process.wait(LONG)
    second.process.wait_log("forkrunner .* runs other:runner", LONG)
    check_gone([supervisor])
    assert web.process.pids("forkrunner: keeper") == [keeper]
    second.process.signal(signal.SIGTERM)
    second.process.wait(LONG)
    web.process.wait_gone(LONG)
    bed.nothing_left()


def test_a_second_web_server_with_other_settings_waits_for_its_turn(bed: Bed) -> None:
    """However often the workers of both are renewed."""
    each = dataclasses.replace(ONE, command=(*ONE.command[:-1], "--max-requests", "2", ONE.command[-1]))
    web = Web(bed, each)
    keeper, supervisor, mold = web.family()
    second = Web(bed, each, FORKRUNNER_SLOTS="5")
    web.process.wait_log("another web server for jobs:runner has other settings", LONG)
    for _ in range(6):
        web.get()
        second.get()
    assert web.family() == (keeper, supervisor, mold)
    assert [row.slots for row in bed.store.supervisors()] == [2]
    web.process.signal(signal.SIGTERM)
    web.process.wait(LONG)
    second.process.wait_log("forkrunner .* runs jobs:runner on .* 5 slots", LONG)
    check_gone([supervisor])
    second.process.signal(signal.SIGTERM)
    second.process.wait(LONG)
    web.process.wait_gone(LONG)
    bed.nothing_left()


@pytest.mark.parametrize("where", ["here", "a copy elsewhere"])
def test_a_script_that_imports_the_site_takes_nothing_over(bed: Bed, where: str) -> None:
    web = Web(bed, ONE)
    family = web.family()
    folder = bed.folder
    if where != "here":
        folder = bed.folder / "copy"
        folder.mkdir()
        for name in ("site1.py", "jobs.py"):
            (folder / name).write_text((bed.folder / name).read_text())
    script = bed.cli.start(python=["-c", f"import os; os.chdir({str(folder)!r}); import site1"])
    assert script.wait(LONG) == 0
    assert result(bed, web.get("/job")) == '"old"'
    keeper, supervisor, _ = web.family()
    assert (keeper, supervisor) == family[:2]
    web.stop()


def test_the_reloader_of_django_renews_the_code_and_cuts_no_job(bed: Bed) -> None:
    bed.cli.write(SITE.replace("CODE", "old").partition("if __name__")[0] + IMPORTED, "site1.py")
    bed.cli.write(MANAGE, "manage.py")
    process = bed.cli.start(python=["manage.py", "runserver", str(free_port())])
    process.wait_ps("forkrunner: spare")
    (supervisor,) = process.pids("forkrunner: supervisor")
    held = bed.put("which", {"path": bed.path("go")})
    bed.wait_noted("start", held)

    def renewed() -> bool:
        # Django's reloader may only now take its first look at the file: then this is no change to it
        bed.cli.write(source("new"))
        return "generation 2 of the web server" in process.log

    wait_until(renewed, LONG, "a new generation", interval=2.0)
    process.wait_log("mold [2-9] is up", LONG)
    bed.let_go()
    assert result(bed, held) == '"old"'
    assert result(bed, bed.put("which")) == '"new"'
    assert process.pids("forkrunner: supervisor") == [supervisor]
    process.signal(signal.SIGINT)
    process.wait(LONG)
    process.wait_gone(LONG)
    bed.nothing_left()


@pytest.mark.parametrize("target", ["", ":runner", "../etc:x", "jobs:a-b"])
def test_a_target_that_is_none(cli: Cli, target: str) -> None:
    script = f"from forkrunner import Runner\nfrom forkrunner.wsgi import start\nstart(Runner(), {target!r}, True)\n"
    process = cli.start(python=["-c", script])
    assert process.wait(LONG) == 1
    assert f"TargetError: start: target: expected MODULE:RUNNER, got '{target}'" in process.log


def test_the_endpoint_and_the_application_under_one_roof(bed: Bed) -> None:
    site = SITE.replace("from forkrunner.wsgi import start\n", "").replace("start(runner)\n", "")
    bed.cli.write(site.replace("CODE", "old") + "\napp = runner.wsgi(app, mount='/work/')\n", "site1.py")
    web = Web(bed, ONE)
    id = web.get("/job")
    assert result(bed, id) == '"old"'
    assert '"state": "done"' in web.get(f"/work/{id}")
    assert web.get("/workshop") == "old"
    web.stop()


def test_what_it_costs_a_web_process(bed: Bed) -> None:
    """No thread, no descriptor, no child; and not much time."""
    script = """
import os, sys, time
sys.path.insert(0, "")
from jobs import runner
runner.settings
def state():
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    return len(os.listdir("/proc/self/task")), sorted(os.listdir("/proc/self/fd")), children
before = state()
begun = time.process_time()
from forkrunner.wsgi import start
assert start(runner)
assert start(runner)
print("seconds", time.process_time() - begun)
assert state() == before, (before, state())
"""
    process = bed.cli.start(python=["-c", script])
    assert process.wait(LONG) == 0, process.describe()
    seconds = float(process.wait_log("seconds (.*)")[1])
    assert seconds < 0.05
    # it was there for a moment only
    process.wait_gone(LONG)
    bed.nothing_left()


def test_a_runner_in_a_script_is_found(bed: Bed) -> None:
    """Its module is called __main__, and is found by its file."""
    (bed.folder / "apart").mkdir()
    (bed.folder / "apart" / "script.py").write_text(
        "import os, sys, time\nfrom forkrunner import Runner\nrunner = Runner()\n"
        "@runner.task\ndef which():\n    return 'script'\n"
        "if __name__ == '__main__':\n"
        "    from forkrunner.wsgi import start\n    start(runner)\n    print(which.enqueue().id, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = bed.cli.start(python=["apart/script.py"])
    id = process.wait_log("^[0-9a-f-]{36}$", LONG)[0]
    assert result(bed, id) == '"script"'
    process.signal(signal.SIGTERM)
    process.wait_gone(LONG)


def test_a_runner_that_cannot_be_found(bed: Bed) -> None:
    script = "from forkrunner import Runner\nfrom forkrunner.wsgi import start\nstart([Runner()][0])\n"
    process = bed.cli.start(python=["-c", script])
    assert process.wait(LONG) == 1
    process.wait_log("TargetError: .*target='MODULE:RUNNER'")


def test_it_works_on_postgresql(cli: Cli, postgresql_database: str) -> None:
    with Bed(cli, postgresql_database) as bed:
        write(cli, "old")
        web = Web(bed, ONE)
        web.family()
        assert result(bed, web.get("/job")) == '"old"'
        web.stop()
