"""An FTP server for test_storage.py: serves a folder on a free port, which it prints; ends with its parent."""

from __future__ import annotations

import os
import sys

from pyftpdlib.authorizers import DummyAuthorizer  # type: ignore[import-untyped]
from pyftpdlib.handlers import FTPHandler  # type: ignore[import-untyped]
from pyftpdlib.servers import FTPServer  # type: ignore[import-untyped]

folder, port = sys.argv[1], int(sys.argv[2])
authorizer = DummyAuthorizer()
authorizer.add_user("user", "secret", folder, perm="elradfmwMT")


FTPHandler.authorizer = authorizer
server = FTPServer(("127.0.0.1", port), FTPHandler)
print(server.address[1], flush=True)
parent = os.getppid()
while os.getppid() == parent:
    server.serve_forever(timeout=0.5, blocking=False)
