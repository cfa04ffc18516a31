"""The download of a file of a result: which headers it gets, and which part of it is sent.

Whatever is in it, and whatever its owner calls it: a browser saves it, and shows nothing of it in the name of the site.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import quote

from werkzeug.wrappers import Response
from werkzeug.wsgi import wrap_file

from .filenames import display_name

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

    from .records import File
    from .storage import Storage

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}(; ?charset=[\w-]{1,40})?", re.ASCII)
_HEADERS = {
    # it is what it says to be, and if it is shown nevertheless, it may do nothing
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    # asked for anew each time, because it is gone when its job is; mostly the answer is that it has not changed
    "Cache-Control": "private, no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PIECE = 1 << 18


def download(request: Request, file: File, storage: Storage) -> Response:
    """Answer with a file, or with the part of it that is asked for; it is closed with the response.

    Raises:
        FileMissing, StorageError: its content cannot be had.
        RequestedRangeNotSatisfiable: that part is not there.
    """
    kind = file.media_type or ""
    kind = kind if _MEDIA_TYPE.fullmatch(kind) else "application/octet-stream"
    stream = storage.open(file.sha256)
    try:
        response = Response(
            wrap_file(request.environ, stream, _PIECE),
            headers=_HEADERS,
            content_type=kind,
            direct_passthrough=True,
        )
        response.headers.set("Content-Disposition", "attachment", **_names(display_name(file.name)))
        response.content_length = file.size
        response.set_etag(file.sha256)
        response.make_conditional(request, accept_ranges=True, complete_length=file.size)
    except BaseException:
        stream.close()
        raise
    if request.method == "HEAD" or response.status_code == 304:
        # nobody asks for the content, and so nobody would close it
        stream.close()
    return response


def _names(name: str) -> dict[str, str]:
    """Return the parameters of RFC 6266: for all browsers, and for those that know UTF-8."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip(" .") or "file"
    if plain == name:
        return {"filename": name}
    return {"filename": plain, "filename*": f"UTF-8''{quote(name, safe='')}"}
