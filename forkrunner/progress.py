"""How far a job is, as it says it itself: the one bar of a job, which may vanish without harm.

Where that is kept, and read by whoever watches, is in places.py. Imported in the mold: nothing heavy here.
What a job that says nothing does not need is elsewhere: when to send in `sender.py`; `track`,
`step` and `follow` in `steps.py`, `tqdm` and `trange` in `dropin.py`, as names of this module too.
"""

from __future__ import annotations

from .common import noted, was_told
from .current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .dropin import tqdm as tqdm
    from .dropin import trange as trange
    from .sender import Sender
    from .steps import follow as follow
    from .steps import step as step
    from .steps import track as track

_STEPS = frozenset({"follow", "step", "track"})
_DROP_IN = frozenset({"tqdm", "trange"})

_sender: Sender | None = None


def progress(fraction: float | None = None, message: str | None = None, **detail: Any) -> None:
    """Say how far the running job is; outside a job it does nothing.

    `fraction` is in 0…1: what is beyond is taken as the nearer end; none, NaN and what is no number as "no
    further than before". The bar never goes back: after 0.5, 0.4 changes the message only. `detail`
    is JSON for whoever reads it; what is too much of it (16 KiB) or no JSON is left out.

    Sent at most `progress_rate` times a second; what is held back follows when its time has come. Never raises, and
    never keeps the job waiting because nobody listens.
    """
    # where nobody listens a process that the job has forked need not even load what it would say it with
    if _sender is None and (current.job is None or noted(fraction) or begin() is None):
        return
    assert _sender is not None
    _sender.say(fraction, message, detail)


def begin() -> Sender | None:
    """Return the sender of the job that this process runs, made at the first word; None outside a job."""
    global _sender
    if _sender is None and current.job is not None and current.place is not None:
        from .sender import Sender

        _sender = Sender(current.job, current.place)
        current.told = True
    return _sender


def end() -> None:
    """In a child: send what is still held back, also by processes of the job that are gone."""
    sender = begin() if _sender is not None or was_told() else None
    if sender is not None:
        sender.end()


def __getattr__(name: str) -> object:
    value: object
    if name in _STEPS:
        from . import steps

        value = getattr(steps, name)
    elif name in _DROP_IN:
        from . import dropin

        value = getattr(dropin, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


# --------------------------------------------------------------------------- where it is kept
