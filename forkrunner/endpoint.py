"""The HTTP endpoint: how jobs stand, as JSON, for a browser that polls. A WSGI application, to be mounted anywhere.

    GET <mount>/<id>          one job
    GET <mount>?ids=a,b,c     many, in one question to memcached and at most one to the database
    GET <mount>/files/<token>/<name>  a file of a result, for whoever knows its token
    GET <mount>/openapi.json  what is described there in full
    GET <mount>/<script>      the ES module for the browser, under a name that changes with its content

What always holds:

1. While a job has progress, no statement is sent. A job that does not exist, that the caller may not see, or whose id is
   none, costs the same look at both places as one that waits, and gives the same 404.
2. Of a failure a user of the web site gets one sentence, `public_error`, and never what was raised, unless it was a UserError.
3. Long polls hold at most `long_polls` threads of a process; who comes in addition is answered at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response

from . import clock
from .downloads import download
from .errors import FileMissing, StorageError, StoreError, StoreUnavailable
from .handle import Job
from .ids import is_id
from .openapi import LONGEST_WAIT, MOST_IDS, document
from .runner import Runner
from .watch import seconds_until_due

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from .watch import View

    Authorize = Callable[[Request, Job[Any]], object]
    ResultURL = str | Callable[[Job[Any]], str | None]

#: Of no job: what is looked up for what is no id.
_NOBODY = "ffffffff-ffff-7fff-bfff-ffffffffffff"
_TOKEN = re.compile("[A-Za-z0-9_-]{43}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")
_AWAY = "the database does not answer, try again later"
_ENDED = frozenset({"done", "failed", "cancelled"})
_METHODS = "GET, HEAD, OPTIONS"
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def public_error(view: View) -> str:
    """Say to a user of the web site why a job is not done: the task's own words if it has raised a UserError."""
    said: str | None = view.get("error")
    return said or "This could not be completed because of an error."


def poll_after(view: View) -> int | None:
    """Return after how many milliseconds another look makes sense: soon while it runs, later far back in the queue.

    For one that is not due yet when it is, but within half a minute: somebody may cancel it, or run it at once.
    """
    if view["state"] in _ENDED:
        return None
    early = seconds_until_due(view)
    if early is not None:
        return min(500 + round(1000 * early), 30_000)
    if view["state"] == "pending":
        return min(500 + 100 * (view["position"] or 0), 15_000)
    return 500 if view["fraction"] is not None else 1000


class Answer(Response):
    """A response, and the seconds until a long poll looks again; None if nothing more will come."""

    default_mimetype = "application/json"
    again: float | None = None


class ProgressApp:
    """The endpoint of one runner. Threads may share it, forks inherit it."""

    def __init__(
        self,
        runner: Runner,
        *,
        authorize: Authorize | None = None,
        result_url: ResultURL | None = None,
        cors: str | Sequence[str] = (),
        long_polls: int = 2,
    ) -> None:
        """Prepare; nothing is connected before the first request.

        `authorize(request, job)` says whether the sender may see a job: false is answered as if there were none, and what it
        raises of Werkzeug's HTTP exceptions is sent; so with a file, whose address alone is not enough then. `result_url` is a URL with `{id}` in it, or a function of the job; it goes
        out with a job that is done; without it a result that is one file has the address of that. `cors` are the origins of other sites whose scripts may read (`"*"` for all; without cookies).

        Raises:
            ValueError: one of `cors` is no origin.
        """
        if not isinstance(runner, Runner):
            raise TypeError(f"the endpoint: expected a forkrunner.Runner, got {type(runner).__name__}")
        self.runner = runner
        self._authorize = authorize
        self._result_url = result_url
        self._origins = frozenset(
            _origin(text) for text in ([cors] if isinstance(cors, str) else cors) if text
        )
        self._long_polls = threading.BoundedSemaphore(long_polls) if long_polls > 0 else None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if not _is_latin(path):  # Bottle decodes it for what it mounts, and PEP 3333 says that it is bytes
            environ = environ | {"PATH_INFO": path.encode("utf-8", "replace").decode("latin-1")}
        request = Request(environ)
        return self.answer(request)(environ, start_response)

    # -- one request

    def answer(self, request: Request) -> Answer:
        """Answer a request; a long poll sleeps in here."""
        answer = self.look(request)
        end = self.wait_until(request, answer)
        if end is None or self._long_polls is None or not self._long_polls.acquire(blocking=False):
            return answer
        try:
            while (
                answer.again is not None
                and clock.monotonic() + answer.again < end
                and is_old(request, answer)
            ):
                time.sleep(answer.again)  # noqa: TID251 - a long poll holds its thread, and few of them may
                answer = self.look(request)
        finally:
            self._long_polls.release()
        return answer

    def wait_until(self, request: Request, answer: Answer) -> float | None:
        """Return when a long poll is over, by the monotonic clock; None if it is none, or has its answer."""
        if answer.again is None or not request.args.get("wait") or not is_old(request, answer):
            return None
        return clock.monotonic() + min(float(request.args["wait"]), LONGEST_WAIT)

    def look(self, request: Request) -> Answer:
        """Answer a request as things are now."""
        try:
            answer = self._route(request)
        except StoreError as error:
            if not isinstance(
                error, StoreUnavailable
            ):  # nothing that is over by itself, and no business of users
                print(f"forkrunner: {error}", file=request.environ.get("wsgi.errors") or sys.stderr)
            answer = _error(503, _AWAY, **{"Retry-After": "3"})
        except HTTPException as error:
            answer = Answer.force_type(error.get_response(request.environ), request.environ)  # type: ignore[assignment]
        self._allow_origin(request, answer)
        return answer

    def _route(self, request: Request) -> Answer:
        if request.method == "OPTIONS":
            return Answer(status=204, headers={"Allow": _METHODS})
        if request.method not in ("GET", "HEAD"):
            return _error(405, "expected GET", Allow=_METHODS)
        name = request.path.strip("/")
        if name == "openapi.json":
            text = json.dumps(document(request.root_path or "/"))
            return Answer(text, headers={"Cache-Control": "no-cache"})
        if name.startswith("forkrunner") and name.endswith(".js"):
            return self._send_script(request, name)
        if name.startswith("files/"):
            return self._file(request, name.split("/")[1])
        wait = request.args.get("wait", "0")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", wait):
            return _error(400, "wait: expected seconds, as in ?wait=20")
        return self._many(request) if not name else self._one(request, name)

    def _one(self, request: Request, name: str) -> Answer:
        id = name.lower()
        known = is_id(id)
        view = self.runner.watcher.look_at(id if known else _NOBODY)
        if view is None or not known or not self._may_see(request, id):
            return _error(404, "there is no such job")
        return _answer(request, self._dress(request, view), [view])

    def _many(self, request: Request) -> Answer:
        given = list(dict.fromkeys(filter(None, request.args.get("ids", "").lower().split(","))))
        if not given or len(given) > MOST_IDS:
            return _error(400, f"expected ?ids= and 1 to {MOST_IDS} ids, separated by commas")
        found = self.runner.watcher.look([id for id in given if is_id(id)] or [_NOBODY])
        views = [found[id] for id in given if id in found and self._may_see(request, id)]
        seen = {view["id"] for view in views}
        missing = [id for id in given if id not in seen]
        return _answer(
            request, {"jobs": [self._dress(request, view) for view in views], "missing": missing}, views
        )

    def _may_see(self, request: Request, id: str) -> bool:
        return self._authorize is None or bool(self._authorize(request, Job(self.runner, id)))

    def _file(self, request: Request, token: str) -> Answer:
        file = self.runner.store.file(token) if _TOKEN.fullmatch(token) else None
        if file is None or not self._may_see(request, file.job_id):
            return _error(404, "there is no such file")
        try:
            return Answer.force_type(download(request, file, self.runner.storage), request.environ)  # type: ignore[return-value]
        except FileMissing:
            return _error(404, "there is no such file")
        except StorageError:
            return _error(503, "the file cannot be read, try again later", **{"Retry-After": "3"})

    def _dress(self, request: Request, view: View) -> View:
        """Add what a web site says of a job that has ended."""
        if view["state"] == "failed":
            return view | {"error": public_error(view)}
        if view["state"] != "done":
            return view
        file = view.pop("file", None)
        url = f"{request.root_path}/{file}" if file else None
        if isinstance(self._result_url, str):
            url = self._result_url.replace("{id}", view["id"])
        elif self._result_url is not None:
            url = self._result_url(Job(self.runner, view["id"]))
        return view | {"result_url": url} if url else view

    def _allow_origin(self, request: Request, answer: Answer) -> None:
        if not self._origins:
            return
        answer.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin is None or not ({"*", origin} & self._origins):
            return
        answer.headers["Access-Control-Allow-Origin"] = "*" if "*" in self._origins else origin
        answer.headers["Access-Control-Expose-Headers"] = "ETag, Retry-After"
        if request.method == "OPTIONS":
            answer.headers["Access-Control-Allow-Methods"] = _METHODS
            answer.headers["Access-Control-Allow-Headers"] = "If-None-Match"
            answer.headers["Access-Control-Max-Age"] = "600"

    # -- the script

    @cached_property
    def _script(self) -> bytes:
        return files("forkrunner").joinpath("static/forkrunner.js").read_bytes()

    @cached_property
    def script(self) -> str:
        """The name of the script below the mount, as `forkrunner-1f2e3d4c.js`: it may be cached for ever."""
        return f"forkrunner-{hashlib.sha256(self._script).hexdigest()[:12]}.js"

    def _send_script(self, request: Request, name: str) -> Answer:
        # a page of the release before asks for another name: it gets this one, but not for ever
        lasting = name == self.script
        answer = Answer(self._script, mimetype="text/javascript")
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.set_etag(self.script)
        answer.make_conditional(request)
        return answer


def progress_app(runner: Runner, **options: Any) -> ProgressApp:
    """Return the endpoint of a runner as a WSGI application; the options are those of `ProgressApp`."""
    return ProgressApp(runner, **options)


def _is_latin(text: str) -> bool:
    return text.isascii() or max(text) < "\u0100"


def is_old(request: Request, answer: Answer) -> bool:
    """Say whether a long poll has seen this already."""
    # as in the header too: who copies it with its quotation marks would else be answered at once, and ask again at once
    since = request.args.get("since", "").removeprefix("W/").strip('"')
    return answer.status_code == 304 or answer.headers.get("ETag", "").strip('"') == since != ""


def _origin(text: str) -> str:
    """Return an origin as browsers send it.

    Raises ValueError: one with a path would never be sent.
    """
    origin = str(text).removesuffix("/").lower()
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError(f"cors: expected origins as https://shop.example, or '*', got {text!r}")
    return origin


def _answer(request: Request, content: dict[str, Any], views: list[View]) -> Answer:
    text = json.dumps(content)
    etag = f'"{hashlib.blake2s(text.encode(), digest_size=9).hexdigest()}"'
    soonest = min((after for view in views if (after := poll_after(view)) is not None), default=None)
    headers = {**_NO_STORE, "ETag": etag}
    if soonest is not None and soonest >= 1000:
        headers["Retry-After"] = str(round(soonest / 1000))
    if etag in request.headers.get("If-None-Match", ""):
        answer = Answer(status=304, headers=headers)
    else:
        answer = Answer(json.dumps(content | {"poll_after_ms": soonest}), headers=headers)
    answer.again = None if soonest is None else min(max(soonest / 2000, 0.1), 2.0)
    return answer


def _error(status: int, sentence: str, **headers: str) -> Answer:
    return Answer(json.dumps({"error": sentence}), status=status, headers={**_NO_STORE, **headers})
