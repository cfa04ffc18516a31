"""The WSGI file: gunicorn trackconvert.web.app:app, or any other server. The jobs are run for as long as that lives.

The runner's settings come from forkrunner.toml and FORKRUNNER_*; the site's own are below.
"""

from __future__ import annotations

import os

from forkrunner.wsgi import start
from trackconvert.jobs import runner
from trackconvert.web.site import Site

# named, because jobs need nothing of the site
start(runner, "trackconvert.jobs:runner")
app = Site(
    runner,
    # how long a conversion takes at least, seconds: to have something to look at
    demo_seconds=float(os.environ.get("TRACKCONVERT_DEMO_SECONDS", "0")),
)
# here, so that workers that are forked from one that has it all share it
app.load()
