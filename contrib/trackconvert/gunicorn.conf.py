"""The site under gunicorn: gunicorn --config contrib/trackconvert/gunicorn.conf.py trackconvert.web.app:app

For a small host: the site is loaded once, and the workers share its memory. HUP renews the jobs' code then, but not the
pages': for those restart gunicorn.
"""

from __future__ import annotations

import gc

bind = "127.0.0.1:8000"
workers = 2
worker_class = "gthread"
threads = 4
preload_app = True


def pre_fork(server: object, worker: object) -> None:
    # what is loaded is garbage for nobody: a collection in a worker that touched it would copy its pages
    gc.collect()
    gc.freeze()
