"""The web application of the browser tests: upload a file of tracks, watch its conversion, fetch the result.

Started as a process: `python -m tests.upload_app PORT`, in a folder that is its own. Plain WSGI; the endpoint is mounted at /jobs.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import run_simple
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from forkrunner import InputFile
from forkrunner.wsgi import progress_app
from trackconvert.jobs import convert, runner

progress = progress_app(runner)
PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><title>Convert tracks</title><link rel=icon href="data:,">
<h1>Convert tracks</h1>
{}
"""
FORM = """<form method=post enctype=multipart/form-data>
<label>File <input type=file name=source></label> <label>Seconds <input name=seconds value=0></label> <button>Convert</button>
</form>"""
WATCH = """<script type=module src="/jobs/{script}"></script>
<p>{name} <forkrunner-progress src="/jobs/{id}" label="Conversion"></forkrunner-progress></p>"""


@Request.application
def site(request: Request) -> Response:
    place, _, id = request.path.strip("/").partition("/")
    if place == "watch":
        words = WATCH.format(script=progress.script, id=escape(id), name=escape(request.args.get("name", "")))
        return Response(PAGE.format(words), mimetype="text/html")
    if place:
        return NotFound().get_response(request.environ)
    if request.method == "POST":
        return upload(request)
    return Response(PAGE.format(FORM), mimetype="text/html")


def upload(request: Request) -> Response:
    sent = request.files["source"]
    name = Path(sent.filename or "").name
    file = InputFile.from_stream(sent.stream, name=name)
    job = convert.enqueue(file, "nuke", demo_seconds=float(request.form["seconds"]))
    return redirect(f"/watch/{job.id}?name={name}")


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), DispatcherMiddleware(site, {"/jobs": progress}), threaded=True)
