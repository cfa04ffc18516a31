"""Names of files: what a client's may look like before people, and what may be a name on a disk.

No system call. A name that a client gave is text; of it a path gets at most the kind of file that it ends with.
"""

from __future__ import annotations

import re

#: Characters of a name before people, and on a disk.
_LONGEST_SHOWN, _LONGEST = 200, 100


def display_name(name: str) -> str:
    """Return what a file may be called before people: one line of visible characters, no folders, never empty."""
    last = re.split(r"[/\\]", str(name))[-1]
    # neither control characters nor those that turn the direction of a text, which hide what a name ends with
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in last)
    shown = " ".join(shown.split())
    if len(shown) > _LONGEST_SHOWN:
        stem, dot, suffix = shown.rpartition(".")
        keep = len(suffix) + 1 if dot and stem and len(suffix) <= 20 else 0
        shown = shown[: _LONGEST_SHOWN - keep - 1] + "…" + (shown[-keep:] if keep else "")
    return shown if shown.strip(". ") else "file"


def guess_type(name: str) -> str:
    import mimetypes

    kind, encoding = mimetypes.guess_type(name)
    return kind if kind and not encoding else "application/octet-stream"


def address(token: str, name: str) -> str:
    """Return where a file can be downloaded, below the mount of the endpoint; the name in it is for people."""
    from urllib.parse import quote

    return f"files/{token}/{quote(display_name(name), safe='')}"


def suffix_of(name: str) -> str:
    """Return what tells the kind of a file, as `.txt`, if it is fit for a name of our own; else nothing."""
    stem, dot, suffix = name.rpartition(".")
    fit = dot and stem and suffix.isascii() and suffix.isalnum() and len(suffix) <= 20
    return f".{suffix}" if fit else ""


def safe_name(name: str) -> str:
    """Return a name as a file may have it in a folder of our own: letters, digits, `_`, `.` and `-`, never hidden."""
    last = re.sub(r"[^A-Za-z0-9_.-]+", "_", re.split(r"[/\\]", name)[-1]).lstrip("._-")
    stem, dot, suffix = last.rpartition(".")
    if dot and len(suffix) <= 20:
        return f"{stem[: _LONGEST - len(suffix) - 1]}.{suffix}" if stem else f"file.{suffix}"
    return last[:_LONGEST] or "file"
