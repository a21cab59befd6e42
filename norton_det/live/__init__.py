"""See a detector work: pictures, videos and cameras in; drawn pictures, videos and a window out."""

from .meter import Meter
from .overlay import Overlay
from .sink import Sink, check_output, open_sink
from .source import Frame, Source, SourceLost, open_source

__all__ = ["Frame", "Meter", "Overlay", "Sink", "Source", "SourceLost", "check_output", "open_sink", "open_source"]
