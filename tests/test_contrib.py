"""The snippets of contrib/, each as it stands there: a job is made, done and shown; and what can be parsed is."""

from __future__ import annotations

import configparser
import json
import shutil
from pathlib import Path

import pytest

from forkrunner.job import State
from tests.running import LONG, Bed
from tests.support import wait_until
from tests.test_with_web_server import Kind, Web, bed

__all__ = ["bed"]
CONTRIB = Path(__file__).parent.parent / "contrib"
GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--no-control-socket")
SNIPPETS = {
    "with_flask": (*GUNICORN, "with_flask:app"),
    "with_django": (*GUNICORN, "with_django:application"),
    "with_pyramid": (*GUNICORN, "with_pyramid:app"),
    "with_bottle": (*GUNICORN, "with_bottle:app"),
    "with_asgi": ("-m", "uvicorn", "--port", "{port}", "with_asgi:app"),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_for_a_framework(bed: Bed, name: str) -> None:
    shutil.copy(CONTRIB / "frameworks" / f"{name}.py", bed.folder)
    web = Web(bed, Kind(SNIPPETS[name]))
    id = web.get("/")
    assert bed.ended(id).state == State.DONE
    assert json.loads(web.get(f"/jobs/{id}"))["state"] == "done"
    web.process.signal(15)
    web.process.wait(LONG)
    wait_until(lambda: not web.ours(), LONG, "the end of all of ours")


def test_the_configurations_can_be_read() -> None:
    for path in [*(CONTRIB / "systemd").iterdir(), CONTRIB / "supervisord.conf", CONTRIB / "uwsgi.ini"]:
        parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=None)
        parser.read(path)
        assert parser.sections(), path
    compile((CONTRIB / "gunicorn.conf.py").read_text(), "gunicorn.conf.py", "exec")
    named = (CONTRIB / "README.md").read_text() + "README.md __pycache__"
    assert [path.name for path in CONTRIB.iterdir() if path.name not in named] == []
