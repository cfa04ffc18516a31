"""The snippets of contrib/, each as it stands there: a job is made, done and shown; and what can be parsed is."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from forkrunner.cli import main as commands_of_forkrunner
from forkrunner.job import State
from tests.running import LONG, Bed
from tests.servers import find, free_port
from tests.support import need, wait_until
from tests.test_with_web_server import SITE, Kind, Web, become, bed

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
    web.process.signal(signal.SIGTERM)
    web.process.wait(LONG)
    wait_until(lambda: not web.ours(), LONG, "the end of all of ours")


def as_here(bed: Bed, name: str, port: int) -> str:
    """Return a configuration with the folder, environment and port of this test in it."""
    text = (CONTRIB / name).read_text()
    for there, here in (
        ("/srv/site/venv", sys.prefix),
        ("/srv/site", str(bed.folder)),
        ("/run/lighttpd", str(bed.folder)),
        ("127.0.0.1:8000", f"127.0.0.1:{port}"),
    ):
        text = text.replace(there, here)
    return text


UWSGI = find(f"uwsgi_python3{sys.version_info[1]}")
CONFIGURATIONS: dict[str, tuple[str | None, ...]] = {
    "gunicorn.conf.py": (sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "wsgi:app"),
    "uwsgi.ini": (UWSGI, "--ini", "uwsgi.ini"),
    "lighttpd.conf": (find("lighttpd"), "-D", "-f", "lighttpd.conf"),
}
PACKAGES_OF = {"uwsgi.ini": "uwsgi-plugin-python3", "lighttpd.conf": "lighttpd"}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_of_a_web_server(bed: Bed, name: str) -> None:
    """As it stands there, and it serves wsgi.py with its jobs."""
    command = [word for word in CONFIGURATIONS[name] if word is not None]
    need(PACKAGES_OF.get(name, ""), len(command) == len(CONFIGURATIONS[name]))
    port = free_port()
    bed.cli.write(SITE.replace("CODE", "old"), "wsgi.py")
    text = as_here(bed, name, port)
    if name == "lighttpd.conf":
        text = f'server.document-root = "{bed.folder}"\nserver.port = {port}\n{text}'
    bed.cli.write(text, name)
    web = Web(bed, Kind(become(*command)), port)
    web.family()
    assert bed.ended(web.get("/job")).result == '"old"'
    web.process.signal(signal.SIGTERM)
    web.process.wait(LONG)
    web.process.wait_gone(LONG)
    bed.nothing_left()


def test_nginx_hands_on(bed: Bed) -> None:
    nginx = find("nginx")
    need("nginx-light", nginx)
    assert nginx
    shutil.copy(CONTRIB / "frameworks" / "with_flask.py", bed.folder)
    web = Web(bed, Kind(SNIPPETS["with_flask"]))
    port = free_port()
    text = as_here(bed, "nginx.conf", web.port).replace("listen 80;", f"listen 127.0.0.1:{port};")
    paths = [f"{kind}_temp_path {bed.folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")]
    text = f"client_body_temp_path {bed.folder}/body; {' '.join(paths)}\naccess_log off;\n{text}"
    user = "user root;" if os.geteuid() == 0 else ""
    head = f"daemon off; pid {bed.folder}/nginx.pid; error_log stderr; {user} events {{}}"
    bed.cli.write(f"{head}\nhttp {{\n{text}\n}}\n", "nginx.conf")
    front = bed.cli.start(python=[*become(nginx, "-c", bed.path("nginx.conf"), "-p", str(bed.folder))])
    url = f"http://127.0.0.1:{port}"

    def made() -> str:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/") as answer:
            return str(answer.read().decode())
        return ""

    id = wait_until(made, LONG)
    bed.ended(id)
    with urllib.request.urlopen(f"{url}/jobs/{id}?wait=30") as answer:
        assert json.load(answer)["state"] == "done"
    for process in (front, web.process):
        process.signal(signal.SIGTERM)
        process.wait(LONG)
    web.process.wait_gone(LONG)


@pytest.mark.parametrize("name", ["forkrunner.service", "site.service"])
def test_a_unit_of_systemd(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    need("systemd", analyze)
    assert analyze
    text = (CONTRIB / "systemd" / name).read_text()
    # what it names has to be there; users are not looked up
    text = re.sub(r"/srv/site/venv/bin/\w+", "/bin/true", text).replace("=/srv/site", "=/tmp")
    (tmp_path / name).write_text(text)
    done = subprocess.run([analyze, "verify", str(tmp_path / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_containers_ask_for_what_there_is() -> None:
    """The files can be read, and each command in them is one that forkrunner has."""
    compose = yaml.safe_load((CONTRIB / "compose.yaml").read_text())
    pod = yaml.safe_load((CONTRIB / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
    (jobs,), (first,) = pod["containers"], pod["initContainers"]
    probes = [jobs[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "readiness", "liveness")]
    dockerfile = (CONTRIB / "Dockerfile").read_text()
    words = [json.loads(text) for text in re.findall(r"CMD (\[.*\])", dockerfile)]
    commands = [*words, jobs["command"], first["command"], *probes, compose["services"]["migrate"]["command"]]
    assert {command[1] for command in commands} == {"status", "with", "run", "migrate"}
    for command in commands:
        assert command[0] == "forkrunner"
        assert command[1] in commands_of_forkrunner.commands
    assert set(compose["services"]["site"]["depends_on"]) < set(compose["services"])


def test_the_configurations_can_be_read() -> None:
    for path in [*(CONTRIB / "systemd").iterdir(), CONTRIB / "supervisord.conf", CONTRIB / "uwsgi.ini"]:
        parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=None)
        parser.read(path)
        assert parser.sections(), path
    compile((CONTRIB / "gunicorn.conf.py").read_text(), "gunicorn.conf.py", "exec")
    named = (CONTRIB / "README.md").read_text() + "README.md __pycache__"
    assert [path.name for path in CONTRIB.iterdir() if path.name not in named] == []
