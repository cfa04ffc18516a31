"""What a WSGI file imports: the endpoint of `endpoint.py`, loaded when it is first named, since Werkzeug takes its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .endpoint import ProgressApp as ProgressApp
    from .endpoint import progress_app as progress_app
    from .endpoint import public_error as public_error

_ENDPOINT = frozenset({"ProgressApp", "progress_app", "public_error"})


def __getattr__(name: str) -> object:
    if name not in _ENDPOINT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import endpoint

    value: object = getattr(endpoint, name)
    return value
