"""Convert 2D tracking data between 3DEqualizer, PFTrack, Shake, Syntheyes and Nuke.

The example application of forkrunner: `trackconvert.jobs` has the job. Everything else is
plain Python, without forkrunner.
"""

from trackconvert.conversion import Conversion, convert, parse, read, write
from trackconvert.formats import FORMATS
from trackconvert.model import PRIMARY, ImageSize, Keyframe, Tracker, TrackFileError

__all__ = [
    "FORMATS",
    "PRIMARY",
    "Conversion",
    "ImageSize",
    "Keyframe",
    "TrackFileError",
    "Tracker",
    "convert",
    "parse",
    "read",
    "write",
]
