"""From an upload to the same error at a desk: the example site, its mail, the file in it, and `forkrunner replay`."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Callable
from pathlib import Path

from tests.mailing import MailServer
from tests.support import Cli
from tests.test_site import SAMPLES, Web, finished, serve  # noqa: F401 - a fixture


def test_a_broken_upload_is_mailed_with_its_file_and_fails_alike_again(
    serve: Callable[..., Web],  # noqa: F811 - as above
    cli: Cli,
    mail_server: MailServer,
    tmp_path: Path,
):
    cli.env |= {"FORKRUNNER_MAIL_TO": "ops@example.org", "FORKRUNNER_MAIL_URL": mail_server.url}
    web = serve()
    web.upload("broken.txt")
    (taken,) = mail_server.wait(1)
    job = str(taken.message["X-Forkrunner-Job"])
    (name,) = [name for name in taken.files if not name.endswith(".log.gz")]
    saved = tmp_path / name
    saved.write_bytes(taken.files[name])
    assert name == "broken.txt"
    assert (
        hashlib.sha256(saved.read_bytes()).digest() == hashlib.sha256((SAMPLES / name).read_bytes()).digest()
    )
    subject = str(taken.message["Subject"])
    assert subject.startswith("convert failed: UserError: broken.txt:9: expected y to be a number")
    assert subject.endswith(f" [{job}]")
    (command,) = re.findall(r"^  forkrunner (replay \S+ \S+)", taken.text, re.MULTILINE)
    assert command == f"replay trackconvert.jobs:runner {job}"
    (database,) = cli.folder.glob("forkrunner-demo-*/*.db")
    again = cli.run(
        *command.split(),
        env={"FORKRUNNER_DATABASE": f"sqlite:///{database}"},
        status=None,
    )
    reason = re.search(r"raised (?:[\w.]+): (.+)", taken.text)
    assert reason
    assert again.status != 0
    assert reason[1].strip()[:60] in again.stdout + again.stderr
    web.process.signal(signal.SIGINT)
    finished(web)
