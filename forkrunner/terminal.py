"""What a terminal takes: clean text, colour, tables that fit.

Whatever a job has said is hostile here: it reaches the terminal only through `clean`, which shows control
characters and bidirectional ones instead of sending them. Elsewhere than on a terminal all is plain, aligned and whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

#: Of a cell; the rest is on the page of the job.
_LONGEST_CELL = 200
#: From this width on, ids are shown whole.
_WIDE = 100


def clean(text: object, keep: str = "") -> str:
    """Return text in which everything that a terminal might obey is shown as `\\x1b` and the like."""
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def clean_lines(text: str) -> str:
    """As `clean`, for text of several lines; a line that ends as on Windows is no attack."""
    return clean(text.replace("\r\n", "\n"), keep="\n\t")


def short(text: object, limit: int = _LONGEST_CELL) -> str:
    """Return the text on one line of at most `limit` characters."""
    line = clean(" ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def is_styled() -> bool:
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def paint(text: str, colour: str = "", *, bold: bool = False) -> str:
    """Colour text, which must be clean already, if a person looks who has not asked for none."""
    if not is_styled():
        return text
    import click

    return click.style(text, fg=colour or None, bold=bold or None)


class Table:
    """Rows of cells. On a terminal it fits the width; elsewhere it is plain, aligned and whole."""

    def __init__(self, *columns: str, keep: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        self.columns = columns
        #: Columns that are never shortened, and those that are left out, one after the other, where space is short.
        self.keep, self.drop = keep, drop
        self.rows: list[list[tuple[str, str]]] = []

    def add(self, *cells: object, colours: dict[str, str] | None = None) -> None:
        colours = colours or {}
        texts = ["" if cell is None else short(cell) for cell in cells]
        self.rows.append(
            [(text, colours.get(name, "")) for name, text in zip(self.columns, texts, strict=True)]
        )

    def __str__(self) -> str:
        if is_terminal():
            return self._fitting()
        lines = [list(self.columns), *([text for text, _ in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _fitting(self) -> str:
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        console = Console(
            color_system="auto" if is_styled() else None, highlight=False, markup=False, emoji=False
        )
        widths = {
            name: max(len(name), *(cell_len(row[n][0]) for row in self.rows))
            for n, name in enumerate(self.columns)
            if any(row[n][0] for row in self.rows)
        }
        self._fit(widths, console.width)
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name, width in widths.items():
            table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
        for row in self.rows:
            cells = dict(zip(self.columns, row, strict=True))
            table.add_row(*(Text(cells[name][0], style=cells[name][1]) for name in widths))
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip("\n")

    def _fit(self, widths: dict[str, int], room: int) -> None:
        """Shorten the widest column again and again; where that is not enough, leave columns out."""
        drop = [name for name in self.drop if name in widths]
        while (excess := sum(widths.values()) + 2 * (len(widths) - 1) - room) > 0:
            # a column of a few characters says nothing any more
            long = {name: width for name, width in widths.items() if name not in self.keep and width > 8}
            if long:
                widest = max(long, key=lambda name: long[name])
                others = max((width for name, width in long.items() if name != widest), default=8)
                widths[widest] -= max(1, min(excess, widths[widest] - others))
            elif drop:
                del widths[drop.pop(0)]
            else:
                break


def terminal_width() -> int:
    """Columns of the terminal; without one there is no limit."""
    import shutil

    return shutil.get_terminal_size().columns if is_terminal() else 10_000


def short_id(job_id: str) -> str:
    """Return the id, or, where it would take half of the line, its last 12 digits, which commands take too."""
    return job_id if terminal_width() >= _WIDE else f"…{job_id[-12:]}"


def bar(fraction: float, width: int) -> str:
    """Draw a bar in characters, to an eighth of one."""
    eighths = int(min(max(fraction, 0.0), 1.0) * width * 8 + 1e-6)
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
    return drawn[:width].rstrip().ljust(width, "·")
