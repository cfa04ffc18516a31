"""The HTTP endpoint: what it says, to whom, how often it asks whom, and that its OpenAPI document tells the truth."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import negative_data_rejection
from werkzeug.exceptions import Unauthorized
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, EnvironBuilder, TestResponse, create_environ
from werkzeug.wrappers import Request, Response

from forkrunner import Runner
from forkrunner.asgi import ProgressASGI, progress_asgi
from forkrunner.ids import new_id
from forkrunner.job import Next, State
from forkrunner.places import Reader, place
from forkrunner.records import Claim, Ending
from forkrunner.wsgi import ProgressApp, progress_app, public_error
from tests.servers import Postgres
from tests.support import wait_until
from tests.test_store import claim_one, ending, put, supervisor_row
from tests.test_watch import end, say

NO_JOB = {"error": "there is no such job"}


class Site:
    """A runner with the endpoint mounted at /jobs, and the statements that its store sends."""

    def __init__(self, database: str, folder: Path) -> None:
        self.runner = Runner(database, runtime_dir=str(folder / "run"))
        self.runner.store.migrate()
        self.runner.store.register(supervisor_row("a"), 60)
        Path(place(self.runner.settings)["folder"]).mkdir(parents=True)
        self.sent: list[str] = []
        engine = self.runner.store._transactions.open()
        sa.event.listen(engine, "before_cursor_execute", lambda *facts: self.sent.append(facts[2]))

    def mount(self, app: Any) -> Client:
        return Client(DispatcherMiddleware(Response("the site"), {"/jobs": app}), Response)

    def client(self, **options: Any) -> Client:
        return self.mount(progress_app(self.runner, **options))

    def put(self) -> str:
        (id,) = put(self.runner.store)
        return id

    def busy(self, **said: object) -> tuple[str, Claim]:
        id = self.put()
        claim = claim_one(self.runner.store)
        assert claim.id == id
        if said:
            say(self.runner, id, **said)
        return id, claim


@pytest.fixture
def site(database: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(database, tmp_path)
    yield site
    site.runner.close()


@pytest.fixture
def local(sqlite_database: str, tmp_path: Path) -> Iterator[Site]:
    """The same, for what has nothing to do with the kind of the database."""
    site = Site(sqlite_database, tmp_path)
    yield site
    site.runner.close()


def body(response: TestResponse, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    assert response.mimetype == "application/json"
    return json.loads(response.text)


# ------------------------------------------------------------------------------ one job


def test_a_job_from_the_queue_to_its_result(site):
    client = site.client(result_url="/results/{id}")
    first, id = sorted(site.put() for _ in range(2))
    waiting = body(client.get(f"/jobs/{id}"))
    assert waiting.keys() == {
        *("id", "state", "fraction", "message", "detail", "attempt", "position", "due_at"),
        *("started_at", "updated_at", "eta_seconds", "poll_after_ms"),
    }
    assert (waiting["id"], waiting["state"], waiting["position"], waiting["fraction"]) == (
        id,
        "pending",
        1,
        None,
    )
    end(site.runner.store, claim_one(site.runner.store), State.DONE)
    claim = claim_one(site.runner.store)
    say(site.runner, id, fraction=0.25, message="Frame <3>", detail={"frame": 3}, eta_seconds=7.5)
    running = body(client.get(f"/jobs/{id}"))
    assert (running["state"], running["fraction"], running["message"]) == ("busy", 0.25, "Frame <3>")
    assert (running["detail"], running["eta_seconds"], running["attempt"]) == ({"frame": 3}, 7.5, 1)
    assert running["poll_after_ms"] == 500
    end(site.runner.store, claim, State.DONE)
    site.runner.watcher._reader.drop(id)
    done = body(client.get(f"/jobs/{id}"))
    assert (done["state"], done["fraction"], done["poll_after_ms"]) == ("done", 1.0, None)
    assert done["result_url"] == f"/results/{id}"
    assert first != id


def test_a_failed_job_tells_users_one_sentence_and_nothing_that_was_raised(site):
    id, claim = site.busy()
    end(site.runner.store, claim, State.FAILED, error="KeyError: 'password' in /srv/app/jobs.py")
    found = body(site.client(result_url="/results/{id}").get(f"/jobs/{id}"))
    assert found["state"] == "failed"
    assert found["error"] == public_error(found)
    assert "result_url" not in found
    assert "KeyError" not in json.dumps(found)


def test_a_result_url_may_be_worked_out_from_the_job(local):
    id, claim = local.busy()
    end(local.runner.store, claim, State.DONE, result='{"path": "/x.nk"}')
    client = local.client(result_url=lambda job: f"/files{job.result['path']}")
    assert body(client.get(f"/jobs/{id}"))["result_url"] == "/files/x.nk"
    assert "result_url" not in body(local.client(result_url=lambda job: None).get(f"/jobs/{id}"))


def test_while_there_is_progress_no_statement_is_sent(site):
    id, _ = site.busy(fraction=0.5)
    client = site.client(authorize=lambda request, job: job.id == id)
    site.sent.clear()
    for _ in range(20):
        assert body(client.get(f"/jobs/{id}"))["fraction"] == 0.5
        assert body(client.get(f"/jobs?ids={id}"))["jobs"][0]["fraction"] == 0.5
    assert site.sent == []


def test_unknown_malformed_and_forbidden_ids_are_alike_and_cost_alike(site):
    known = site.put()
    client = site.client(authorize=lambda request, job: "allow" in request.args)
    answers = []
    for path in (
        f"/jobs/{known}",
        f"/jobs/{new_id()}",
        "/jobs/x",
        "/jobs/..%2f..%2fetc",
        "/jobs/" + "a" * 3000,
        "/jobs/a/b",
    ):
        site.sent.clear()
        response = client.get(path)
        assert body(response, 404) == NO_JOB
        answers.append((len(site.sent), sorted(response.headers.items()), response.data))
    assert answers == answers[:1] * len(answers)
    assert answers[0][0] == 1
    assert body(client.get(f"/jobs/{known.upper()}?allow"))["id"] == known


def test_authorize_may_answer_by_itself(local):
    def refuse(request: Any, job: Any) -> bool:
        raise Unauthorized

    response = local.client(authorize=refuse).get(f"/jobs/{local.put()}")
    assert response.status_code == 401


# -------------------------------------------------------------------------------- many


def test_many_in_one_request_with_one_statement(site):
    id, claim = site.busy(fraction=0.5)
    end(site.runner.store, claim, State.DONE)
    site.runner.watcher._reader.drop(id)
    busy, _ = site.busy(fraction=0.25)
    pending, nobody = site.put(), new_id()
    site.sent.clear()
    found = body(site.client().get(f"/jobs?ids={id},{busy},{pending},{nobody},x,{busy}"))
    assert len(site.sent) == 1
    assert [job["state"] for job in found["jobs"]] == ["done", "busy", "pending"]
    assert found["missing"] == [nobody, "x"]
    assert found["poll_after_ms"] == 500
    hidden = body(site.client(authorize=lambda request, job: job.id == busy).get(f"/jobs/?ids={id},{busy}"))
    assert ([job["id"] for job in hidden["jobs"]], hidden["missing"]) == ([busy], [id])


@pytest.mark.parametrize("query", ["", "?ids=", "?ids=,,", "?ids=" + ",".join(map(str, range(101)))])
def test_no_ids_or_too_many(local, query):
    assert "ids" in body(local.client().get(f"/jobs{query}"), 400)["error"]


# ----------------------------------------------------------------------------- headers


def test_etag_and_304(local):
    id, _ = local.busy(fraction=0.5)
    client = local.client()
    first = client.get(f"/jobs/{id}")
    assert first.headers["Cache-Control"] == "no-store"
    again = client.get(f"/jobs/{id}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    say(local.runner, id, fraction=0.75)
    assert client.get(f"/jobs/{id}", headers={"If-None-Match": first.headers["ETag"]}).status_code == 200
    head = client.head(f"/jobs/{id}")
    assert (head.status_code, head.data) == (200, b"")


def test_far_back_in_the_queue_one_is_to_ask_rarely(local):
    ids = sorted(put(local.runner.store, 60))
    near, far = (local.client().get(f"/jobs/{id}") for id in (ids[0], ids[-1]))
    assert body(near)["poll_after_ms"] == 500
    assert "Retry-After" not in near.headers
    assert body(far)["poll_after_ms"] == 500 + 59 * 100
    assert far.headers["Retry-After"] == "6"


def test_of_a_job_that_is_not_due_yet_it_says_when_and_one_is_to_ask_rarely(site):
    (late,), (soon,), (now,) = (put(site.runner.store, now=None, delay=delay) for delay in (3600, 5, 0))
    client = site.client()
    answer = client.get(f"/jobs/{late}")
    found = body(answer)
    ahead = (datetime.fromisoformat(found["due_at"]) - datetime.now(UTC)).total_seconds()
    assert 3500 < ahead <= 3600
    assert (found["position"], found["poll_after_ms"], answer.headers["Retry-After"]) == (None, 30_000, "30")
    assert 3000 < body(client.get(f"/jobs/{soon}"))["poll_after_ms"] <= 5500
    many = body(client.get(f"/jobs?ids={late},{soon}"))
    assert 3000 < many["poll_after_ms"] <= 5500
    found = body(client.get(f"/jobs/{now}"))
    assert (found["due_at"], found["position"], found["poll_after_ms"]) == (None, 0, 500)


def test_of_a_job_that_is_tried_again_it_says_when(site):
    id, claim = site.busy()
    found = ending(claim, State.FAILED)
    site.runner.store.finish([Ending(found.attempt, Next(State.PENDING, 1, 0, delay=600), found.task)])
    found = body(site.client().get(f"/jobs/{id}"))
    assert (found["state"], found["attempt"], found["position"]) == ("pending", 1, None)
    assert found["due_at"] > found["started_at"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods(local, method):
    response = local.client().open(f"/jobs/{local.put()}", method=method)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_no_other_site_may_read_unless_it_is_named(local):
    id = local.put()
    header = "Access-Control-Allow-Origin"
    asked = {"Origin": "https://shop.example"}
    assert header not in local.client().get(f"/jobs/{id}", headers=asked).headers
    client = local.client(cors=["https://shop.example"])
    allowed = client.get(f"/jobs/{id}", headers=asked)
    assert allowed.headers[header] == "https://shop.example"
    assert "Origin" in allowed.headers["Vary"]
    assert client.get(f"/jobs/{new_id()}", headers=asked).headers[header] == "https://shop.example"
    refused = client.get(f"/jobs/{id}", headers={"Origin": "https://other.example"})
    assert header not in refused.headers
    assert "Origin" in refused.headers["Vary"]
    preflight = client.options(f"/jobs/{id}", headers=asked)
    assert (preflight.status_code, preflight.headers["Access-Control-Allow-Headers"]) == (
        204,
        "If-None-Match",
    )
    assert local.client(cors="*").get(f"/jobs/{id}", headers=asked).headers[header] == "*"


@pytest.mark.parametrize("origin", ["https://shop.example/", "HTTPS://Shop.example"])
def test_an_origin_is_taken_as_browsers_send_it(local, origin):
    answer = local.client(cors=[origin]).get(
        f"/jobs/{local.put()}", headers={"Origin": "https://shop.example"}
    )
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"


@pytest.mark.parametrize("origins", ["shop.example", "https://shop.example/site", ["*", "https://"], [3]])
def test_what_is_no_origin_is_refused_at_once(local, origins):
    with pytest.raises(ValueError, match=r"cors: expected origins as https://shop\.example, or .*, got "):
        progress_app(local.runner, cors=origins)


@pytest.mark.parametrize("make", [progress_app, progress_asgi, ProgressApp, ProgressASGI])
def test_what_is_no_runner_is_refused_at_once(make):
    with pytest.raises(TypeError, match=r"expected a forkrunner\.Runner, got str"):
        make("jobs:runner")


@pytest.mark.parametrize("mount", ["/", "", "jobs", None, "//"])
def test_what_is_no_place_to_mount_at_is_refused_with_its_name(local, mount):
    with pytest.raises(ValueError, match=f"mount: expected a path as /jobs, got {mount!r}$"):
        local.runner.wsgi(lambda environ, start_response: [], mount=mount, start=False)


@pytest.mark.postgresql
def test_with_the_database_away(postgresql_database, tmp_path, postgres: Postgres):
    site = Site(postgresql_database, tmp_path)
    busy, _ = site.busy(fraction=0.5)
    pending, client = site.put(), site.client()
    site.runner.close()
    postgres.stop("fast")
    assert body(client.get(f"/jobs/{busy}"))["fraction"] == 0.5
    response = client.get(f"/jobs/{pending}")
    assert "database" in body(response, 503)["error"]
    assert response.headers["Retry-After"] == "3"
    site.runner.close()


def test_with_a_database_that_is_broken_users_are_told_nothing_of_it(tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"no database at all" * 1000)
    runner = Runner(f"sqlite:///{tmp_path}/jobs.db", runtime_dir=str(tmp_path / "run"))
    client = Client(progress_app(runner, cors="*"), Response)
    for path in (f"/{new_id()}", f"/?ids={new_id()}", "/x", "/files/" + "a" * 43 + "/name"):
        told = io.StringIO()
        answer = client.get(path, errors_stream=told, headers={"Origin": "https://shop.example"})
        assert body(answer, 503) == {"error": "the database does not answer, try again later"}
        assert (answer.headers["Retry-After"], answer.headers["Access-Control-Allow-Origin"]) == ("3", "*")
        assert "jobs.db: file is not a database" in told.getvalue(), "who runs the site is told"
    runner.close()


def test_a_question_makes_no_database(tmp_path):
    runner = Runner(f"sqlite:///{tmp_path}/none.db", runtime_dir=str(tmp_path / "run"))
    client = Client(progress_app(runner), Response)
    assert body(client.get(f"/{new_id()}"), 404) == NO_JOB
    assert body(client.get("/files/" + "a" * 43 + "/name"), 404) == {"error": "there is no such file"}
    assert list(tmp_path.glob("none.db*")) == []


# --------------------------------------------------------------------------- long polls


def test_a_long_poll_ends_when_something_changes(local):
    id, _ = local.busy(fraction=0.5)
    client = local.client()
    etag = client.get(f"/jobs/{id}").headers["ETag"].strip('"')
    start = time.monotonic()
    threading.Timer(0.5, say, (local.runner, id), {"fraction": 0.75}).start()
    assert body(client.get(f"/jobs/{id}?wait=20&since={etag}"))["fraction"] == 0.75
    assert 0.4 < time.monotonic() - start < 10


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', "{}"])
def test_the_etag_may_be_given_back_as_it_is_in_the_header(local, form):
    id, _ = local.busy(fraction=0.5)
    client = local.client()
    etag = client.get(f"/jobs/{id}").headers["ETag"].strip('"')
    start = time.monotonic()
    answer = client.get(f"/jobs/{id}", query_string={"wait": "1", "since": form.format(etag)})
    assert body(answer)["fraction"] == 0.5
    assert time.monotonic() - start > 0.5, "it has waited for a change"


def test_a_long_poll_is_bounded(local):
    id, claim = local.busy(fraction=0.5)
    client = local.client(long_polls=1)
    first = client.get(f"/jobs/{id}")
    etag = first.headers["ETag"]
    start = time.monotonic()
    assert client.get(f"/jobs/{id}?wait=20&since=other").status_code == 200
    assert client.get(f"/jobs/{new_id()}?wait=20").status_code == 404
    for bad in ("x", "-1", "1e9", "nan", "١"):
        assert client.get(f"/jobs/{id}?wait={bad}").status_code == 400
    assert time.monotonic() - start < 10, "there was something to say at once"
    holder = threading.Thread(
        target=client.get, args=(f"/jobs/{id}?wait=3",), kwargs={"headers": {"If-None-Match": etag}}
    )
    holder.start()
    wait_until(lambda: not client.application.mounts["/jobs"]._long_polls._value)
    start = time.monotonic()
    assert client.get(f"/jobs/{id}?wait=3&since={etag.strip(chr(34))}").status_code == 200
    assert time.monotonic() - start < 2.5, "the one thread is taken"
    holder.join()
    end(local.runner.store, claim, State.FAILED)
    local.runner.watcher._reader.drop(id)
    over = client.get(f"/jobs/{id}")
    start = time.monotonic()
    client.get(f"/jobs/{id}?wait=20&since={over.headers['ETag'].strip(chr(34))}")
    assert time.monotonic() - start < 10, "of a job that has ended nothing is to be expected"


# -------------------------------------------------------------------------------- cost


@pytest.mark.timing
def test_a_request_costs_little_more_than_what_werkzeug_and_memcached_cost(
    sqlite_database, tmp_path, memcached
):
    """CPU time beside a control that sends JSON of the same length by Werkzeug, and asks the same memcached by itself."""
    runner = Runner(sqlite_database, runtime_dir=str(tmp_path / "run"), progress_url=memcached.url)
    id, reader = new_id(), Reader(place(runner.settings))
    say(runner, id, started_at="2026-01-31T10:00:00+00:00", eta_seconds=3.0)
    wait_until(lambda: reader.get(id), message="the entry")
    app = progress_app(runner)

    @Request.application
    def control(request: Request) -> Response:
        return Response(json.dumps(reader.get(request.path.strip("/"))), mimetype="application/json")

    environ = create_environ(f"/{id}")

    def cost(app: Any) -> float:
        """Seconds of CPU time of one request, the best of five hundreds."""
        best = 1.0
        for _ in range(5):
            start = time.process_time()
            for _ in range(100):
                b"".join(app(dict(environ), lambda status, headers: None))
            best = min(best, (time.process_time() - start) / 100)
        return best

    assert cost(app) < 2.5 * cost(control)
    reader.close()
    runner.close()


# -------------------------------------------------------------------- script, document


def test_the_script_has_a_name_that_may_be_kept_for_ever(local):
    app = ProgressApp(local.runner)
    client = local.mount(app)
    found = client.get(f"/jobs/{app.script}")
    assert (found.status_code, found.mimetype) == (200, "text/javascript")
    assert found.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert found.data == (Path(__file__).parent.parent / "forkrunner/static/forkrunner.js").read_bytes()
    for other in ("forkrunner.js", "forkrunner-0123456789ab.js"):
        plain = client.get(f"/jobs/{other}")
        assert (plain.data, plain.headers["Cache-Control"]) == (found.data, "no-cache")
        assert (
            client.get(f"/jobs/{other}", headers={"If-None-Match": plain.headers["ETag"]}).status_code == 304
        )


def test_the_document_names_the_place_where_it_is_mounted(local):
    found = body(local.client().get("/jobs/openapi.json"))
    assert found["servers"] == [{"url": "/jobs"}]


def test_the_document_is_what_is_answered(local):
    """Schemathesis makes up requests, good and bad ones, and compares each answer with the document."""
    done, claim = local.busy()
    end(local.runner.store, claim, State.DONE)
    failed, claim = local.busy()
    end(local.runner.store, claim, State.FAILED, error="x")
    busy, _ = local.busy(fraction=0.5)
    pending = local.put()
    app = progress_app(local.runner, result_url="/results/{id}", long_polls=0)
    document = Client(app, Response).get("/openapi.json").get_json()
    schema = schemathesis.openapi.from_dict(document)
    schema.app = app
    quick = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    seen = set()
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        for strategy in (
            operation.as_strategy(),
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
        ):

            @quick
            @given(case=strategy)
            def check(case: Any) -> None:
                # a bad id among many is deliberately no bad request: it is `missing`
                lenient = [negative_data_rejection]
                seen.add(case.call_and_validate(excluded_checks=lenient).status_code)

            check()
    for id in (done, failed, busy, pending):
        schema["/{id}"]["GET"].Case(path_parameters={"id": id}).call_and_validate()
        schema["/"]["GET"].Case(query={"ids": [id, new_id()]}).call_and_validate()
    assert {200, 400, 404} <= seen


# -------------------------------------------------------------------------- web frameworks


def in_flask(app: ProgressApp) -> Any:
    import flask

    site = flask.Flask(__name__)
    site.wsgi_app = DispatcherMiddleware(site.wsgi_app, {"/a/jobs": app})  # type: ignore[method-assign]
    return site


def in_django(app: ProgressApp) -> Any:
    from django.conf import settings as django_settings  # type: ignore[import-untyped]
    from django.core.wsgi import get_wsgi_application  # type: ignore[import-untyped]

    if not django_settings.configured:
        django_settings.configure(SECRET_KEY="x", ROOT_URLCONF=__name__, LOGGING_CONFIG=None)
    return DispatcherMiddleware(get_wsgi_application(), {"/a/jobs": app})


def in_pyramid(app: ProgressApp) -> Any:
    from pyramid.config import Configurator  # type: ignore[import-untyped]
    from pyramid.wsgi import wsgiapp2  # type: ignore[import-untyped]

    with Configurator() as config:
        config.add_route("jobs", "/a/jobs*subpath")
        config.add_view(wsgiapp2(app), route_name="jobs")
        return config.make_wsgi_app()


def in_bottle(app: ProgressApp) -> Any:
    import bottle  # type: ignore[import-untyped]

    site = bottle.Bottle()
    site.mount("/a/jobs", app)
    return site


# a framework's own imports are not ours to mend: WebOb's cgi, Pyramid's pkg_resources
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:pkg_resources:UserWarning")
@pytest.mark.parametrize("mount", [in_flask, in_django, in_pyramid, in_bottle])
def test_mounted_in_a_framework(local, mount):
    id, _ = local.busy(fraction=0.5)
    app = progress_app(local.runner)
    client = Client(mount(app), Response)
    seen = client.get(f"/a/jobs/{id}")
    assert body(seen)["fraction"] == 0.5
    assert client.get(f"/a/jobs/{id}", headers={"If-None-Match": seen.headers["ETag"]}).status_code == 304
    assert client.head(f"/a/jobs/{id}").data == b""
    assert client.post(f"/a/jobs/{id}").status_code == 405
    for query in (f"/a/jobs?ids={id}", f"/a/jobs/?ids={id}"):
        assert [job["id"] for job in body(client.get(query))["jobs"]] == [id]
    assert client.get(f"/a/jobs/{app.script}").mimetype == "text/javascript"
    assert body(client.get("/a/jobs/openapi.json"))["servers"] == [{"url": "/a/jobs"}]
    for name in ("x", "%00", "%ff%fe", "%F0%9F%98%80", "9" * 5000):
        assert body(client.get(f"/a/jobs/{name}"), 404) == NO_JOB


# -------------------------------------------------------------------------------- ASGI


def ask(
    app: ProgressASGI, path: str, query: str = "", method: str = "GET", mount: str = "/jobs", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send one request as a server would that has mounted the application; a header of several lines is several."""
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "root_path": mount,
        "path": mount + path, "query_string": query.encode(), "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 5),
        "headers": [
            (name.replace("_", "-").lower().encode(), line.encode()) for name, value in headers.items() for line in value.split("\n")
        ],
    }  # fmt: skip
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(run())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def test_asgi_answers_as_wsgi_does(local):
    id, _ = local.busy(fraction=0.5)
    app = progress_asgi(local.runner)
    client = local.client()
    for path, query in (
        (f"/{id}", ""),
        ("", f"ids={id}"),
        ("/", f"ids={id}"),
        ("/x", ""),
        ("/openapi.json", ""),
        (f"/{app.script}", ""),
    ):
        status, headers, data = ask(app, path, query)
        wsgi = client.get(f"/jobs{path}", query_string=query)
        assert (status, data) == (wsgi.status_code, wsgi.data)
        assert headers == {name.lower(): value for name, value in wsgi.headers}
    status, headers, _ = ask(app, f"/{id}")
    assert ask(app, f"/{id}", If_None_Match=headers["etag"])[0] == 304
    assert ask(app, f"/{id}", method="HEAD")[2] == b""
    assert ask(app, f"/{id}", mount="")[0] == 200


def test_asgi_cookies_and_other_headers_may_come_one_by_one(local):
    seen = []

    def may_see(request: Any, job: Any) -> bool:
        seen.append((dict(request.cookies), request.headers["X-Forwarded-For"]))
        return True

    app = progress_asgi(local.runner, authorize=may_see)
    headers = {"Cookie": "session=abc; lang=de\ntheme=dark", "X_Forwarded_For": "10.0.0.1\n10.0.0.2"}
    assert ask(app, f"/{local.put()}", **headers)[0] == 200
    assert seen == [({"session": "abc", "lang": "de", "theme": "dark"}, "10.0.0.1, 10.0.0.2")]


def test_an_asgi_long_poll_holds_no_thread(local):
    id, _ = local.busy(fraction=0.5)
    app = progress_asgi(local.runner)
    etag = ask(app, f"/{id}")[1]["etag"].strip('"')

    async def many() -> list[int]:
        request = EnvironBuilder(f"/{id}", query_string=f"wait=20&since={etag}").get_request()
        polls = [asyncio.ensure_future(app.answer(request)) for _ in range(50)]
        await asyncio.sleep(0.5)
        say(local.runner, id, fraction=0.75)
        return [answer.get_json()["fraction"] for answer in await asyncio.gather(*polls)]

    assert asyncio.run(many()) == [0.75] * 50


def test_asgi_lifespan(local):
    async def run() -> list[str]:
        words = iter(["lifespan.startup", "lifespan.shutdown"])
        sent: list[str] = []

        async def receive() -> Any:
            return {"type": next(words)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await progress_asgi(local.runner)({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
