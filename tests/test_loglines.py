"""Lines of Python's logging in a job say of which job they are; the mold does not pay for that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.running import SOURCE, Bed
from tests.support import Cli

TASKS = '''
# --------------------------------------------------------------------------- test_loglines.py


@runner.task
def is_loaded() -> bool:
    return "logging" in sys.modules


@runner.task
def log_plainly() -> None:
    """Without any handler: what logging does at the last."""
    import logging

    logging.getLogger("app").warning("half of %d", 8)


@runner.task
def log_formatted() -> None:
    import logging

    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("app").info("two\\nlines", extra={"job_id": "mine", "task": 3})
    if not os.fork():
        logging.info("in a child")
        os._exit(0)
    os.wait()
    try:
        raise ValueError("no")
    except ValueError:
        logging.exception("failed")


@runner.task
def log_by_own_format() -> None:
    import logging

    logging.basicConfig(level="INFO", format="%(forkrunner_task)s/%(forkrunner_attempt)d %(message)s")
    logging.info("own")


@runner.task
def log_as_json() -> None:
    import json
    import logging

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return json.dumps({key: value for key, value in vars(record).items() if "forkrunner" in key})

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Formatter())
    logging.getLogger().addHandler(handler)
    logging.error("it")
'''


@pytest.fixture(params=["in the job", "at import"])
def bed(request: pytest.FixtureRequest, cli: Cli, sqlite_database: str) -> Any:
    source = SOURCE.read_text() + TASKS
    if request.param == "at import":
        source += "import logging\nlogging.getLogger('app').warning('while it is imported')\n"
    with Bed(cli, sqlite_database, source=source) as bed:
        yield bed


def test_lines_of_a_job_carry_its_id_its_task_and_its_attempt(
    bed: Bed, request: pytest.FixtureRequest
) -> None:
    supervisor = bed.start()

    def lines(task: str) -> tuple[str, list[str]]:
        id = bed.put(task)
        (attempt,) = bed.ended(id).attempts
        assert attempt.outcome == "done", attempt
        return f"[{id} {task} attempt 1] ", str(attempt.output_tail).splitlines()

    at_import = "at import" in request.node.name
    assert bed.ended(bed.put("is_loaded")).result == str(at_import).lower(), (
        "the mold has not loaded it by itself"
    )
    prefix, found = lines("log_plainly")
    assert found == [f"{prefix}half of 8"]
    prefix, found = lines("log_formatted")
    assert found[:2] == [f"{prefix}INFO app: two", "lines"]
    assert found[2:4] == [f"{prefix}INFO root: in a child", f"{prefix}ERROR root: failed"]
    assert found[4] == "Traceback (most recent call last):"
    assert found[-1] == "ValueError: no"
    assert lines("log_by_own_format")[1] == ["log_by_own_format/1 own"]
    prefix, (line,) = lines("log_as_json")
    facts = json.loads(line)
    assert set(facts) == {"forkrunner_job", "forkrunner_task", "forkrunner_attempt"}
    assert (facts["forkrunner_task"], facts["forkrunner_attempt"]) == ("log_as_json", 1)
    assert ("while it is imported" in supervisor.stderr) == at_import
    assert "] while it is imported" not in supervisor.stderr
    bed.stop(supervisor)
