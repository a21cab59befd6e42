"""See a detector work: pictures, videos and cameras in; drawn pictures, videos and a window out."""

from .frames import Frame, Sink, Source, SourceLost
from .meter import Meter
from .overlay import Overlay
from .sink import check_output, open_sink
from .source import open_source

__all__ = ["Frame", "Meter", "Overlay", "Sink", "Source", "SourceLost", "check_output", "open_sink", "open_source"]
