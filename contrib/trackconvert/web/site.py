"""The site: what is answered at which address, to whom, with which headers.

    GET  /                        the form, and the visitor's conversions
    POST /                        an upload of one or several files
    GET  /conversions/<token>     one conversion, for the visitor who asked for it
    POST /conversions/<token>     its end, before it has converted anything
    GET  /results/<token>/<name>  its result, for everybody who knows the address
    GET  /static/<name>           style sheet, script, icon
    GET  /progress/…              forkrunner's endpoint: what the bars in the pages ask

What always holds:

1. A visitor is the cookie that the first upload has set; pages, lists and bars are shown to nobody else.
2. What changes something is a POST that says it comes from a page of this site (Origin), with the cookie (SameSite).
3. What visitors have sent is text, escaped by the templates; scripts and styles come from files of this site only.
"""

from __future__ import annotations

import json
import re
import secrets
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    HTTPException,
    InternalServerError,
    NotFound,
    RequestEntityTooLarge,
    ServiceUnavailable,
)
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.routing import Map, MapAdapter, Rule
from werkzeug.utils import send_file
from werkzeug.wrappers import Request, Response

from forkrunner import FileMissing, JobNotFound, JobStateError, Runner, StorageError, StoreError
from forkrunner.wsgi import progress_app
from trackconvert import FORMATS, ImageSize
from trackconvert.jobs import result_name
from trackconvert.web.conversions import KEPT, Conversion, Conversions, Upload, lines_near
from trackconvert.web.pages import Pages
from trackconvert.web.words import display_name, refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from forkrunner import Job
    from forkrunner.files import StoredFile

#: Of an upload: bytes in all, and files.
LARGEST_UPLOAD = 32 * 1024 * 1024
MOST_FILES = 20
#: Bytes that are read of an upload that is too large: a browser hears no answer before it has sent all.
_READ_ANYWAY = 8 * LARGEST_UPLOAD
#: Conversions on the first page.
_LISTED = 20

_COOKIE = "trackconvert"
_SESSION = re.compile("[A-Za-z0-9_-]{43}")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # not no-referrer: with that, browsers send "null" as the Origin of a form
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Status → title and sentence of the page; others have what HTTP calls them.
_ERRORS = {
    403: (
        "Not taken",
        "This did not come from a page of this site. Please go to the first page and try again.",
    ),
    404: (
        "Nothing here",
        f"There is nothing at this address. Conversions are removed after {KEPT.days} days, "
        "and the page of one opens only in the browser that it was made with.",
    ),
    413: (
        "Too much at once",
        f"Up to {MOST_FILES} files are taken at once, {LARGEST_UPLOAD // 2**20} MiB in all.",
    ),
    500: (
        "A mistake of ours",
        "The site could not do this, and that is not your file's fault. It has been noted; please try again later.",
    ),
    503: ("Not now", "The database does not answer at the moment. Please try again in a few seconds."),
}


class Refused(BadRequest):
    """An upload that is not taken; the description is for the visitor."""


class Visit(Request):
    """One request."""

    max_content_length = LARGEST_UPLOAD
    # the fields of the form are few
    max_form_parts = MOST_FILES + 10

    def __init__(self, environ: WSGIEnvironment, urls: MapAdapter) -> None:
        super().__init__(environ)
        self.urls = urls

    @property
    def wants_json(self) -> bool:
        """Whether the page's script asks, which goes on to another page by itself."""
        return self.accept_mimetypes.best == "application/json"

    def check_origin(self) -> None:
        """Refuse what a page of another site has made a browser send.

        Raises Forbidden.
        """
        said = self.headers.get("Origin") or self.headers.get("Referer") or ""
        try:
            host = urlsplit(said).netloc
        except ValueError:
            host = ""
        # without the scheme: a proxy before us may have taken TLS off
        if not host or host != self.host:
            raise Forbidden

    def drain(self, limit: int) -> None:
        """Read what is to come of the body, at most that many bytes."""
        left = min(self.content_length or 0, limit)
        while left > 0 and (data := self.environ["wsgi.input"].read(min(left, 1 << 20))):
            left -= len(data)


class Site:
    """The WSGI application. Threads may share it, forks inherit it before its first request."""

    _map = Map(
        [
            Rule("/", endpoint="index", methods=["GET"]),
            Rule("/", endpoint="upload", methods=["POST"]),
            Rule("/conversions/<token>", endpoint="conversion", methods=["GET"]),
            Rule("/conversions/<token>", endpoint="cancel", methods=["POST"]),
            Rule("/results/<token>/<name>", endpoint="result", methods=["GET"]),
            Rule("/static/<name>", endpoint="static", methods=["GET"]),
        ]
    )

    def __init__(self, runner: Runner, *, demo_seconds: float = 0.0) -> None:
        """Prepare; nothing is connected before the first request.

        `demo_seconds`: a conversion takes so long at least, to have something to look at.
        """
        self._runner = runner
        self._conversions = Conversions(runner)
        self._demo_seconds = demo_seconds
        self._progress = progress_app(runner, authorize=self._may_see)
        self._pages = Pages(
            formats=FORMATS, largest_upload=LARGEST_UPLOAD, most_files=MOST_FILES, kept_days=KEPT.days
        )
        self._app = DispatcherMiddleware(self._serve, {"/progress": self._progress})

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._app(environ, start_response)

    def load(self) -> None:
        """Load what the first request would; nothing is connected."""
        self._pages.load()
        _ = self._runner.watcher, self._runner.store

    def close(self) -> None:
        self._conversions.close()

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        visit = Visit(environ, self._map.bind_to_environ(environ))
        with visit:
            try:
                endpoint, arguments = visit.urls.match()
                response: Response = getattr(self, f"on_{endpoint}")(visit, **arguments)
            except HTTPException as error:
                response = self._refuse(visit, error)
            except (StoreError, StorageError, OperationalError):
                response = self._refuse(visit, ServiceUnavailable(retry_after=5))
            except Exception:  # noqa: BLE001  # whatever it is, there is a page for it
                # the log has all of it, the visitor nothing that could tell how the site is made
                traceback.print_exc(file=environ["wsgi.errors"])
                response = self._refuse(visit, InternalServerError())
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response(environ, start_response)

    def _refuse(self, visit: Visit, error: HTTPException) -> Response:
        plain = error.get_response(visit.environ)
        code = plain.status_code
        if code < 400:  # another way to write an address
            return Response(status=code, headers={"Location": plain.headers["Location"]})
        title, sentence = _ERRORS.get(code, (error.name, f"{error.name}."))
        if isinstance(error, Refused):
            title, sentence = "Not converted", error.description or title
        if visit.wants_json:
            response = Response(json.dumps({"error": sentence}), code, mimetype="application/json")
        else:
            response = self._page(visit, "error.html", code, code=code, title=title, sentence=sentence)
        for name in ("Allow", "Retry-After"):
            if name in plain.headers:
                response.headers[name] = plain.headers[name]
        return response

    # -- pages

    def _page(self, visit: Visit, template: str, status: int = 200, **values: Any) -> Response:
        progress = f"{visit.root_path}/progress"
        script = f"{progress}/{self._progress.script}"
        return self._pages.page(template, visit.urls, status, progress=progress, script=script, **values)

    def on_static(self, visit: Visit, name: str) -> Response:
        return self._pages.file(name, visit)

    def on_index(self, visit: Visit) -> Response:
        session = _session(visit)
        mine = self._conversions.recent(session, _LISTED) if session else []
        return self._page(visit, "index.html", cards=self._cards(visit, mine))

    def _own(self, visit: Visit, token: str) -> Conversion:
        """Return a conversion of this visitor; NotFound for those of others too."""
        found = self._conversions.get(token)
        session = _session(visit)
        if found is None or session is None or not self._conversions.is_of(session, found.job_id):
            raise NotFound
        return found

    def on_cancel(self, visit: Visit, token: str) -> Response:
        visit.check_origin()
        found = self._own(visit, token)
        # what has ended meanwhile is shown as it ended
        with suppress(JobNotFound, JobStateError):
            self._runner.get(found.job_id).cancel(actor="visitor")
        if visit.form.get("from") == "list":
            address = visit.urls.build("index") + "#conversions"
        else:
            address = visit.urls.build("conversion", {"token": token})
        return Response(status=303, headers={"Location": address})

    def on_conversion(self, visit: Visit, token: str) -> Response:
        found = self._own(visit, token)
        (card,) = self._cards(visit, [found])
        # of one that runs the database knows nothing that the bar does not
        job = self._runner.get(found.job_id) if card["state"] in ("done", "failed") else None
        attempt = job.attempts[-1] if job and job.attempts else None
        line, reason = None, None
        excerpt: list[tuple[int, str]] = []
        if job and job.user_error:
            source = job.files[0]
            line, reason = refusal(source.display_name, job.user_error)
            if line:
                with suppress(FileMissing), source.open() as content:
                    excerpt = lines_near(content, line)
        return self._page(
            visit,
            "conversion.html",
            card=card,
            done=job.result if job else None,
            attempt=attempt,
            line=line,
            reason=reason,
            excerpt=excerpt,
            size=_result_of(job).size if job and job.result else None,
        )

    def _cards(self, visit: Visit, conversions: Sequence[Conversion]) -> list[dict[str, Any]]:
        """Return what the pages show of each conversion; one question to forkrunner for all of them."""
        views = self._runner.watcher.look([each.job_id for each in conversions]) if conversions else {}
        cards = []
        for each in conversions:
            view = views.get(each.job_id, {"state": "gone"})
            name = result_name(each.name, each.target)
            cards.append(
                {
                    "token": each.token,
                    "job_id": each.job_id,
                    "name": each.name,
                    "format": FORMATS[each.target].title,
                    "created_at": each.created_at,
                    "view": view,
                    "state": view["state"],
                    "result_name": name,
                    "result_url": visit.urls.build("result", {"token": each.token, "name": name}),
                }
            )
        return cards

    def on_result(self, visit: Visit, token: str, name: str) -> Response:
        # the name is in the address for people and their programs; the token says which
        found = self._conversions.get(token)
        try:
            job = self._runner.get(found.job_id) if found else None
            if found is None or job is None or not job.result:
                raise NotFound
            file = _result_of(job)
            response = send_file(
                file.open(),
                visit.environ,
                mimetype="text/plain",
                as_attachment=True,
                download_name=result_name(found.name, found.target),
                etag=file.sha256,
            )
        except (JobNotFound, FileMissing):
            raise NotFound from None
        response.content_length = file.size
        response.headers["Cache-Control"] = "private, no-cache"
        # if it is shown and not saved, it is text, whatever is in it
        response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        return response

    # -- uploads

    def on_upload(self, visit: Visit) -> Response:
        visit.check_origin()
        if (visit.content_length or 0) > LARGEST_UPLOAD:
            visit.drain(_READ_ANYWAY)
            raise RequestEntityTooLarge
        sent = [each for each in visit.files.getlist("files") if each.filename]
        target = visit.form.get("format", "")
        if not sent:
            raise Refused("Please choose a file to convert.")
        if len(sent) > MOST_FILES:
            raise RequestEntityTooLarge
        if target not in FORMATS:
            raise Refused("Please choose the format to convert to.")
        session = _session(visit) or secrets.token_urlsafe(32)
        uploads = [Upload(display_name(each.filename or ""), each.stream) for each in sent]
        made = self._conversions.add(session, uploads, target, _image_size(visit), self._demo_seconds)
        if len(made) == 1:
            address = visit.urls.build("conversion", {"token": made[0].token})
        else:
            address = visit.urls.build("index") + "#conversions"
        if visit.wants_json:
            response = Response(json.dumps({"location": address}), mimetype="application/json")
        else:
            response = Response(status=303, headers={"Location": address})
        response.set_cookie(
            _COOKIE,
            session,
            max_age=KEPT,
            path=f"{visit.root_path}/",
            secure=visit.is_secure,
            httponly=True,
            samesite="Lax",
        )
        return response

    def _may_see(self, request: Request, job: Job[Any]) -> bool:
        session = _session(request)
        return session is not None and self._conversions.is_of(session, job.id)


def _result_of(job: Job[Any]) -> StoredFile:
    """Return the file that a conversion has made."""
    return next(file for file in job.files if file.token)


def _session(request: Request) -> str | None:
    """Return who asks; what is no cookie of ours is nobody."""
    cookie = request.cookies.get(_COOKIE, "")
    return cookie if _SESSION.fullmatch(cookie) else None


def _image_size(visit: Visit) -> ImageSize:
    try:
        sides = [int(visit.form.get(name) or side) for name, side in (("width", 1920), ("height", 1080))]
        return ImageSize(*sides)
    except ValueError:
        raise Refused("The image size is two whole numbers of pixels, from 2 to 1,000,000.") from None
