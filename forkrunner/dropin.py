"""The stand-in for the library tqdm: existing loops report to the bar of the running job. Names of `forkrunner.progress` too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

from . import clock
from .steps import Bar, length_of

T = TypeVar("T")


class tqdm(Generic[T]):
    """What the class of this name in the library tqdm does, for the bar of the running job; nothing is printed.

    Takes all of its arguments and has its usual methods, so `from forkrunner.progress import tqdm` is all that
    a loop needs.
    """

    def __init__(
        self,
        iterable: Iterable[T] | None = None,
        desc: str | None = None,
        total: float | None = None,
        *args: object,
        initial: float = 0,
        unit: str = "it",
        disable: bool | None = False,
        postfix: object = None,
        **others: Any,
    ) -> None:
        self.iterable = iterable
        if total is None and iterable is not None:
            total = length_of(iterable)
        self.disable = bool(disable)
        self._desc = desc or ""
        self._postfix = "" if postfix is None else str(postfix)
        self._bar = Bar(self._words(), total, initial)
        self._bar.unit = "" if unit == "it" else unit.strip()
        if not self.disable:
            self._bar.begin()

    def __iter__(self) -> Iterator[T]:
        if self.iterable is None:
            raise TypeError("tqdm: expected something to iterate over, got none")
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __len__(self) -> int:
        return int(self.total) if self.total is not None else len(self.iterable)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.total is None or self.total > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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

    @property
    def desc(self) -> str:
        return self._desc

    @property
    def format_dict(self) -> dict[str, Any]:
        elapsed = clock.monotonic() - self._bar.start
        return {
            "n": self.n,
            "total": self.total,
            "elapsed": elapsed,
            "rate": self._bar.rate,
            "prefix": self._desc,
        }

    def update(self, n: float | None = 1) -> bool | None:
        self._bar.n += 1 if n is None else n
        self._bar.moved()
        return None

    def close(self) -> None:
        self._bar.close()

    def refresh(self, *args: object, **others: object) -> None:
        self._bar.moved()

    def clear(self, *args: object, **others: object) -> None:
        pass

    display = unpause = clear

    def reset(self, total: float | None = None) -> None:
        if total is not None:
            self._bar.total = total
        self._bar.n, self._bar.start = 0, clock.monotonic()
        self._bar.anew()

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        self._desc = desc or ""
        self._reword()

    set_description_str = set_description

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **values: object) -> None:
        self.set_postfix_str(
            ", ".join(f"{name}={value}" for name, value in {**dict(ordered_dict or {}), **values}.items())
        )

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        self._postfix = str(s)
        self._reword()

    def _words(self) -> str:
        return " ".join(filter(None, (self._desc.rstrip().removesuffix(":"), self._postfix)))

    def _reword(self) -> None:
        self._bar.message = self._words()
        self._bar.moved()

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        print(s, file=file, end=end)


def trange(*args: int, **others: Any) -> tqdm[int]:
    """Return `tqdm(range(*args))`."""
    return tqdm(range(*args), **others)
