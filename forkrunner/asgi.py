"""The HTTP endpoint for ASGI servers and frameworks: `endpoint.py` behind the other interface.

A look at memcached or at the database blocks, so it is made in the default executor of the server's event loop; no pool of
threads is made here. A long poll waits in the loop and holds no thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from werkzeug.wrappers import Request

from . import clock
from .endpoint import Answer, ProgressApp, is_old
from .runner import Runner

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Long polls at a time: each costs memory, and its looks a thread for a moment.
_LONG_POLLS = 500


class ProgressASGI:
    """The endpoint of one runner; the options are those of `ProgressApp`."""

    def __init__(self, runner: Runner, **options: Any) -> None:
        self.app = ProgressApp(runner, **options)
        self._waiting = 0

    @property
    def script(self) -> str:
        return self.app.script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            request = Request(_environ(scope))
            await _send(await self.answer(request), request, send)
        else:
            raise RuntimeError(f"expected an HTTP request, got {scope['type']}")

    async def answer(self, request: Request) -> Answer:
        answer = await self._look(request)
        end = self.app.wait_until(request, answer)
        if end is None or self._waiting >= _LONG_POLLS:
            return answer
        self._waiting += 1
        try:
            while (
                answer.again is not None
                and clock.monotonic() + answer.again < end
                and is_old(request, answer)
            ):
                await asyncio.sleep(answer.again)
                answer = await self._look(request)
        finally:
            self._waiting -= 1
        return answer

    async def _look(self, request: Request) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(None, self.app.look, request)


def progress_asgi(runner: Runner, **options: Any) -> ProgressASGI:
    """Return the endpoint of a runner as an ASGI application; the options are those of `ProgressApp`."""
    return ProgressASGI(runner, **options)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _environ(scope: Scope) -> dict[str, Any]:
    """Say in WSGI's words what the request is; its body is of no interest."""
    mount = scope.get("root_path", "").rstrip("/")
    # servers and frameworks differ in whether the path begins with the mount
    path = scope["path"].removeprefix(mount) if scope["path"].startswith(f"{mount}/") else scope["path"]
    path = "" if path == mount else path
    host, port = scope.get("server") or ("localhost", 80)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": mount.encode().decode("latin-1"),
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or 80),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": (scope.get("client") or ("",))[0],
        "wsgi.url_scheme": scope.get("scheme", "http"),
        # for `authorize`: what the framework has put there, a session for one
        "asgi.scope": scope,
    }
    for name, value in scope.get("headers", ()):
        key = f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}"
        text = value.decode("latin-1")
        # HTTP/2 and 3 may split what the browser sends as one, and a comma would be part of a cookie
        comma = "; " if key == "HTTP_COOKIE" else ", "
        environ[key] = f"{environ[key]}{comma}{text}" if key in environ else text
    return environ


async def _send(answer: Answer, request: Request, send: Send) -> None:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in answer.get_wsgi_headers(request.environ)
    ]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    if answer.direct_passthrough:
        await _send_file(answer, request, send)
        return
    body = b"" if request.method == "HEAD" else answer.get_data()
    await send({"type": "http.response.body", "body": body})


async def _send_file(answer: Answer, request: Request, send: Send) -> None:
    loop = asyncio.get_running_loop()
    pieces = iter(answer.response) if request.method == "GET" and answer.status_code != 304 else iter(())
    try:
        while piece := await loop.run_in_executor(None, next, pieces, b""):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        # also when the other side has gone
        await loop.run_in_executor(None, answer.close)
