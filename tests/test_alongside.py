"""`forkrunner with -- COMMAND`: which end ends what, and with which exit status."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from forkrunner.job import State
from tests.running import LONG, SOURCE, Bed, check_gone
from tests.support import Cli, Process, alive, wait_until

#: Says which signals it gets; ends itself on TERM with 7.
COMMAND = """
import signal, sys, time
def told(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(7)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, told)
print("begun", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def bed(cli: Cli, sqlite_database: str) -> Iterator[Bed]:
    with Bed(cli, sqlite_database, source=SOURCE.read_text()) as bed:
        cli.write(COMMAND, "command.py")
        yield bed


def start(bed: Bed, *command: object, ready: bool = True) -> Process:
    process = bed.cli.start(
        "with", "jobs:runner", "--slots", 2, "--", *(command or (sys.executable, "command.py"))
    )
    if ready:
        process.wait_log("runs jobs:runner", LONG)
        process.wait_log("begun", LONG)
    return process


def ended(bed: Bed, process: Process, status: int) -> None:
    assert process.wait(LONG) == status, process.describe()
    process.wait_gone()
    bed.nothing_left()


def test_term_ends_both_and_a_job_is_done_before(bed: Bed) -> None:
    process = start(bed)
    assert bed.ended(bed.put("work")).state == State.DONE
    process.signal(signal.SIGTERM)
    ended(bed, process, 7)
    assert process.stdout.count("got SIGTERM") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_job_has_the_grace_period(bed: Bed, number: int) -> None:
    """The command, which ends at once, is no second signal for the supervisor."""
    bed.cli.env["FORKRUNNER_GRACE_PERIOD"] = "60"
    process = start(bed)
    id = bed.put("hold", {"path": bed.path("go")})
    bed.wait_noted("start", id)
    (command,) = process.pids(r"^\S+ command.py$")
    process.signal(number)
    if number == signal.SIGINT:  # which this one does not take for an order
        process.wait_log("got SIGINT", LONG)
        os.kill(command, signal.SIGTERM)
    wait_until(lambda: not alive(command), LONG, "the end of the command")
    bed.let_go()
    assert bed.ended(id).state == State.DONE
    ended(bed, process, 7)


def test_term_twice_kills_a_running_job(bed: Bed) -> None:
    bed.cli.env |= {"FORKRUNNER_GRACE_PERIOD": "60", "FORKRUNNER_GRACE": "0.1"}
    process = start(bed)
    id = bed.put("hold", {"path": bed.path("never")})
    bed.wait_noted("start", id)
    process.signal(signal.SIGTERM)
    process.wait_log(r"stopping \(SIGTERM\)", LONG)
    process.signal(signal.SIGTERM)
    process.wait_log("killing 1 running", LONG)
    process.wait(LONG)
    process.wait_gone()


def test_the_command_ends_first(bed: Bed) -> None:
    process = start(bed)
    (command,) = process.pids(r"^\S+ command.py$")
    os.kill(command, signal.SIGKILL)
    ended(bed, process, 128 + 9)


def test_the_command_ends_by_itself(bed: Bed) -> None:
    ended(bed, start(bed, "sh", "-c", "exit 3", ready=False), 3)


def test_the_supervisor_ends_first(bed: Bed) -> None:
    process = start(bed)
    (supervisor,) = process.pids("forkrunner: supervisor")
    os.kill(supervisor, signal.SIGKILL)
    assert process.wait(LONG) == 128 + 9
    assert "got SIGTERM" in process.stdout
    process.wait_gone()


def test_the_application_does_not_import(bed: Bed) -> None:
    bed.cli.write("import nothing_of_that_name\n")
    process = start(bed, ready=False)
    ended(bed, process, 2)
    assert "does not import" in process.stderr or "nothing_of_that_name" in process.stderr


def test_a_command_that_does_not_exist(bed: Bed) -> None:
    process = start(bed, "/nowhere/at/all", ready=False)
    ended(bed, process, 127)
    assert "forkrunner: /nowhere/at/all: No such file or directory" in process.stderr


def test_hup_and_usr1_are_passed_on(bed: Bed) -> None:
    process = start(bed)
    process.signal(signal.SIGUSR1)
    process.wait_log("got SIGUSR1", LONG)
    process.signal(signal.SIGHUP)
    process.wait_log("got SIGHUP", LONG)
    process.wait_log("mold 2 is up", LONG)
    process.signal(signal.SIGTERM)
    ended(bed, process, 7)


def test_kill_leaves_nothing(bed: Bed) -> None:
    process = start(bed)
    found = [one.pid for one in process.ps()]
    process.signal(signal.SIGKILL)
    check_gone(found)
    process.wait_gone()


def test_nothing_behind_the_dashes(bed: Bed) -> None:
    found = bed.cli.run("with", "jobs:runner", status=2)
    assert "expected a command behind --" in found.stderr


def test_as_process_1_it_reaps_orphans(bed: Bed) -> None:
    """In a pid namespace of its own, as in a container."""
    # it is an orphan when its parent has ended, and then ends itself; that it is a zombie for a moment is no fault
    script = (
        "(sh -c 'echo $$ >orphan; sleep 0.05' & exit); until [ -s orphan ]; do sleep 0.01; done; "
        "while [ -d /proc/$(cat orphan) ]; do sleep 0.01; done; echo reaped; exit 5"
    )
    environment = bed.cli.env
    command = ["unshare", "-pf", "--mount-proc", "--kill-child", sys.executable, "-m", "forkrunner"]
    command += ["with", "jobs:runner", "--", "sh", "-c", script]
    done = subprocess.run(
        command, cwd=bed.folder, env=environment, capture_output=True, text=True, timeout=LONG
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout.split() == ["reaped"]
    assert "stopped" in done.stderr or "runs jobs:runner" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a namespace")
@pytest.mark.parametrize(("who", "status"), [("container", 7), ("command", 137), ("supervisor", 137)])
def test_as_process_1_either_end_is_the_end_of_all(bed: Bed, who: str, status: int) -> None:
    """As it is stopped from outside, or by the death of one of the two."""
    command = ["/usr/bin/unshare", "-pf", "--mount-proc", "--kill-child", sys.executable, "-m", "forkrunner"]
    command += ["with", "jobs:runner", "--slots", "2", "--", sys.executable, "command.py"]
    process = bed.cli.start(python=["-c", f"import os; os.execv({command[0]!r}, {command!r})"])
    process.wait_log("runs jobs:runner", LONG)
    process.wait_log("begun", LONG)
    assert bed.ended(bed.put("work")).state == State.DONE
    pattern = {"container": r"^\S+ -m forkrunner with", "command": r"^\S+ command.py$"}
    found = [
        one
        for one in process.ps()
        if re.search(pattern.get(who, "forkrunner: supervisor"), one.title) and one.pid != process.pid
    ]
    os.kill(found[-1].pid, signal.SIGTERM if who == "container" else signal.SIGKILL)
    assert process.wait(LONG) == status, process.describe()
    process.wait_gone()


def test_status_check_is_a_probe(bed: Bed) -> None:
    assert "no supervisor runs" in bed.cli.run("status", "jobs:runner", "--check", status=1).stderr
    process = bed.start()
    found = bed.cli.run("status", "jobs:runner", "--check", "--json")
    assert found.json == {"alive": True, "pids": [process.pid]}
    bed.stop(process)
    assert bed.cli.run("status", "jobs:runner", "--check", "--json", status=1).json["alive"] is False


def test_a_service_manager_is_told(bed: Bed) -> None:
    """Type=notify and WatchdogSec, as systemd asks for them; no job has the variables."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0forkrunner-test-{os.getpid()}")
        manager.settimeout(LONG)
        env = {"NOTIFY_SOCKET": f"@forkrunner-test-{os.getpid()}", "WATCHDOG_USEC": "400000"}
        process = bed.start(env=env)
        heard = [manager.recv(100) for _ in range(4)]
        assert heard[0] == b"READY=1"
        assert set(heard[1:]) == {b"WATCHDOG=1"}
        (mold,) = process.pids("forkrunner: mold")
        with open(f"/proc/{mold}/environ", "rb") as file:
            assert b"NOTIFY_SOCKET" not in file.read()
        process.signal(signal.SIGTERM)
        wait_until(lambda: manager.recv(100) == b"STOPPING=1", LONG)
        assert process.wait(LONG) == 0
        process.wait_gone()
