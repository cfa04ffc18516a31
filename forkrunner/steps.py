"""Progress without arithmetic: loops, steps, the output of programs. Names of `forkrunner.progress` too.

All of it reports to the one bar of the running job; outside a job it does nothing but pass things through.

- A part of the bar is whoever's turn it is: inside `step("Reading", weight=0.2)` all that is said, 0…1, fills
  that fifth; inside the body of a tracked loop it fills the share of the one item. So loops and steps nest.
- Steps belong to the process, not to a thread: threads that work side by side say `progress` of their own.
- A loop that is no part of another or of a step begins the bar anew, as on a terminal: put two loops into two steps
  to have one bar.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from . import clock
from .progress import begin

if TYPE_CHECKING:
    from .sender import Sender

T = TypeVar("T")

_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
# no piece of a date, a path, an address, a version
_OF = re.compile(r"(?<![\d/.,:-])(\d+) ?(?:/|of) ?(\d+)(?![\d/]|[.,:-]\d)")


def number_of(value: object) -> float | None:
    """Return a finite number, also from its text as `progress` takes it; None for what is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - whatever it is, it is no reason to fail the job
        return None
    return number if number - number == 0.0 else None


# ------------------------------------------------------------------------------------ steps


class step:
    """A part of the job: `with step("Reading", weight=0.2):`.

    `weight` is its share of what it is a part of; without one, or with what is no number, it takes what earlier steps have
    left. Shares beyond 1 get what is left. A step that raises leaves the bar where it is.

    With `parts` it is worked on by so many at once, each with a bar of its own that counts as one part: `with render.part(n):`,
    n from 0, in processes that are forked inside the step.
    """

    def __init__(self, label: str, weight: float | None = None, *, parts: int = 0) -> None:
        self.label = label
        self.weight = weight
        self.parts = int(number_of(parts) or 0)
        self._sender: Sender | None = None

    def __enter__(self) -> Self:
        self._sender = sender = begin()
        if sender is None:
            return self
        self._before = sender.low, sender.span, sender.used, sender.label
        low, span, used, _ = self._before
        left = max(0.0, 1.0 - used)
        weight = number_of(self.weight)
        self._weight = left if weight is None else min(max(weight, 0.0), left)
        sender.low, sender.span, sender.used = low + span * used, span * self._weight, 0.0
        sender.label = self.label
        if self.parts > 0:
            self._share = Share(self.parts, sender)
        sender.say(0.0, None, {})
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        sender = self._sender
        if sender is None:
            return
        if kind is None:
            sender.say(1.0, None, {})
        sender.low, sender.span, used, sender.label = self._before
        sender.used = used + self._weight if kind is None else used
        self._sender = None

    def part(self, number: int) -> Part:
        """Do one of the `parts`: what is said inside is about this one alone."""
        if not 0 <= number < self.parts:
            raise IndexError(f"step {self.label!r}: expected a part from 0 to {self.parts - 1}, got {number}")
        return Part(self._share if self._sender else None, number)


class Share:
    """How far each of some processes is, in memory that they share."""

    def __init__(self, parts: int, sender: Sender) -> None:
        from mmap import mmap

        self.sender = sender
        self.fractions = memoryview(mmap(-1, parts * 8)).cast("d")
        self.outer = sender.share
        self.low, self.span = sender.low, sender.span
        self.number = 0

    def put(self, value: float) -> float:
        """Note how far this part is, and return how far the whole bar is."""
        self.fractions[self.number] = max(value, self.fractions[self.number])
        mean = sum(self.fractions) / len(self.fractions)
        return self.low + self.span * (mean if self.outer is None else self.outer.put(mean))


class Part:
    """One part of a step, while somebody works on it."""

    def __init__(self, share: Share | None, number: int) -> None:
        self.share = share
        self.number = number

    def __enter__(self) -> None:
        if self.share is None:
            return
        sender = self.share.sender
        self.before = sender.low, sender.span, sender.used, sender.share
        sender.low, sender.span, sender.used, sender.share = 0.0, 1.0, 0.0, self.share
        self.share.number = self.number

    def __exit__(self, kind: object, *exc: object) -> None:
        if self.share is None:
            return
        sender = self.share.sender
        if kind is None:
            sender.low, sender.span = 0.0, 1.0
            sender.say(1.0, None, {})
        sender.low, sender.span, sender.used, sender.share = self.before


# ------------------------------------------------------------------------------------ loops


class Bar:
    """The count of a loop, with rate and time left; it words itself only when it is sent."""

    def __init__(self, message: object, total: Any, initial: Any = 0) -> None:
        self.message = message
        self.unit = ""
        #: Counts are shown with k, M, G, of so much each; None: in full.
        self.thousand: float | None = None
        #: What one of a count stands for.
        self.scale = 1.0
        self.n = self.initial = initial
        self.total = total
        self.start = clock.monotonic()
        self.sender: Sender | None = None

    def begin(self) -> None:
        """Take the part of the bar whose turn it is."""
        self.sender = sender = begin()
        if sender is None:
            return
        self.before = sender.low, sender.span, sender.used, sender.label
        # a step's remaining part, or the item of a loop
        self.low, self.span = sender.low + sender.span * sender.used, sender.span * (1.0 - sender.used)
        self.anew()

    def anew(self) -> None:
        """Begin at the beginning: the whole bar too, if it is this loop's alone."""
        sender = self.sender
        if sender is None:
            return
        if self.span == 1.0 and not sender.is_helper:
            sender.restart()
        self.moved()

    @property
    def total(self) -> Any:
        return self._total

    @total.setter
    def total(self, value: Any) -> None:
        number = number_of(value)
        #: As it was given, for who asks; None for what is no number.
        self._total = None if number is None else number if isinstance(value, str) else value
        self.whole = max(number or 0.0, 0.0)

    def moved(self) -> None:
        """Report the count, and hand the share of the next item to whatever reports while it is worked on."""
        sender = self.sender
        if sender is None:
            return
        outer = self.before[3]
        sender.low, sender.span, sender.used, sender.label = self.low, self.span, 0.0, outer
        if not self.whole:
            sender.say(None, self, self.facts)
            sender.span = 0.0  # of an unknown number no item has a share
        else:
            try:
                part = float(self.n) / self.whole
            except Exception:  # noqa: BLE001 - whatever a count is, it is no reason to fail the job
                part = 0.0
            sender.say(part, self, self.facts)
            here = 1.0 if part >= 1.0 else part if part > 0.0 else 0.0
            sender.low = self.low + self.span * here
            sender.span = self.span / self.whole if here < 1.0 else 0.0
        sender.label = self

    def close(self) -> None:
        if self.sender is not None:
            self.sender.low, self.sender.span, self.sender.used, self.sender.label = self.before
            self.sender = None

    @property
    def rate(self) -> float | None:
        seconds = clock.monotonic() - self.start
        done = (number_of(self.n) or 0.0) - (number_of(self.initial) or 0.0)
        return done / seconds if done > 0 and seconds > 0 else None

    def facts(self) -> dict[str, Any]:
        rate = self.rate
        return {"done": self.n, "total": self.total, "rate": None if rate is None else round(rate, 3)}

    def __str__(self) -> str:
        count = self.show(self.n) if self.total is None else f"{self.show(self.n)} of {self.show(self.total)}"
        words = [str(self.message)] if self.message else []
        words.append(count if self.thousand else f"{count} {self.unit}".rstrip())
        rate = self.rate
        if rate:
            rate *= self.scale
            words.append(f"({self.show(rate, 1.0)}/s)" if rate >= 1 else f"({show_count(1 / rate)} s each)")
        return " ".join(words)

    def show(self, n: Any, scale: float | None = None) -> str:
        """Word a count, with its unit if that has k, M, G before it."""
        number = number_of(n)
        if number is None:
            return str(n)
        number *= self.scale if scale is None else scale
        return show_scaled(number, self.unit, self.thousand) if self.thousand else show_count(number)


def show_count(number: float) -> str:
    """Word a number as people read it: 1,234,567; 1.5."""
    if number == round(number) or abs(number) >= 100.0:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def show_scaled(number: float, unit: str = "", thousand: float = 1000.0) -> str:
    """Word a number with a prefix: 1.23 MB."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(number) < 999.5:
            return f"{number:.3g} {prefix}{unit}".rstrip()
        number /= thousand
    return f"{number:,.0f} Z{unit}"


def track(iterable: Iterable[T], message: str | None = None, total: float | None = None) -> Iterator[T]:
    """Pass on the items, and report how many are done: `for frame in track(frames, "Frames"):`.

    Where neither `total` nor the iterable says how many there are, the bar stays and the message counts.
    """
    bar = Bar(message, length_of(iterable) if total is None else total)
    bar.begin()
    try:
        for item in iterable:
            yield item
            bar.n += 1
            bar.moved()
    finally:
        bar.close()


def length_of(iterable: object) -> int | None:
    try:
        return len(iterable)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - some raise what they like where they have no length
        return None


# --------------------------------------------------------------------------- other programs


def follow(stream: Any, parse: Callable[[str], Any] | re.Pattern[str] | str | None = None) -> Iterator[str]:
    """Pass on the lines of a program's output, and report the progress that they tell.

    `stream` is `Popen.stdout`, as text or bytes (a line also ends where the program goes back to its beginning), or any
    iterable of lines. `parse` is called with a line and returns a fraction, (fraction, message), or None. Or it is a
    regular expression: its only group is a percentage, or the first of two is a number and the second the whole. Without it
    `42 %` or `3/7` are found, wherever they stand; dates, and what is more than the whole, are passed over.

        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for line in follow(process.stdout):
                pass
    """
    find = parse if callable(parse) else _finder(parse)
    for line in _lines(stream):
        found = find(line)
        sender = None if found is None else begin()
        if sender is not None:
            fraction, message = found if isinstance(found, tuple) else (found, None)
            sender.say(fraction, message, {})
        yield line


def _finder(pattern: re.Pattern[str] | str | None) -> Callable[[str], float | None]:
    patterns = (_PERCENT, _OF) if pattern is None else (re.compile(pattern),)

    def find(line: str) -> float | None:
        for each in patterns:
            for match in each.finditer(line):
                try:
                    part, *whole = (float(group) for group in match.groups() if group)
                    fraction = part / whole[0] if whole else part / 100
                except (ValueError, ZeroDivisionError):
                    continue  # what the program says there is no number, as `N/A`, or of nothing
                # where we only guess it was a ratio or a size, and the bar would never come back from its end;
                # who says where to look may be a frame beyond an estimate
                if fraction <= 1.0 or pattern is not None:
                    return fraction
        return None

    return find


def _lines(stream: Any) -> Iterator[str]:
    read = getattr(stream, "read1", None)
    if read is None and hasattr(stream, "readinto"):
        read = stream.read  # unbuffered: gives what is there
    if read is None:
        for line in stream:
            yield (line.decode("utf-8", "replace") if isinstance(line, bytes) else line).rstrip("\r\n")
        return
    rest, returned = b"", False
    while data := read(65536):
        if returned and data.startswith(b"\n"):
            data = data[1:]
        # a bar that is drawn again and again ends with \r: its line is not kept until the next one
        returned = data.endswith(b"\r")
        *lines, rest = re.split(rb"\r\n|\r|\n", rest + data)
        for line in lines:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")
