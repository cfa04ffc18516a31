"""Bottle: `gunicorn with_bottle:app`."""

import bottle
from jobs import runner, work

site = bottle.Bottle()
site.route("/", callback=lambda: work.enqueue().id)
app = runner.wsgi(site, mount="/jobs")
