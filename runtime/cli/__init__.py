"""The command line. What is heavy is imported inside the commands: `weft --help` takes a fifth of a second.

Each module adds its commands to the program, in the order of the help.
"""

from . import train

# isort: split
from . import serve, show
from .app import main

__all__ = ["main", "serve", "show", "train"]
