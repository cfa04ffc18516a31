"""What type checkers say to users; application.py holds their code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_name("application.py")
ROOT = FILE.parents[2]


def test_a_users_file_is_checked_strictly(tmp_path):
    # as a user has it: outside of the checkout, with nothing configured, and silent about what is installed
    shutil.copy(FILE, tmp_path)
    options = ["--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, FILE.name],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("Success: no issues found in 1 source file\n", "")
