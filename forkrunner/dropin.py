"""The stand-in for the library tqdm: existing loops report to the bar of the running job. Names of `forkrunner.progress` too.

Its signatures and names are the library's, so that no loop fails for want of one; what it says of terminals is taken and does
nothing. Not here: what belongs to other libraries or is of no use without a terminal (`pandas`, `gather`,
`as_completed`, `format_meter`).
"""

from __future__ import annotations

from _thread import RLock
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Generic, Self, TypeVar

from . import clock
from .steps import Bar, length_of, number_of, show_count, show_scaled

T = TypeVar("T")


class tqdm(Generic[T]):
    """What the class of this name in the library tqdm does, for the bar of the running job; nothing is printed.

    Takes all of its arguments and has its attributes and methods, so `from forkrunner.progress import tqdm` is all that
    a loop needs.
    """

    monitor: ClassVar[Any] = None
    monitor_interval: ClassVar[float] = 0
    _lock: ClassVar[Any] = None

    def __init__(
        self,
        iterable: Iterable[T] | None = None,
        desc: str | None = None,
        total: Any = None,
        leave: bool | None = True,
        file: Any = None,
        ncols: int | None = None,
        mininterval: float = 0.1,
        maxinterval: float = 10.0,
        miniters: float | None = None,
        ascii: Any = None,
        disable: bool | None = False,
        unit: str = "it",
        unit_scale: bool | float = False,
        dynamic_ncols: bool = False,
        smoothing: float = 0.3,
        bar_format: str | None = None,
        initial: Any = 0,
        position: int | None = None,
        postfix: Any = None,
        unit_divisor: float = 1000,
        write_bytes: bool | None = False,
        lock_args: Any = None,
        nrows: int | None = None,
        colour: str | None = None,
        delay: float | None = 0.0,
        gui: bool = False,
        **others: Any,
    ) -> None:
        if total is None and iterable is not None:
            total = length_of(iterable)
        self.iterable = iterable
        self.desc = desc or ""
        self.postfix: str | None = None
        self.disable = bool(disable)
        self.unit, self.unit_scale, self.unit_divisor = unit, unit_scale, unit_divisor
        self.initial = self.last_print_n = initial
        self.pos = 0 if position is None else -position
        self.start_t = self.last_print_t = clock.wall()
        self.leave, self.fp, self.ascii, self.bar_format, self.colour = leave, file, ascii, bar_format, colour
        self.ncols, self.nrows, self.dynamic_ncols, self.gui = ncols, nrows, dynamic_ncols, gui
        self.mininterval, self.maxinterval, self.miniters = mininterval, maxinterval, miniters or 0
        self.dynamic_miniters, self.smoothing, self.delay = miniters is None, smoothing, delay
        self.lock_args = lock_args
        self._bar = Bar(None, total, initial)
        if isinstance(postfix, dict):
            self.set_postfix(postfix)
        elif postfix is not None:
            self.set_postfix_str(postfix)
        self._reword()
        if not self.disable:
            self._bar.begin()

    # -- the loop

    def __iter__(self) -> Iterator[T]:
        if self.iterable is None:
            raise TypeError("tqdm: expected something to iterate over, got none")
        return self._each(self.iterable)

    def __reversed__(self) -> Iterator[T]:
        return self._each(reversed(self.iterable))  # type: ignore[call-overload]

    def _each(self, iterable: Iterable[T]) -> Iterator[T]:
        try:
            for item in iterable:
                yield item
                self.update()
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[T]:
        iterable: Any = self.iterable
        if not hasattr(iterable, "__aiter__"):
            for item in self:
                yield item
            return
        try:
            async for item in iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __contains__(self, item: object) -> bool:
        # else the interpreter would go through the loop for it
        return item in self.iterable  # type: ignore[operator]

    def __len__(self) -> int:
        length = length_of(self.iterable)
        return int(self.total) if length is None else length

    def __bool__(self) -> bool:
        return self._bar.total is None or self._bar.whole > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the count

    @property
    def n(self) -> Any:
        return self._bar.n

    @n.setter
    def n(self, value: Any) -> None:
        self._bar.n = value

    @property
    def total(self) -> Any:
        return self._bar.total

    @total.setter
    def total(self, value: Any) -> None:
        self._bar.total = value

    def update(self, n: Any = 1) -> bool | None:
        if not self.disable:
            self._bar.n += 1 if n is None else n
            self._bar.moved()
        return None

    def reset(self, total: Any = None) -> None:
        if total is not None:
            self._bar.total = total
        self._bar.n, self._bar.start = 0, clock.monotonic()
        self._bar.anew()

    def close(self) -> None:
        self._bar.close()

    # -- the words

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        self._reword()
        self._bar.moved()

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        self.desc = desc or ""
        self.refresh()

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None:
        self.set_description(desc)

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **values: object) -> None:
        shown = []
        for name, value in {**dict(ordered_dict or {}), **values}.items():
            shown.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
        self.set_postfix_str(", ".join(shown))

    def set_postfix_str(self, s: object = "", refresh: bool = True) -> None:
        self.postfix = str(s)
        self.refresh()

    def _reword(self) -> None:
        bar, scale = self._bar, number_of(self.unit_scale) or 0.0
        bar.message = " ".join(filter(None, (str(self.desc or "").rstrip().removesuffix(":"), self.postfix)))
        bar.unit = "" if self.unit == "it" else str(self.unit).strip()
        bar.thousand = (number_of(self.unit_divisor) or 1000.0) if scale else None
        # True: as it is; a number: what one of a count stands for
        bar.scale = scale if scale > 1.0 else 1.0

    def __str__(self) -> str:
        return str(self._bar)

    @property
    def format_dict(self) -> dict[str, Any]:
        names = ("n", "total", "ncols", "nrows", "ascii", "unit", "unit_scale", "bar_format", "postfix")
        return {
            **{name: getattr(self, name) for name in (*names, "unit_divisor", "initial", "colour")},
            "elapsed": clock.monotonic() - self._bar.start,
            "rate": self._bar.rate,
            "prefix": self.desc,
        }

    @staticmethod
    def format_num(n: Any) -> str:
        number = number_of(n)
        return str(n) if number is None else show_count(number)

    @staticmethod
    def format_sizeof(num: float, suffix: str = "", divisor: float = 1000) -> str:
        return show_scaled(num, suffix, divisor)

    @staticmethod
    def format_interval(t: float) -> str:
        minutes, seconds = divmod(int(t), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"

    # -- the terminal, which there is none of

    def display(self, *args: object, **others: object) -> None:
        pass

    clear = unpause = moveto = display

    @classmethod
    def write(cls, s: object, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        print(s, file=file, end=end)

    @classmethod
    def external_write_mode(cls, file: Any = None, nolock: bool = False) -> Any:
        return nullcontext()

    @classmethod
    def get_lock(cls) -> Any:
        if cls._lock is None:
            cls._lock = RLock()
        return cls._lock

    @classmethod
    def set_lock(cls, lock: Any) -> None:
        cls._lock = lock

    # -- files

    @classmethod
    @contextmanager
    def wrapattr(
        cls, stream: Any, method: str, total: Any = None, bytes: bool = True, **others: Any
    ) -> Iterator[Any]:
        """Give a stream whose `read` or `write` reports as many as it passes on."""
        units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024} if bytes else {}
        with cls(total=total, **{**units, **others}) as bar:
            yield _Counted(stream, method, bar)


class _Counted:
    """A stream of which one method counts."""

    def __init__(self, stream: Any, method: str, bar: tqdm[Any]) -> None:
        call = getattr(stream, method)

        def counted(*args: Any, **others: Any) -> Any:
            result = call(*args, **others)
            # what was read is what came, what was written is what went
            bar.update(length_of(args[0] if method == "write" and args else result) or 0)
            return result

        self.__dict__.update(_stream=stream, **{method: counted})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._stream, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stream)


def trange(*args: int, **others: Any) -> tqdm[int]:
    """Return `tqdm(range(*args))`."""
    return tqdm(range(*args), **others)
