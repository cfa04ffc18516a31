"""ASGI: `uvicorn with_asgi:app`. `forkrunner.asgi.ProgressASGI` is the endpoint, to be mounted by the framework."""

from jobs import runner, work

from forkrunner.asgi import ProgressASGI
from forkrunner.wsgi import start

start(runner)
progress = ProgressASGI(runner)


async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"].startswith("/jobs/"):
        scope = scope | {"root_path": "/jobs"}
        await progress(scope, receive, send)
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": work.enqueue().id.encode()})
