"""Downloads through the WSGI and the ASGI application: who gets what, under which headers, and how much of it."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.wrappers import Response

from forkrunner import Runner
from forkrunner.asgi import progress_asgi
from forkrunner.job import Next, Outcome, State
from forkrunner.records import Attempt, Ending, File
from forkrunner.wsgi import progress_app
from tests.test_store import claim_one, put, supervisor_row

CONTENT = bytes(range(256)) * 3000
TOKEN = "t" * 43


class Visitor(Client):
    """Reads every answer to its end and closes it, as a server does."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        return super().open(*args, **kwargs | {"buffered": True})

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return super().get(*args, **kwargs)


class Site:
    def __init__(self, database: str, folder: Path) -> None:
        self.runner = Runner(database, runtime_dir=str(folder / "run"), storage=str(folder / "storage"))
        self.runner.store.migrate()
        self.runner.store.register(supervisor_row("a"), 60)

    def client(self, **options: Any) -> Visitor:
        app = DispatcherMiddleware(Response("the site"), {"/jobs": progress_app(self.runner, **options)})
        return Visitor(app)

    def done(
        self,
        name: str = "out.txt",
        media_type: str | None = "text/plain",
        content: bytes = CONTENT,
        token: str = TOKEN,
        place: str = "result",
    ) -> str:
        """End a job with one file and return its id."""
        sha256, size = self.runner.storage.put(io.BytesIO(content), 1 << 30)
        (id,) = put(self.runner.store)
        claim = claim_one(self.runner.store)
        attempt = Attempt(id, claim.attempt, Outcome.DONE, "a")
        files = (File(id, place, sha256, size, name, media_type, token),)
        ending = Ending(attempt, Next(State.DONE, 1, 0), result='{"some": "thing"}', files=files)
        assert self.runner.store.finish([ending]) == {(id, 1): State.DONE}
        return id


@pytest.fixture
def site(database: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(database, tmp_path)
    yield site
    site.runner.close()


@pytest.fixture
def local(sqlite_database: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(sqlite_database, tmp_path)
    yield site
    site.runner.close()


def test_a_result_that_is_one_file_is_found_and_saved(site: Site):
    id = site.done("ganz … „ärger“.txt")
    client = site.client()
    for view in (client.get(f"/jobs/{id}").json, client.get(f"/jobs?ids={id}").json["jobs"][0]):
        assert "file" not in view
        address = view["result_url"]
    assert address == f"/jobs/files/{TOKEN}/ganz%20%E2%80%A6%20%E2%80%9E%C3%A4rger%E2%80%9C.txt"
    assert site.runner.get(id).files[0].address == address.removeprefix("/jobs/")
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.data == CONTENT
    headers = answer.headers
    assert headers["Content-Type"] == "text/plain"
    assert headers["Content-Length"] == str(len(CONTENT))
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["Cache-Control"] == "private, no-cache"
    disposition = headers["Content-Disposition"]
    assert disposition.startswith("attachment; ")
    match = re.search(r"filename\*=UTF-8''(\S+)", disposition)
    assert match is not None
    assert unquote(match[1]) == "ganz … „ärger“.txt"
    assert 'filename="ganz ... arger.txt"' in disposition
    # nothing that was downloaded once is sent again
    again = client.get(address, headers={"If-None-Match": headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    head = client.head(address)
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", str(len(CONTENT)))
    assert head.headers["ETag"] == headers["ETag"]
    # the name is for people: the token says which
    assert client.get(f"/jobs/files/{TOKEN}/other").data == CONTENT
    assert client.get(f"/jobs/files/{TOKEN}").data == CONTENT


def test_parts_of_a_file(local: Site):
    """A download that broke goes on where it was, and a video can be sought in."""
    local.done()
    client = local.client()
    url = f"/jobs/files/{TOKEN}/x"
    assert client.head(url).headers["Accept-Ranges"] == "bytes"
    for asked, start, stop in [("0-9", 0, 10), ("700000-", 700000, None), ("-5", -5, None), ("5-5", 5, 6)]:
        answer = client.get(url, headers={"Range": f"bytes={asked}"})
        assert answer.status_code == 206
        assert answer.data == CONTENT[start:stop]
        assert answer.headers["Content-Range"].endswith(f"/{len(CONTENT)}")
    assert client.get(url, headers={"Range": "bytes=900000-"}).status_code == 416
    etag = client.head(url).headers["ETag"]
    good = client.get(url, headers={"Range": "bytes=0-9", "If-Range": etag})
    other = client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    assert (good.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize(
    ("name", "plain", "whole"),
    [
        ('a"; filename="evil.html', 'a\\"; filename=\\"evil.html', None),
        ("a\r\nSet-Cookie: x=1.txt", "a Set-Cookie: x=1.txt", None),
        ("../../etc/passwd", "passwd", None),
        ("invoice\u202efdp.exe", "invoicefdp.exe", None),
        ("съёмка.txt", "txt", "съёмка.txt"),
        ("x" * 4000, "x" * 199, "x" * 199 + "…"),
        ("", "file", None),
    ],
)
def test_no_name_gets_out_of_its_header(local: Site, name: str, plain: str, whole: str | None):
    """Rows may be written by others: the name is cleaned where it goes out too."""
    local.done(name)
    answer = local.client().get(f"/jobs/files/{TOKEN}/x")
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers
    disposition = answer.headers["Content-Disposition"]
    assert f'filename="{plain}"' in disposition or f"filename={plain}" in disposition
    assert "\n" not in disposition
    if whole is not None:
        assert unquote(disposition.rpartition("UTF-8''")[2]) == whole


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("text/html", "text/html"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("text/html\r\nX-Evil: 1", "application/octet-stream"),
        (None, "application/octet-stream"),
    ],
)
def test_whatever_it_is_it_does_nothing(local: Site, given: str | None, sent: str):
    local.done("page.html", given, b"<script>alert(1)</script>")
    answer = local.client().get(f"/jobs/files/{TOKEN}/page.html")
    assert answer.headers["Content-Type"] == sent
    assert answer.headers["Content-Disposition"] == "attachment; filename=page.html"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert "X-Evil" not in answer.headers


def test_who_does_not_know_the_token_gets_nothing(local: Site):
    id = local.done()
    sha256 = local.runner.get(id).files[0].sha256
    client = local.client()
    for wrong in ("u" * 43, TOKEN[:-1], TOKEN + "t", sha256, id, "", "%2e%2e", "..", "' OR 1=1 --"):
        answer = client.get(f"/jobs/files/{wrong}/out.txt")
        assert answer.status_code == 404, wrong
        assert answer.json.keys() == {"error"}
    assert client.post(f"/jobs/files/{TOKEN}/x").status_code == 405
    # nobody downloads the file of an argument: it has no token
    assert "result_url" not in client.get(f"/jobs/{id}").json or local.runner.get(id).files[0].token
    # and where the application says who may see a job, the address alone is not enough
    mine = local.client(authorize=lambda request, job: request.args.get("user") == "me")
    assert mine.get(f"/jobs/files/{TOKEN}/x").status_code == 404
    assert mine.get(f"/jobs/files/{TOKEN}/x?user=me").status_code == 200


def test_a_url_of_the_applications_own_goes_before(local: Site):
    id = local.done()
    assert local.client(result_url="/r/{id}").get(f"/jobs/{id}").json["result_url"] == f"/r/{id}"
    assert "result_url" not in local.client(result_url=lambda job: None).get(f"/jobs/{id}").json
    several = local.done(token="v" * 43, place="result[0]")
    assert "result_url" not in local.client().get(f"/jobs/{several}").json


def test_content_that_is_gone_or_cannot_be_read(local: Site, tmp_path: Path):
    id = local.done()
    client, url = local.client(), f"/jobs/files/{TOKEN}/x"
    (file,) = local.runner.get(id).files
    path = Path(local.runner.storage.place(file.sha256))
    os.rename(path, tmp_path / "elsewhere")
    path.mkdir()
    answer = client.get(url)
    assert (answer.status_code, answer.json) == (503, {"error": "the file cannot be read, try again later"})
    path.rmdir()
    assert client.get(url).status_code == 404
    assert client.head(url).status_code == 404
    os.rename(tmp_path / "elsewhere", path)
    assert client.get(url).status_code == 200
    local.runner.store.retry(id)
    assert client.get(url).status_code == 404


def test_over_asgi(local: Site):
    local.done()
    app = progress_asgi(local.runner)

    async def call(method: str, **headers: str) -> tuple[int, dict[str, str], bytes, int]:
        scope = {
            "type": "http",
            "method": method,
            "path": f"/files/{TOKEN}/x",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        await app(scope, receive, send)
        start, *parts = sent
        assert not parts[-1].get("more_body")
        known = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], known, b"".join(part["body"] for part in parts), len(parts)

    status, headers, data, parts = asyncio.run(call("GET"))
    assert (status, data, headers["content-length"]) == (200, CONTENT, str(len(CONTENT)))
    assert parts > 3
    assert asyncio.run(call("HEAD"))[2] == b""
    status, _, data, _ = asyncio.run(call("GET", range="bytes=10-19"))
    assert (status, data) == (206, CONTENT[10:20])
    status, _, data, _ = asyncio.run(call("GET", **{"if-none-match": headers["etag"]}))
    assert (status, data) == (304, b"")
