"""The example site: in a browser from upload to download, what it refuses, and `scripts/demo --web` to its end."""

from __future__ import annotations

import contextlib
import hashlib
import http.cookiejar
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from selenium.webdriver.common.by import By
from werkzeug.datastructures import FileStorage
from werkzeug.test import Client, TestResponse, stream_encode_multipart

import trackconvert
from forkrunner import Runner
from tests.servers import Browser, Memcached, free_port
from tests.support import Cli, Process, alive, wait_until
from trackconvert.jobs import result_name
from trackconvert.web import site as site_module
from trackconvert.web.conversions import KEPT, lines_near
from trackconvert.web.site import Site
from trackconvert.web.words import display_name, refusal

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "contrib/trackconvert/samples"
DEMO = ["-P", str(ROOT / "scripts/demo_web.py")]
#: Gives the command a terminal, copies what it says, and types Ctrl-C there when the file `ctrl-c` appears.
TERMINAL = """
import os, pty, select, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
typed = False
while True:
    if select.select([terminal], [], [], 0.05)[0]:
        try:
            data = os.read(terminal, 10000)
        except OSError:
            break
        os.write(1, data)
    if not typed and os.path.exists("ctrl-c"):
        os.write(terminal, b"\\x03")
        typed = True
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def converted(name: str, target: str, folder: Path) -> bytes:
    """Return what the converter makes of a sample by itself."""
    output = folder / "expected"
    trackconvert.convert(SAMPLES / name, target, output)
    return output.read_bytes()


# ------------------------------------------------------------------- the demo, as it is


class Web:
    """`scripts/demo --web`, and a visitor without scripts: cookies, forms, redirects."""

    def __init__(self, process: Process, url: str | None = None) -> None:
        self.process = process
        self.url = url or process.wait_log(r"The site is at (http://\S+)/ ")[1]
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )

    def get(self, url: str) -> str:
        with self._opener.open(self.url + url, timeout=30) as answer:
            found: bytes = answer.read()
        return found.decode()

    def upload(self, *names: str, target: str = "nuke") -> str:
        """Send samples through the form, and return the path of the page that comes then."""
        files = [FileStorage(BytesIO((SAMPLES / name).read_bytes()), name, "files") for name in names]
        body, _, boundary = stream_encode_multipart({"files": files, "format": target})
        kind = f"multipart/form-data; boundary={boundary}"
        request = urllib.request.Request(
            f"{self.url}/", body.read(), {"Content-Type": kind, "Origin": self.url}
        )
        with self._opener.open(request, timeout=30) as answer:
            found: str = answer.url
        return found.removeprefix(self.url)

    def wait_page(self, path: str, pattern: str) -> str:
        """Load a page again and again, as it does by itself without scripts, until it has the words."""
        return wait_until(
            lambda: (page := self.get(path)) if re.search(pattern, page := self.get(path)) else ""
        )


@pytest.fixture
def serve(cli: Cli) -> Callable[..., Web]:
    cli.env |= {
        "PYTHONPATH": str(ROOT / "contrib"),
        "TMPDIR": str(cli.folder),
        "XDG_RUNTIME_DIR": str(cli.folder / "run"),
    }

    def start(*arguments: object, python: tuple[str, ...] = (), **env: str) -> Web:
        return Web(cli.start("--port", 0, *arguments, python=[*python, *DEMO], env=env))

    return start


def finished(web: Web, status: int = 130) -> None:
    assert web.process.wait() == status, web.process.describe()
    web.process.wait_gone()
    assert list(web.process.folder.glob("forkrunner-demo-*")) == []
    assert [path for path in (web.process.folder / "run").rglob("*") if path.is_file()] == []
    assert "Traceback" not in web.process.log


def test_control_c_in_a_terminal_while_a_conversion_runs_leaves_nothing(serve):
    web = serve("--seconds", 60, python=("-c", TERMINAL))
    page = web.upload("stereo.pftrack5.2dt")
    web.wait_page(page, "Converting</span>")
    port = int(web.url.rpartition(":")[2])
    (web.process.folder / "ctrl-c").touch()
    finished(web)
    assert "Interrupted: nothing is left running." in web.process.log
    with socket.create_server(("127.0.0.1", port)):
        pass  # nobody listens any more


@pytest.mark.postgresql
def test_the_demo_uses_postgresql_and_memcached_if_they_are_given(
    serve, postgresql_database, memcached: Memcached, tmp_path
):
    web = serve(
        "--seconds", 1, FORKRUNNER_DATABASE=postgresql_database, FORKRUNNER_PROGRESS_URL=memcached.url
    )
    page = web.wait_page(web.upload("orbit.3de.txt", target="shake"), "Download")
    (address,) = re.findall(r'href="(/results/[^"]+)"', page)
    assert web.get(address).encode() == converted("orbit.3de.txt", "shake", tmp_path)
    web.process.signal(signal.SIGTERM)
    finished(web)


def test_a_supervisor_that_dies_is_told_and_there_again(serve):
    web = serve("--seconds", 0)
    (supervisor,) = web.process.wait_ps("forkrunner: supervisor")
    os.kill(supervisor, signal.SIGKILL)
    web.process.wait_log(r"the supervisor has ended \(SIGKILL\): it is started again")
    web.wait_page(web.upload("orbit.3de.txt"), "Download")
    web.process.signal(signal.SIGTERM)
    finished(web)


@pytest.mark.usefixtures("serve")
def test_what_is_wrong_is_one_line(cli):
    done = cli.run("--port", 0, python=DEMO, env={"FORKRUNNER_SLOTS": "none"}, status=1)
    assert done.stderr.startswith("scripts/demo: slots")
    assert done.stderr.count("\n") == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli.run("--port", taken.getsockname()[1], python=DEMO, status=1)
    assert re.fullmatch(r"scripts/demo: .*Address already in use.*\n", done.stderr)
    assert "--port" in cli.run("--port", "x", python=DEMO, status=2).stderr


# ------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def driver(browser: Browser) -> Iterator[Any]:
    driver = browser.open()
    yield driver
    driver.quit()


class Page:
    """What a visitor does in a browser."""

    def __init__(self, driver: Any, browser: Browser, web: Web) -> None:
        self.driver, self.browser, self.web = driver, browser, web
        self.errors()  # of an earlier page
        driver.get(web.url)

    def choose(self, *names: str, target: str = "nuke") -> None:
        paths = "\n".join(str(self.browser.own(SAMPLES / name)) for name in names)
        self.driver.find_element(By.NAME, "files").send_keys(paths)
        self.driver.find_element(By.CSS_SELECTOR, f"option[value={target}]").click()
        assert [each.text.split()[0] for each in self.find("#chosen li")] == list(names)

    def upload(self, *names: str, target: str = "nuke") -> None:
        self.choose(*names, target=target)
        self.find("#upload > button")[0].click()

    def row(self, name: str) -> Any:
        return self.find(f'.row[data-name="{name}"]')[0]

    def find(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def states(self) -> list[str]:
        # in one step: rows are replaced under our hands
        return list(
            self.driver.execute_script(
                "return [...document.querySelectorAll('[data-live]')].map((e) => e.dataset.state)"
            )
        )

    def wait_states(self, *states: str) -> None:
        wait_until(lambda: self.states() == list(states), message=f"{states}: {self.driver.page_source}")

    def errors(self) -> list[str]:
        """Return what the browser has complained about: refused styles and scripts, for one."""
        self.driver.command_executor._commands["log"] = ("POST", "/session/$sessionId/se/log")
        entries = self.driver.execute("log", {"type": "browser"})["value"]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


def test_upload_bar_and_download(serve, driver, browser, tmp_path):
    page = Page(driver, browser, serve("--seconds", 2))
    page.upload("pan.pftrack4.2dt", target="syntheyes")
    values: set[float] = set()

    def done() -> bool:
        seen = driver.execute_script("return document.querySelector('main progress')?.value")
        values.update([seen] if seen is not None else [])
        return page.states() == ["done"]

    wait_until(done, message=f"{page.states()}")
    assert len(values) >= 4, values
    assert page.find("#told")[0].get_attribute("textContent") == "pan.pftrack4.2dt: done"
    assert "Syntheyes" in page.find("main")[0].text
    assert re.search(r"Trackers\s+8\b", page.find("dl")[0].text)
    address = page.find("a[download]")[0].get_attribute("href")
    assert re.search(r"/results/[A-Za-z0-9_-]{43}/pan\.syntheyes\.txt$", address)
    # whoever knows the address may have it; the cookie is not asked for
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == converted("pan.pftrack4.2dt", "syntheyes", tmp_path)
        assert answer.headers["Content-Disposition"] == "attachment; filename=pan.syntheyes.txt"
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_a_file_that_cannot_be_read_is_told_with_line_and_reason(serve, driver, browser):
    page = Page(driver, browser, serve("--seconds", 0))
    page.upload("broken.txt")
    page.wait_states("failed")
    text = page.find("main")[0].text
    assert "This file cannot be read: line 9." in text
    assert "expected y to be a number, got '-nan'" in text
    assert "-nan" in page.find(".excerpt .wrong code")[0].text
    assert page.find(".excerpt .wrong .number")[0].text == "9"
    assert str(page.web.process.folder) not in driver.page_source
    page.find("main > p a")[0].click()
    wait_until(lambda: page.find("#upload"))
    assert page.find(".row .badge")[0].text == "Not converted"


def test_two_files_at_once_and_nobody_else_sees_them(serve, driver, browser, tmp_path):
    web = serve("--seconds", 1)
    page = Page(driver, browser, web)
    page.upload("orbit.3de.txt", "window.nuke.nk", target="pftrack5")
    wait_until(lambda: len(page.states()) == 2, message="the list")
    job = page.find("forkrunner-progress")[0].get_attribute("src")
    page.wait_states("done", "done")
    links = {each.text: each.get_attribute("href") for each in page.find(".row a.name")}
    for name, link in zip(
        ("window.nuke.nk", "orbit.3de.txt"),
        [each.get_attribute("href") for each in page.find("a[download]")],
        strict=True,
    ):
        with urllib.request.urlopen(link) as answer:
            assert answer.read() == converted(name, "pftrack5", tmp_path)
    other = browser.open()
    try:
        stranger = Page(other, browser, web)
        assert stranger.find(".row") == []
        assert "Nothing yet" in stranger.find("main")[0].text
        other.get(links["orbit.3de.txt"])
        assert stranger.find(".code")[0].text == "404"
        answer = other.execute_async_script(
            "const [url, over] = arguments; fetch(url).then((answer) => over(answer.status))", job
        )
        assert answer == 404
    finally:
        other.quit()
    driver.get(links["orbit.3de.txt"])
    assert page.find("h1")[0].text == "orbit.3de.txt"
    driver.get(f"{web.url}/#conversions")
    assert page.errors() == []


def test_without_scripts_everything_works_by_the_form_and_reloading(serve):
    web = serve("--seconds", 2)
    page = web.upload("orbit.3de.txt")
    assert page.startswith("/conversions/")
    running = web.get(page)
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in running
    web.wait_page(page, r'<progress max="1" value="0\.[0-9]+"')
    assert "refresh" not in web.wait_page(page, "Download")
    assert web.upload("broken.txt", "orbit.3de.txt") == "/#conversions"
    assert len(re.findall("data-live", web.get("/"))) == 3


# --------------------------------------------------------------------- how it looks

SHOTS = ROOT / "build/screenshots"


class Camera:
    """Takes a page as a phone and a desk see it, by day and by night."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        SHOTS.mkdir(parents=True, exist_ok=True)

    def shoot(self, name: str) -> None:
        for width, device in ((390, "phone"), (1280, "desk")):
            for scheme in ("light", "dark"):
                self._see_as(width, scheme)
                size = self.driver.execute_script(
                    "const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]"
                )
                # nothing is cut off, and nothing has to be pushed sideways
                assert size[0] <= width, f"{name} is {size[0]} wide on {width}"
                self._see_as(width, scheme, max(700, min(size[1], 3000)))
                self.driver.save_screenshot(str(SHOTS / f"site-{name}-{device}-{scheme}.png"))
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def _see_as(self, width: int, scheme: str, height: int = 700) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {
                "features": [
                    {"name": "prefers-color-scheme", "value": scheme},
                    {"name": "prefers-reduced-motion", "value": "reduce"},
                ]
            },
        )


def test_every_state_is_shown_whole_on_a_phone_and_on_a_desk(serve, driver, browser):
    web = serve("--seconds", 60, FORKRUNNER_SLOTS="1")
    (supervisor,) = web.process.wait_ps("forkrunner: supervisor")
    camera, page = Camera(driver), Page(driver, browser, web)
    camera.shoot("nothing-yet")
    first = page.browser.own(SAMPLES / "broken.txt")
    many = [shutil.copy(first, first.with_name(f"shot{number}.txt")) for number in range(21)]
    page.find("[name=files]")[0].send_keys("\n".join(map(str, many)))
    wait_until(lambda: "Up to 20 files" in page.find("#problem")[0].text)
    camera.shoot("too-much")
    driver.refresh()

    names = ("pan.pftrack4.2dt", "orbit.3de.txt", "handheld.shake.txt")
    page.choose(*names)
    camera.shoot("chosen")
    page.find("form#upload button")[0].click()
    wait_until(lambda: len(page.states()) == 3, message="the list")
    running = "document.querySelectorAll('forkrunner-progress[state=running] progress[value]').length"
    wait_until(lambda: driver.execute_script(f"return {running}") == 1, message="a bar")
    camera.shoot("list-running")

    # of each end one
    driver.get(f"{web.url}/")
    page.upload("broken.txt")
    page.wait_states("pending")
    camera.shoot("waiting")
    page.find(".cancel button")[0].click()
    page.wait_states("cancelled")
    camera.shoot("cancelled")
    driver.get(f"{web.url}/")
    row = page.row("pan.pftrack4.2dt")
    row.find_element(By.CSS_SELECTOR, ".name").click()
    wait_until(lambda: driver.execute_script(f"return {running}") == 1, message="a bar")
    camera.shoot("running")
    page.find(".cancel button")[0].click()
    page.wait_states("cancelled")
    assert page.find("#told")[0].get_attribute("textContent") in ("", "pan.pftrack4.2dt: cancelled")
    assert alive(supervisor)
    # and from the list
    driver.get(f"{web.url}/")
    wait_until(lambda: driver.execute_script(f"return {running}") == 1, message="the next one")
    page.row("orbit.3de.txt").find_element(By.CSS_SELECTOR, ".cancel button").click()
    wait_until(lambda: page.states()[2] == "cancelled", message="the end")
    assert page.errors() == []
    driver.get(f"{web.url}/nothing/at/all")
    camera.shoot("404")
    web.process.signal(signal.SIGTERM)
    finished(web)


def test_how_it_ended_is_shown_whole_on_a_phone_and_on_a_desk(serve, driver, browser):
    web = serve("--seconds", 0)
    camera, page = Camera(driver), Page(driver, browser, web)
    page.upload("stereo.pftrack5.2dt")
    page.wait_states("done")
    camera.shoot("done")
    driver.get(f"{web.url}/")
    page.upload("broken.txt")
    page.wait_states("failed")
    camera.shoot("refused")
    driver.get(f"{web.url}/")
    long = "a_file_of_a_person_who_likes_long_names_and_no_spaces_in_them_" * 2 + ".txt"
    copy = page.browser.own(SAMPLES / "orbit.3de.txt")
    copy = copy.rename(copy.with_name(long))
    page.find("[name=files]")[0].send_keys(str(copy))
    page.find("form#upload button")[0].click()
    page.wait_states("done")
    camera.shoot("long-name")
    # a row that no site of this release has made; and then none at all
    (database,) = web.process.folder.glob("forkrunner-demo-*/forkrunner.db")
    statements = (
        ("UPDATE trackconvert_conversions SET target = 'x' || target", "500"),
        ("UPDATE trackconvert_conversions SET target = substr(target, 2)", ""),
        ("ALTER TABLE trackconvert_conversions RENAME TO elsewhere", "503"),
        ("ALTER TABLE elsewhere RENAME TO trackconvert_conversions", ""),
    )
    for statement, code in statements:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute(statement)
            connection.commit()
        if code:
            driver.get(f"{web.url}/")
            assert page.find(".code")[0].text == code
            assert "Error" not in driver.page_source
            camera.shoot(code)
    web.process.wait_log("KeyError: 'xnuke'")
    driver.get(f"{web.url}/")
    wait_until(lambda: len(page.states()) == 3)
    camera.shoot("list")
    web.process.signal(signal.SIGTERM)
    assert web.process.wait() == 130
    web.process.wait_gone()


# ----------------------------------------------------------- what it refuses; no process


class Visitor:
    """Asks a site in this process; its jobs wait."""

    def __init__(self, site: Site) -> None:
        self.client = Client(site)

    def upload(self, name: str = "a.txt", content: bytes = b"x", **more: Any) -> TestResponse:
        data = {"files": (BytesIO(content), name), "format": "nuke", **more.pop("data", {})}
        headers = {"Origin": "http://localhost", **more.pop("headers", {})}
        return self.client.post("/", data=data, headers=headers, **more)


@pytest.fixture
def site(sqlite_database: str, tmp_path: Path) -> Iterator[Site]:
    runner = Runner(sqlite_database, runtime_dir=str(tmp_path / "run"), storage=str(tmp_path / "files"))
    site = Site(runner)
    yield site
    site.close()
    runner.close()


@pytest.fixture
def visitor(site: Site) -> Visitor:
    return Visitor(site)


def test_every_page_forbids_foreign_scripts_and_frames(visitor):
    page = visitor.upload(follow_redirects=True).request.path
    for path in ("/", page, "/nothing", "/static/site.css", "/static/../jobs.py", "/static/x"):
        answer = visitor.client.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        if answer.mimetype == "text/html":
            assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", answer.text)
            assert answer.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://["},
        {"Origin": "", "Referer": "http://evil.example/http://localhost/"},
        {"Origin": ""},
    ],
)
def test_what_another_site_sends_is_not_taken(visitor, headers, tmp_path):
    answer = visitor.upload(headers=headers)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers
    assert not (tmp_path / "files").exists()


def test_the_referer_will_do_and_the_cookie_is_out_of_reach(visitor):
    answer = visitor.upload(headers={"Origin": "", "Referer": "http://localhost/"})
    assert answer.status_code == 303
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=Lax"} <= set(cookie.split("; "))
    assert "Secure" in visitor.upload(
        base_url="https://localhost/", headers={"Origin": "https://localhost"}
    ).headers["Set-Cookie"].split("; ")


def test_a_visitor_sees_what_is_his_own(visitor, site):
    page = visitor.upload("shot.txt", follow_redirects=True)
    job = re.findall(r'src="(/progress/[^"]+-[^"]+)" label', page.text)[0]
    assert visitor.client.get(job).status_code == 200
    assert "shot.txt" in visitor.client.get("/").text
    for cookie in ("", "x" * 43, "x", "' or 1=1 --"):
        other = Visitor(site)
        other.client.set_cookie("trackconvert", cookie)
        assert "shot.txt" not in other.client.get("/").text
        assert other.client.get(page.request.path).status_code == 404
        assert other.client.get(job).status_code == 404


HOSTILE = [
    ("../../../etc/passwd", "passwd"),
    (r"C:\Users\me\shot.txt", "shot.txt"),
    ("<script>alert(1)</script>.txt", "script>.txt"),
    ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
    ("O'Neil & <b>", "O'Neil & <b>"),
    ("gpj.\N{RIGHT-TO-LEFT OVERRIDE}exe", "gpj.exe"),
    ("{{ 7 * 7 }}%s", "{{ 7 * 7 }}%s"),
    ("a\r\nSet-Cookie: x=1", "aSet-Cookie: x=1"),
    ("..", ".."),
    ("Aufnahme für Kamera 🎥.txt", "Aufnahme für Kamera 🎥.txt"),
    ("x" * 5000, "x" * 120),
    ("\0\n", "unnamed"),
]


@pytest.mark.parametrize(("sent", "shown"), HOSTILE)
def test_a_file_name_is_shown_and_nothing_else(visitor, tmp_path, sent, shown):
    assert display_name(sent) == shown
    # what no browser puts into a form as it is; see what is left of it
    sent = sent.replace("\\", "/").replace("\r\n", "").replace("\0\n", "\0")
    page = visitor.upload(sent, follow_redirects=True)
    assert f'<h1 class="name">{escape(shown)}</h1>' in page.text
    stored = [path.name for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert sorted(stored) == [hashlib.sha256(b"x").hexdigest(), "database"]


def test_too_much_is_refused_with_a_page_and_for_the_script_with_json(visitor, monkeypatch, tmp_path):
    monkeypatch.setattr(site_module, "LARGEST_UPLOAD", 1000)
    large = visitor.upload(content=b"x" * 2000)
    assert large.status_code == 413
    assert "32 MiB in all" in large.text
    said = visitor.upload(content=b"x" * 2000, headers={"Accept": "application/json"})
    assert (said.status_code, said.mimetype) == (413, "application/json")
    assert "32 MiB" in json.loads(said.text)["error"]
    monkeypatch.undo()
    many = [(BytesIO(b"x"), f"{number}.txt") for number in range(21)]
    assert visitor.upload(data={"files": many}).status_code == 413
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"files": (BytesIO(b""), "")}, "choose a file"),
        ({"format": "exe"}, "choose the format"),
        ({"width": "x"}, "image size"),
        ({"height": "1"}, "image size"),
    ],
)
def test_a_form_that_makes_no_sense(visitor, data, words, tmp_path):
    answer = visitor.upload(data=data)
    assert answer.status_code == 400
    assert words in answer.text
    assert not (tmp_path / "files").exists()


def test_addresses_that_are_none(visitor):
    for path in (
        "/x",
        "/conversions/x",
        "/results/x/y",
        "/results/../../etc/passwd",
        "/progress/x",
        "/static/",
    ):
        assert visitor.client.get(path).status_code == 404, path
    assert "Nothing here" in visitor.client.get("/x").text
    answer = visitor.client.put("/")
    assert (answer.status_code, set(answer.headers["Allow"].split(", "))) == (405, {"GET", "HEAD", "POST"})


def test_with_the_database_away(tmp_path):
    runner = Runner(f"sqlite:///{tmp_path}/nowhere/jobs.db", runtime_dir=str(tmp_path / "run"))
    visitor = Visitor(Site(runner))
    assert visitor.client.get("/").status_code == 200, "for a new visitor nothing is asked"
    answer = visitor.upload()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    runner.close()


def test_after_a_week_the_row_is_gone(visitor, monkeypatch):
    page = visitor.upload("old.txt", follow_redirects=True).request.path
    monkeypatch.setattr("trackconvert.web.conversions.KEPT", -KEPT)
    visitor.upload("new.txt")
    monkeypatch.undo()
    assert visitor.client.get(page).status_code == 404
    assert re.findall(r'data-name="([^"]+)"', visitor.client.get("/").text) == ["new.txt"]


def test_it_works_below_a_path(site):
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.wrappers import Response

    client = Client(DispatcherMiddleware(Response("root"), {"/tracks": site}))
    page = client.get("/tracks/").text
    for address in re.findall(r'(?:href|src|action)="([^"]+)"', page):
        assert address.startswith("/tracks/")
        assert client.get(address).status_code == 200
    data = {"files": (BytesIO(b"x"), "a.txt"), "format": "nuke"}
    answer = client.post("/tracks/", data=data, headers={"Origin": "http://localhost"})
    assert answer.headers["Location"].startswith("/tracks/conversions/")
    assert "Path=/tracks/" in answer.headers["Set-Cookie"]


def test_a_style_sheet_is_kept_for_ever_under_its_version_only(visitor):
    (address,) = re.findall(r'href="(/static/site\.css\?v=[^"]+)"', visitor.client.get("/").text)
    assert "immutable" in visitor.client.get(address).headers["Cache-Control"]
    plain = visitor.client.get("/static/site.css")
    assert plain.headers["Cache-Control"] == "no-cache"
    again = visitor.client.get("/static/site.css", headers={"If-None-Match": plain.headers["ETag"]})
    assert again.status_code == 304


def test_names_and_reasons():
    assert result_name("shot.3de.txt", "nuke") == "shot.nuke.nk"
    assert result_name("My.Shot", "shake") == "My.shake.txt"
    assert result_name(".txt", "pftrack4") == "tracks.pftrack4.2dt"
    assert refusal("a:1.txt", "a:1.txt:9: expected x: y") == (9, "expected x: y")
    assert refusal("a.txt", "b.txt:9: c") == (None, "b.txt:9: c")


def test_lines_of_a_refused_file_are_shown_whatever_they_are():
    content = b"one\r\n\x1b[2J\xff\n" + b"x" * 1000 + b"\n<b>\nlast"
    shown = lines_near(BytesIO(content), 3)
    assert [number for number, _ in shown] == [1, 2, 3, 4, 5]
    assert shown[1][1] == "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"
    assert len(shown[2][1]) == 120
    assert lines_near(BytesIO(content), 99) == []


# ---------------------------------------------------------------------------- its size


def pss(process: Process) -> dict[str, int]:
    """Return the memory of a command and all below it, each shared page divided among those that share it; bytes by title."""
    found = {}
    for each in process.ps():
        if "nursery" in each.title:
            continue
        text = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
        kilobytes = re.search(r"^Pss: +([0-9]+) kB", text, re.MULTILINE)
        assert kilobytes
        found[f"{each.pid} {each.title}"] = int(kilobytes[1]) * 1024
    return found


def test_two_workers_of_gunicorn_and_a_running_job_fit_into_a_third_of_a_small_host(cli, capsys):
    """All of the site, by what it really takes: as it was started, after requests with a job that runs, and idle again."""

    def measure(when: str) -> float:
        found = pss(process)
        total = sum(found.values()) / 1e6
        with capsys.disabled():
            print(f"\nThe example site under gunicorn with 2 workers, {when}: {total:.0f} MB of PSS")
            for title, size in found.items():
                print(f"  {size / 1e6:6.1f} MB  {title[:100]}")
        return total

    cli.env |= {
        "PYTHONPATH": str(ROOT / "contrib"),
        "FORKRUNNER_DATABASE": f"sqlite:///{cli.folder}/jobs.db",
        "FORKRUNNER_RUNTIME_DIR": str(cli.folder / "run"),
        "FORKRUNNER_GRACE_PERIOD": "0s",
        "FORKRUNNER_SLOTS": "1",
        "TRACKCONVERT_DEMO_SECONDS": "60",
    }
    port = free_port()
    process = cli.start(
        *("--config", ROOT / "contrib/trackconvert/gunicorn.conf.py", "--bind", f"127.0.0.1:{port}"),
        "trackconvert.web.app:app",
        python=["-m", "gunicorn"],
    )
    process.wait_log("forkrunner .* runs trackconvert.jobs:runner")
    process.wait_ps("forkrunner: spare")
    # the target is 120
    assert measure("idle, as started") <= 130
    web = Web(process, f"http://127.0.0.1:{port}")
    path = ""
    for _ in range(8):  # so that both workers have done what they do
        path = web.upload("stereo.pftrack5.2dt")
        web.get("/")
    process.wait_ps("forkrunner: job")
    web.wait_page(path, "Waiting|Converting")
    # a worker that counts references in what it shares makes it its own; some 25 MB are SQLAlchemy's, once more in the supervisor
    assert measure("a job running") <= 165
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    process.wait_gone(10)
