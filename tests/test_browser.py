"""In a real browser: a file is uploaded, its bar moves, ends, gets lost and comes back. Screenshots go to build/screenshots."""

from __future__ import annotations

import itertools
import json
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from forkrunner.ids import new_id
from forkrunner.records import New
from forkrunner.store import Store
from tests.servers import Browser, Memcached, free_port
from tests.support import Cli, Process, wait_until

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "contrib/trackconvert/samples"
SHOTS = ROOT / "build/screenshots"
SCRIPT = ROOT / "forkrunner/static/forkrunner.js"


class Desk:
    """A browser, a web server that can be restarted, and a supervisor that is started when it is wanted."""

    def __init__(self, cli: Cli, browser: Browser, driver: Any, memcached: Memcached) -> None:
        self.cli, self.browser, self.driver = cli, browser, driver
        self.port = free_port()
        self.database = f"sqlite:///{cli.folder}/jobs.db"
        cli.env |= {
            "PYTHONPATH": f"{ROOT}:{ROOT}/contrib",
            "FORKRUNNER_DATABASE": self.database,
            "FORKRUNNER_RUNTIME_DIR": str(cli.folder / "runtime"),
            "FORKRUNNER_PROGRESS_URL": memcached.url,
            "FORKRUNNER_APP": "trackconvert.jobs:runner",
        }
        self.server = self.serve()

    def serve(self) -> Process:
        server = self.cli.start(self.port, python=["-m", "tests.upload_app"])
        server.wait_log("Running on")
        return server

    def supervise(self) -> Process:
        process = self.cli.start("run", "--slots", 1)
        process.wait_log("forkrunner .* runs")
        return process

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def upload(self, sample: str, seconds: float = 0.0) -> str:
        """Send a file through the form and return the id of the job that the page shows then."""
        self.driver.get(self.url())
        self.driver.find_element(By.NAME, "source").send_keys(str(self.browser.own(SAMPLES / sample)))
        field = self.driver.find_element(By.NAME, "seconds")
        field.clear()
        field.send_keys(str(seconds))
        self.driver.find_element(By.TAG_NAME, "button").click()
        wait_until(lambda: "/watch/" in self.driver.current_url, message="the page of the job")
        id: str = self.driver.current_url.split("/watch/")[1][:36]
        return id

    @property
    def state(self) -> str:
        return self.element.get_attribute("state") or ""

    @property
    def element(self) -> Any:
        return self.driver.find_element(By.TAG_NAME, "forkrunner-progress")

    @property
    def text(self) -> str:
        return " ".join(self.element.text.split())

    def bar(self, name: str) -> Any:
        return self.driver.execute_script(
            "return document.querySelector('progress').getAttribute(arguments[0])", name
        )

    def wait(self, state: str, predicate: Callable[[], object] = lambda: True, timeout: float = 30) -> None:
        wait_until(lambda: self.state == state and predicate(), timeout, f"state {state}, not {self.text!r}")

    def shoot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))


@pytest.fixture(scope="module")
def driver(browser: Browser) -> Iterator[Any]:
    driver = browser.open()
    yield driver
    driver.quit()


@pytest.fixture
def desk(cli: Cli, browser: Browser, driver: Any, memcached: Memcached) -> Desk:
    first, *others = driver.window_handles
    for other in others:
        driver.switch_to.window(other)
        driver.close()
    driver.switch_to.window(first)
    return Desk(cli, browser, driver, memcached)


def test_an_upload_waits_runs_and_ends_with_a_link_to_its_result(desk):
    first = desk.upload("pan.pftrack4.2dt", 0.1)
    desk.wait("queued", lambda: desk.text == "Waiting next")
    desk.upload("stereo.pftrack5.2dt", 4)
    desk.wait("queued", lambda: desk.text == "Waiting 1 ahead")
    assert desk.bar("value") is None, "nobody knows how far it is"
    desk.shoot("queued")
    supervisor = desk.supervise()
    values = set()
    while desk.state != "done":
        values.add(desk.bar("value"))
        if desk.state == "running" and len(values) == 4:
            desk.shoot("running")
            assert "Running" in desk.text
            assert "%" in desk.text
            assert "keyframes" in desk.text
        time.sleep(0.05)  # as a person looks now and then
    assert len(values - {None}) >= 5, values
    assert [float(value) for value in sorted(values - {None})] == sorted(
        float(value) for value in values - {None}
    )
    assert desk.bar("aria-valuenow") == "100"
    desk.shoot("done")
    assert desk.text == "Done Result"
    address = desk.element.find_element(By.TAG_NAME, "a").get_attribute("href")
    assert address.endswith("/stereo.nuke.nk")
    with urllib.request.urlopen(address) as answer:
        assert b"Tracker4" in answer.read()
        assert answer.headers["Content-Disposition"] == "attachment; filename=stereo.nuke.nk"
    desk.driver.get(desk.url(f"/watch/{first}"))
    desk.wait("done")
    assert supervisor.running


def test_a_file_that_cannot_be_converted_ends_with_a_sentence(desk):
    desk.supervise()
    desk.upload("broken.txt")
    desk.wait("failed")
    desk.shoot("failed")
    assert desk.text == "broken.txt:9: expected y to be a number, got '-nan'"


def test_the_bar_is_back_after_a_restart_of_the_server(desk):
    desk.supervise()
    desk.upload("stereo.pftrack5.2dt", 7)
    desk.wait("running", lambda: desk.bar("value"))
    before = float(desk.bar("value"))
    desk.server.signal(9)
    desk.server.wait()
    desk.wait("lost")
    assert desk.text == "Connection lost, trying again"
    assert float(desk.bar("value")) >= before, "what is known stays"
    desk.shoot("lost")
    desk.serve()
    desk.wait("running")
    assert float(desk.bar("value")) > before
    desk.wait("done")


def test_a_server_that_hangs_is_noticed_before_long(desk):
    """It accepts, and does not answer: a bar that stands must not look like one that runs."""
    desk.supervise()
    desk.upload("stereo.pftrack5.2dt", 20)
    desk.wait("running", lambda: desk.bar("value"))
    desk.server.signal(signal.SIGSTOP)
    start = time.monotonic()
    try:
        desk.wait("lost")
        assert time.monotonic() - start < 10
        assert desk.text == "Connection lost, trying again"
    finally:
        desk.server.signal(signal.SIGCONT)
    desk.wait("running")


def test_a_job_that_is_not_due_yet_says_when_and_asks_seldom(desk):
    store = Store(desk.database)
    store.enqueue([New(id := new_id(), "convert", "default", "{}", delay=3600)])
    store.close()
    desk.driver.get(desk.url(f"/watch/{id}"))
    desk.wait("queued", lambda: "until" in desk.text)
    desk.shoot("not-due")
    local = desk.driver.execute_script(
        "return new Date(arguments[0]).toLocaleString([], {dateStyle: 'short', timeStyle: 'short'})",
        json.loads(urllib.request.urlopen(desk.url(f"/jobs/{id}")).read())["due_at"],
    )
    assert desk.text == " ".join(f"Waiting until {local}".split())
    asked = desk.server.log.count(f"GET /jobs/{id}")
    time.sleep(3)  # it would be asked six times
    assert desk.server.log.count(f"GET /jobs/{id}") == asked


@pytest.mark.parametrize(
    "copy",
    [
        "element.replaceWith(element.cloneNode(true))",
        "document.body.innerHTML = document.body.innerHTML",
        "document.body.prepend(element)",
    ],
)
def test_a_copy_of_the_element_has_one_bar_and_one_link(desk, copy):
    """Libraries that change pages keep them as text or as clones, and show those later."""
    desk.upload("pan.pftrack4.2dt", 0.5)
    desk.wait("queued")
    parts = "return ['progress', '[role=status]', '.detail', 'a'].map((one) => arguments[0].querySelectorAll(one).length)"
    for _ in range(2):
        desk.driver.execute_script(f"const [element] = arguments; {copy}", desk.element)
        assert desk.driver.execute_script(parts, desk.element) == [1, 1, 1, 0]
    desk.supervise()
    desk.wait("done")
    desk.driver.execute_script(f"const [element] = arguments; {copy}", desk.element)
    wait_until(lambda: desk.text == "Done Result", message=desk.text)
    assert desk.driver.execute_script(parts, desk.element) == [1, 1, 1, 1]


def test_two_tabs_and_the_hidden_one_asks_nobody(desk):
    desk.supervise()
    id = desk.upload("stereo.pftrack5.2dt", 6)
    desk.wait("running")
    first = desk.driver.current_window_handle

    def asked() -> int:
        return desk.server.log.count(f"GET /jobs/{id}")

    # what the browser does to a tab that nobody sees: headless ones are all seen
    hide = "Object.defineProperty(document, 'hidden', {get: () => %s, configurable: true});"
    fire = "document.dispatchEvent(new Event('visibilitychange'));"
    desk.driver.execute_script(hide % "true" + fire)
    desk.driver.switch_to.new_window("tab")
    desk.driver.get(desk.url(f"/watch/{id}"))
    desk.wait("running", lambda: desk.bar("value"))
    desk.driver.execute_script(hide % "true" + fire)
    time.sleep(0.3)  # an answer may be on its way
    settled = asked()
    time.sleep(1.2)  # longer than between two questions of a tab that is seen
    assert asked() == settled, "both are hidden"
    desk.driver.execute_script(hide % "false" + fire)
    desk.wait("done")
    desk.driver.switch_to.window(first)
    assert desk.state == "running", "it has not asked since"
    desk.driver.execute_script(hide % "false" + fire)
    desk.wait("done")


def test_cancelled_and_unknown(desk):
    id = desk.upload("pan.pftrack4.2dt")
    desk.wait("queued")
    store = Store(desk.database)
    store.cancel(id)
    store.close()
    desk.wait("cancelled")
    assert desk.text == "Cancelled"
    desk.shoot("cancelled")
    desk.driver.get(desk.url("/watch/x"))
    desk.wait("unknown")
    assert desk.text == "There is no such job"
    assert desk.bar("value") == "0", "nothing goes on"
    desk.shoot("unknown")


def test_what_a_screen_reader_gets(desk):
    id = desk.upload("pan.pftrack4.2dt")
    desk.wait("queued")
    desk.supervise()
    desk.wait("done")
    element = desk.element
    bar, status = (
        element.find_element(By.TAG_NAME, "progress"),
        element.find_element(By.CSS_SELECTOR, "[role=status]"),
    )
    assert (bar.aria_role, bar.accessible_name) == ("progressbar", "Conversion")
    assert {name: bar.get_attribute(f"aria-value{name}") for name in ("min", "max", "now")} == {
        "min": "0", "max": "100", "now": "100",
    }  # fmt: skip
    assert status.text == "Done"
    # words of the page's own, another job, and out of the page and in again
    desk.driver.execute_script(
        "const e = arguments[0]; e.dataset.done = 'Fertig'; e.remove(); document.body.append(e)", element
    )
    wait_until(lambda: desk.text == "Fertig Result", message=desk.text)
    desk.driver.execute_script("arguments[0].setAttribute('src', '/jobs/x')", element)
    desk.wait("unknown")
    assert id not in desk.text


def test_a_job_that_fails_stays_where_it_was(desk):
    desk.upload("pan.pftrack4.2dt")
    desk.wait("queued")
    seen = desk.driver.execute_script(
        """
        const [element] = arguments, bar = element.querySelector("progress");
        return ["failed", "cancelled", "pending", "failed"].map((state) => {
            if (state === "failed") element.show({state: "busy", fraction: 0.6});
            element.show({state, fraction: null});
            return [bar.getAttribute("value"), bar.getAttribute("aria-valuenow")];
        });
        """,
        desk.element,
    )
    assert seen == [["0.6", "60"], ["0.6", "60"], [None, None], ["0.6", "60"]]
    desk.driver.execute_script("arguments[0].show({state: 'failed', fraction: null})", desk.element)
    desk.shoot("failed-on-the-way")


def test_all_words_are_the_page_s_to_choose_and_the_label_at_any_time(desk):
    desk.upload("pan.pftrack4.2dt")
    desk.wait("queued")
    texts = desk.driver.execute_script(
        """
        const [element] = arguments;
        const words = {queued: "Wartet", running: "Läuft", ahead: "{} davor", next: "gleich", until: "bis {}", left: "noch {}"};
        Object.assign(element.dataset, words);
        return [
            {state: "pending", position: 3},
            {state: "pending", position: 0},
            {state: "pending", position: null, due_at: "2099-01-31T12:00:00Z"},
            {state: "busy", fraction: 0.25, message: "Bild 3", eta_seconds: 200},
        ].map((job) => (element.show({fraction: null, ...job}), element.textContent.trim().replace(/\\s+/g, " ")));
        """,
        desk.element,
    )
    assert texts[:2] == ["Wartet 3 davor", "Wartet gleich"]
    assert texts[2].startswith("Wartet bis ")
    assert texts[3] == "Läuft 25 % · Bild 3 · noch 3 min"
    bar = desk.element.find_element(By.TAG_NAME, "progress")
    assert bar.accessible_name == "Conversion"
    desk.driver.execute_script("arguments[0].setAttribute('label', 'Umwandlung')", desk.element)
    assert bar.accessible_name == "Umwandlung"


def test_what_a_job_says_is_read_aloud_and_not_all_the_time(desk):
    """Of what is written while the region is live a screen reader is told: the message and the place, now and then."""
    desk.upload("pan.pftrack4.2dt")
    desk.wait("queued", lambda: desk.text == "Waiting next")
    said = desk.driver.execute_async_script(
        """
        const [element, over] = arguments, detail = element.querySelector(".detail"), said = [];
        new MutationObserver(() => {
            if (detail.getAttribute("aria-live") === "polite") said.push([Date.now(), detail.textContent]);
        }).observe(detail, {childList: true});
        element.stop();
        let at = 0;
        const timer = setInterval(() => {
            element.show({state: "busy", fraction: at / 1000, message: at < 60 ? `Frame ${at}` : "Writing", eta_seconds: 9});
            if (++at === 140) {
                clearInterval(timer);
                over(said);
            }
        }, 100);
        """,
        desk.element,
    )
    assert 2 <= len(said) <= 4, said
    assert "Frame" in said[0][1]
    assert "Writing" in said[-1][1], "what is said last is read, and once"
    assert len([text for _, text in said if "Writing" in text]) == 1
    assert all(later[0] - sooner[0] > 4500 for sooner, later in itertools.pairwise(said))


def test_an_address_of_no_job_ends_with_an_error(desk):
    id = desk.upload("pan.pftrack4.2dt")
    desk.wait("queued")
    for src in (f"/jobs?ids={id}", "/jobs/openapi.json", "/jobs"):
        desk.driver.execute_script("arguments[0].setAttribute('src', arguments[1])", desk.element, src)
        desk.wait("unknown")
        assert desk.text == "There is no such job"
        assert desk.bar("value") == "0"
        desk.driver.execute_script(
            "arguments[0].setAttribute('src', arguments[1])", desk.element, f"/jobs/{id}"
        )
        desk.wait("queued")
        assert desk.bar("value") is None


def test_the_function_of_the_module(desk):
    id = desk.upload("pan.pftrack4.2dt", 1.6)
    desk.wait("queued")
    desk.supervise()
    seen = desk.driver.execute_async_script(
        """
        const [id, script, over] = arguments, seen = [];
        const {watch} = await import(script);
        watch(`/jobs/${id}`, {
            onProgress: (job) => seen.push(job.state),
            onDone: (job) => over([seen, job.result_url]),
            onError: (job) => over([seen, job]),
        });
        """,
        id,
        "/jobs/forkrunner.js",
    )
    assert seen[0][-1] == "done"
    assert "busy" in seen[0]
    assert seen[1].startswith("/jobs/files/")
    unknown = desk.driver.execute_async_script(
        "const [script, over] = arguments; (await import(script)).watch('/jobs/x', {onError: over})",
        "/jobs/forkrunner.js",
    )
    assert unknown == {"state": "unknown"}


def test_a_result_is_linked_only_where_its_url_is_one_of_the_web(desk):
    desk.upload("pan.pftrack4.2dt")
    desk.wait("queued")
    links = desk.driver.execute_script(
        """
        return ["http://[", "javascript:alert(1)", "/results/1"].map((result_url) => {
            arguments[0].show({state: "done", fraction: 1, result_url});
            return arguments[0].querySelectorAll("a").length;
        });
        """,
        desk.element,
    )
    assert links == [0, 0, 1]


def test_what_a_failed_job_says_is_text_and_other_words_are_for_other_failures(desk):
    desk.upload("pan.pftrack4.2dt")
    desk.wait("queued")
    hostile = '<img src=x onerror="document.title=1"> & </span>'
    texts = desk.driver.execute_script(
        """
        const [element, error] = arguments;
        element.dataset.failed = "Fehlgeschlagen";
        return [{error, user_error: true}, {error}].map((said) => {
            element.show({state: "failed", fraction: null, ...said});
            return [element.querySelector("[role=status]").textContent, element.querySelectorAll("img").length];
        });
        """,
        desk.element,
        hostile,
    )
    assert texts == [[hostile, 0], ["Fehlgeschlagen", 0]]


def test_the_script_is_small():
    assert SCRIPT.stat().st_size <= 6000
    assert "import " not in SCRIPT.read_text()
