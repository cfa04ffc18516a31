"""How a mold begins: from a fresh interpreter to its loop, or to the message that the application does not import.

The interpreter is started by `link.py`. What it says first is `up` or `broken`; what it is told first is `boot`.
"""

from __future__ import annotations

import os
import sys

from . import channel, descriptors, process, stacks, streams, titles
from .application import load, settle
from .errors import ForkrunnerError, TargetError
from .memory import prefer_as_victim
from .mold import Mold
from .safety import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Entry point of the mold's interpreter: `python -c … CHANNEL PARENT ROOM`."""
    link, parent = int(sys.argv[1]), int(sys.argv[2])
    del sys.argv[3:]  # titles.ROOM
    process.tie_to(parent)
    process.adopt_orphans()
    # and its children, which inherit it
    prefer_as_victim()
    # what was passed to us is not for the programs that jobs start
    descriptors.keep_to_ourselves()
    boot, _ = _first_message(link)
    for name in boot["unset"]:
        del os.environ[name]
    title = f"mold {boot['target']} gen {boot['generation']}"
    titles.share()
    titles.show(title)
    streams.install()
    # of an import that crashes or hangs; the children's go elsewhere
    stacks.report_stacks_to(2)
    try:
        _enter(boot["folder"])
        watch = Watch()
        runner = load(boot["target"], boot["folder"], boot["preload"], watch)
        runner.target = boot["target"]
        place = settle(runner, boot, [link], watch)
    except ForkrunnerError as error:
        _send_all(link, channel.pack({"kind": "broken", "error": str(error), **error.facts}))
        process.exit_now(2)
    titles.show(title)  # again, after the rehearsal
    tasks = {task.name: task.policy() for task in runner.tasks.values()}
    up = {"kind": "up", "tasks": tasks, "code": runner.code, "unsafe": place.unsafe, "queues": True}
    if boot.get("watch"):
        up["files"] = _own_files()
    _send_all(link, channel.pack(up))
    mold = Mold(link, place, title)
    try:
        mold.run()
    except BaseException:
        os.dup2(mold.stderr, 2)
        raise
    process.exit_now(0)


def _first_message(link: int) -> tuple[dict[str, Any], bytes]:
    inbox = channel.Inbox()
    while True:
        data = os.read(link, 65536)
        if not data:
            process.exit_now(0)
        inbox.feed(data)
        for message in inbox:
            return message


def _own_files() -> list[str]:
    """List the files of the modules that belong neither to Python, nor to an installed package, nor to us."""
    others = (sys.prefix, sys.base_prefix, os.path.dirname(__file__))
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return [path for path in files if path and os.path.isabs(path) and not path.startswith(others)]


def _enter(folder: str) -> None:
    try:
        # by its name: a link in it may lead elsewhere than when the supervisor was started
        os.chdir(folder)
    except OSError as error:
        raise TargetError(f"{folder}: {error.strerror}; the application was to be imported there") from error


def _send_all(link: int, data: bytes) -> None:
    while data:
        data = data[os.write(link, data) :]
