"""What every format is read into and written from: trackers, their keyframes, and the one error.

Coordinates are pixels; (0, 0) is the lower left corner of the picture, so the centre of its first pixel is
(0.5, 0.5), and y goes up. The first frame of a shot is 1. Each format turns its own conventions into these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: The camera of a tracker in formats that know one camera only.
PRIMARY = "Primary"

#: Largest coordinate, in pixels, and largest frame number (either sign) taken for meant.
LARGEST_COORDINATE = 1e9
LARGEST_FRAME = 10_000_000

#: Called with how much is done, 0.0 to 1.0, and a line for people.
Progress = Callable[[float, str], None]


class TrackFileError(ValueError):
    """This file cannot be read: where, and why."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        super().__init__(file, line, reason)
        self.file = file
        self.line = line
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The picture's size in pixels; only formats with relative coordinates ask for it."""

    width: int = 1920
    height: int = 1080

    def __post_init__(self) -> None:
        if not (2 <= self.width <= 1_000_000 and 2 <= self.height <= 1_000_000):
            raise ValueError(
                f"expected an image size from 2x2 to 1000000x1000000, got {self.width}x{self.height}"
            )


@dataclass(frozen=True, slots=True)
class Keyframe:
    """Where a tracker is at one frame. What only one format knows is None elsewhere."""

    frame: int
    x: float
    y: float
    #: PFTrack: the distance left over, in its own unit.
    residual: float | None = None
    #: Shake: how well the pattern was found, 1.0 is perfectly.
    correlation: float | None = None
    #: Syntheyes: the bits of its outcome code.
    status: int | None = None


@dataclass(slots=True)
class Tracker:
    """A named point and its keyframes, in the order of the file.

    The order and repeated frames are kept as found: which of two positions at one frame is
    right is not for a converter to say. Names need not be unique.
    """

    name: str
    keyframes: list[Keyframe] = field(default_factory=list)
    camera: str = PRIMARY
    #: 3DEqualizer: the number of the point's colour.
    color: int = 0

    def __post_init__(self) -> None:
        if not self.name or not self.camera:
            raise ValueError("a tracker and its camera need names that are not empty")
