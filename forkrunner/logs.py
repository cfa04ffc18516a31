"""What jobs have written, for the command line: as it is kept, and live.

Output goes to standard output, everything about it to standard error.
"""

from __future__ import annotations

import codecs
import sys
import time
from typing import TYPE_CHECKING

from forkrunner import jsonpages, terminal, wording
from forkrunner.errors import StoreUnavailable
from forkrunner.invocation import BAD, FINE, complain
from forkrunner.job import ENDED, State
from forkrunner.live import Live, NotHere

if TYPE_CHECKING:
    from forkrunner.records import Attempt, Row
    from forkrunner.store import Store

#: Seconds between two looks at a file in memory, and at a row.
_FILE_PAUSE, _ROW_PAUSE = 0.1, 0.25


class Logs:
    """The output of one job."""

    def __init__(self, store: Store, job_id: str, *, raw: bool = False) -> None:
        self.store = store
        self.job_id = job_id
        self.raw = raw
        self._line_open = False

    # ------------------------------------------------------------------------ as it stands

    def show(self, number: int | None, *, as_json: bool) -> int:
        """Print what an attempt has written, or has so far; return the exit status."""
        row = self.store.get(self.job_id)
        ended = {attempt.attempt: attempt for attempt in row.attempts}
        if row.state is State.BUSY and row.attempt not in ended and number in (None, row.attempt):
            return self._show_running(row, as_json)
        attempt = ended.get(number) if number is not None else next(reversed(ended.values()), None)
        if attempt is None and number is None:
            # nothing was asked for that does not exist
            waits = "it never ran" if row.state in ENDED else "it has not started yet"
            complain(f"job {row.id} is {row.state}: {waits}")
            return BAD
        if attempt is None:
            known = f"ended: {', '.join(map(str, ended)) or 'none'}"
            complain(f"job {row.id} has no such attempt ({known}; state {row.state})")
            return BAD
        text = self._kept(attempt) if attempt.output_is_known else None
        return self._print(attempt.attempt, text, as_json, wording.no_output(attempt))

    def _show_running(self, row: Row, as_json: bool) -> int:
        try:
            live = self._live(row)
        except NotHere as error:
            complain(f"attempt {row.attempt} runs, and its output is kept when it ends: {error}")
            return BAD
        text = b"".join(iter(live.read, b"")).decode("utf-8", "replace")
        live.close()
        return self._print(row.attempt, text, as_json, f"Attempt {row.attempt} has written nothing so far.")

    def _print(self, number: int, text: str | None, as_json: bool, nothing: str) -> int:
        if as_json:
            print(jsonpages.to_json({"id": self.job_id, "attempt": number, "output": text}))
        elif not text:
            print(nothing, file=sys.stderr)
        else:
            self._write(text)
            self._end_line()
        return FINE

    def _kept(self, attempt: Attempt) -> str:
        tail = attempt.output_tail or ""
        more = (attempt.output_bytes or 0) > len(tail.encode())
        return (self.store.output(self.job_id, attempt.attempt) if more else None) or tail

    def _live(self, row: Row) -> Live:
        holder = next((one for one in self.store.supervisors() if one.id == row.supervisor), None)
        return Live(row.id, row.attempt, holder)

    # --------------------------------------------------------------------------------- live

    def follow(self) -> int:
        """Print what the job writes until it has ended, attempt after attempt; return the exit status."""
        row = self._row()
        # of those before only the last, and that only if nothing runs
        seen = len(row.attempts) - (row.state is not State.BUSY)
        waits = ""
        while True:
            for attempt in row.attempts[max(seen, 0) :]:
                self._write(self._kept(attempt))
                self._tell(f"attempt {attempt.attempt}: {terminal.short(wording.outcome_sentence(attempt))}")
            seen = len(row.attempts)
            if row.state in ENDED:
                if not row.attempts:
                    self._tell(f"{row.state}, and never ran")
                return FINE
            if row.state is State.BUSY and self._stream(row):
                row = self._wait_for_its_end(row)
                for attempt in row.attempts[seen:][:1]:
                    self._tell(
                        f"attempt {attempt.attempt}: {terminal.short(wording.outcome_sentence(attempt))}"
                    )
                    seen += 1
                waits = ""
                continue
            if row.state is State.PENDING and waits != "pending":
                waits = "pending"
                self._tell("pending: waiting for it to start")
            _pause(_ROW_PAUSE)
            row = self._row()

    def _row(self) -> Row:
        """Return the row; a database that is away is waited for."""
        while True:
            try:
                return self.store.get(self.job_id)
            except StoreUnavailable:
                _pause(1.0)

    def _stream(self, row: Row) -> bool:
        """Print what the running attempt writes until its process is gone; False if that cannot be seen from here.

        Raises NotHere when it never will be.
        """
        try:
            live = self._live(row)
        except NotHere:
            # it may just have ended: then the row says more
            _pause(_ROW_PAUSE)
            now = self._row()
            if (now.state, now.attempt) == (row.state, row.attempt) and len(now.attempts) == len(
                row.attempts
            ):
                raise
            return False
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while True:
            alive = live.is_alive()
            while data := live.read():
                self._write(decode(data))
            if not alive:  # and what it wrote until then was read
                live.close()
                return True
            _pause(_FILE_PAUSE)

    def _wait_for_its_end(self, row: Row) -> Row:
        while True:
            now = self._row()
            if now.state is not State.BUSY or now.attempt != row.attempt:
                return now
            _pause(_ROW_PAUSE / 5)

    # ------------------------------------------------------------------------------ writing

    def _write(self, text: str) -> None:
        if text:
            shown = text if self.raw else terminal.clean_lines(text)
            print(shown, end="", flush=True)
            self._line_open = not shown.endswith("\n")

    def _end_line(self) -> None:
        if self._line_open:
            print(flush=True)
            self._line_open = False

    def _tell(self, words: str) -> None:
        self._end_line()
        print(f"[{words}]", file=sys.stderr, flush=True)


def _pause(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251 - a person looks at it
