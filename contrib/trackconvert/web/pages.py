"""The pages: templates, and the files beside them. All text is escaped by the templates."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import jinja2
from werkzeug.exceptions import NotFound
from werkzeug.routing import MapAdapter
from werkzeug.wrappers import Request, Response

from trackconvert.web import words

#: Files in `static/` → their type.
_TYPES = {"site.css": "text/css", "site.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Pages:
    """Loaded whole when it is made: an upgrade of the files never gives a page of one and a style of the other."""

    def __init__(self, **values: Any) -> None:
        """Prepare; every template sees these values."""
        here = files("trackconvert.web")
        self._files = {name: (here / "static" / name).read_bytes() for name in _TYPES}
        self._versions = {
            name: hashlib.sha256(content).hexdigest()[:12] for name, content in self._files.items()
        }
        self._templates = jinja2.Environment(
            loader=jinja2.DictLoader(
                {path.name: path.read_text("utf-8") for path in (here / "templates").iterdir()}
            ),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"ago": words.ago, "size": words.size, "seconds": words.seconds}
        self._templates.globals |= values

    def load(self) -> None:
        """Compile the templates, which otherwise happens when each is first needed."""
        for name in self._templates.list_templates():
            self._templates.get_template(name)

    def page(self, template: str, urls: MapAdapter, status: int = 200, **values: Any) -> Response:
        """Fill in a template; `url` in it builds addresses, `static` those of the files beside it."""

        def static(name: str) -> str:
            return urls.build("static", {"name": name, "v": self._versions[name]})

        html = self._templates.get_template(template).render(url=urls.build, static=static, **values)
        # of one visitor, and old when a job has gone on
        return Response(html, status, {"Cache-Control": "private, no-cache"}, mimetype="text/html")

    def file(self, name: str, request: Request) -> Response:
        """Send a style sheet, script or image: for ever, when it is asked for in the version that it has."""
        if name not in self._files:
            raise NotFound
        response = Response(self._files[name], mimetype=_TYPES[name])
        lasting = request.args.get("v") == self._versions[name]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        response.set_etag(self._versions[name])
        response.make_conditional(request)
        return response
