"""Names inside formats that cannot hold every character, nor a camera.

What a format cannot hold is written as `%XX` (the bytes of UTF-8, as in URLs), and a camera other than
"Primary" as `name@camera`. Decoding takes back only what encoding would have written: any other
text is somebody's real name and stays as it is. So each name survives each format, unchanged.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from trackconvert.model import PRIMARY

#: Control characters, space at either end, and a percent sign that would read as the start of a code.
_ALWAYS = r"[\x00-\x1f\x7f-\x9f]|^\s+|\s+\Z|%(?=[0-9A-Fa-f]{2})"


class Names:
    """The names of one format; `unsafe` is a regular expression of what it cannot hold besides."""

    def __init__(self, unsafe: str = "(?!)") -> None:
        self._unsafe = re.compile(f"{_ALWAYS}|{unsafe}")
        self._unsafe_beside_camera = re.compile(f"{_ALWAYS}|@|{unsafe}")

    def encode(self, name: str) -> str:
        return self._unsafe.sub(_code, name)

    def decode(self, text: str) -> str:
        name = _uncode(text)
        return name if self.encode(name) == text else text

    def join(self, name: str, camera: str) -> str:
        """Encode a name and its camera as one name."""
        joined = self._unsafe_beside_camera.sub(_code, name)
        if camera != PRIMARY:
            joined += "@" + self._unsafe_beside_camera.sub(_code, camera)
        return joined

    def split(self, text: str) -> tuple[str, str]:
        """Take apart what `join` made: the name and the camera."""
        name, _, camera = text.rpartition("@")
        found = (_uncode(name), _uncode(camera)) if name and camera else (_uncode(text), PRIMARY)
        return found if self.join(*found) == text else (text, PRIMARY)


def _code(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _uncode(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text
