"""Finding and opening data files, with errors that name the file and the remedy."""

from __future__ import annotations

import gzip
import os
import stat
import sysconfig
import zlib
from pathlib import Path
from typing import BinaryIO

from ...errors import DataError

GZIP_MAGIC = b"\x1f\x8b"

STARTS = "A relative path in a job file starts at the job file's folder"


class MissingData(DataError):
    """A path at which there is nothing."""


def locate(name: str) -> Path:
    """The existing file or folder of a job's path."""
    return existing(filled(name))


def filled(name: str) -> Path:
    """A job's path with {stdlib}, $VARIABLES and ~ filled in.

    Every rank fills them in for itself: nodes may keep their data and their Python in different places.
    """
    expanded = os.path.expandvars(name.replace("{stdlib}", sysconfig.get_path("stdlib")))
    return Path(os.path.expanduser(expanded))  # where Path's own raises: ~ of nobody who is known stays


def existing(path: Path) -> Path:
    """The path, at which there is a file or a folder; DataError where there is not."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        above = next(parent for parent in path.absolute().parents if os.path.exists(parent))
        raise MissingData(f"{path}: there is no such file; {above} exists. {STARTS}") from error
    except OSError as error:  # it lies in a folder of somebody else's
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        # A file is opened several times, and on every rank: of what came by a pipe the first rows were gone
        # when the second began; one that nobody wrote to was waited for, deaf to Ctrl-C.
        raise DataError(
            f"{path}: is a device or a pipe, which cannot be read more than once; store what it gives as a "
            "file"
        )
    return path


def is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, by its first bytes and not by its name."""
    with reading(path) as file:
        return file.read(2) == GZIP_MAGIC


def reading(path: Path) -> BinaryIO:
    """The file opened for reading bytes."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def decompressed(path: Path) -> bytes:
    """The content of a gzipped file."""
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: is not whole gzip data: {error}; fetch it again") from error
