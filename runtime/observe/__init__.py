"""What a run shows of itself: trace, metrics, progress, report."""

from .chrome import read_chrome, write_chrome
from .folder import RunFolder
from .history import History, read_metrics
from .metrics import Metrics
from .progress import Progress
from .screen import Screen
from .shares import Shares, summarise
from .terminal import find_terminal
from .trace import RankTrace, Span, Trace, decode

__all__ = [
    "History",
    "Metrics",
    "Progress",
    "RankTrace",
    "RunFolder",
    "Screen",
    "Shares",
    "Span",
    "Trace",
    "decode",
    "find_terminal",
    "read_chrome",
    "read_metrics",
    "summarise",
    "write_chrome",
]
