"""Pyramid: `gunicorn with_pyramid:app`."""

from jobs import runner, work
from pyramid.config import Configurator
from pyramid.response import Response

with Configurator() as config:
    config.add_route("make", "/")
    config.add_view(lambda request: Response(work.enqueue().id), route_name="make")
    app = runner.wsgi(config.make_wsgi_app(), mount="/jobs")
