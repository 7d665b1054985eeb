"""CSV: a table of numbers with one target column, which may hold names.

NumPy's parser reads the table (200,000 rows of ten columns in 0.1 s, by way of the csv module 0.5 s); only
where it fails does a slow pass look for the line and column to blame.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TextIO

import numpy as np

from ...errors import DataError
from ..section import nearest
from .arrays import Pair, joined
from .files import is_gzip
from .parts import parts
from .section import CsvData
from .stored import AnyArray

ENDINGS = (".csv", ".csv.gz")


def pairs(data: CsvData) -> tuple[Pair, Pair | None, tuple[str, ...]]:
    """The samples, the test set if the job names one, and the classes' names if the target holds names."""
    tables = [_Table(path, data) for path in parts(data.path, ENDINGS)]
    tests = [_Table(path, data) for path in parts(data.test_path, ENDINGS)] if data.test_path else []
    labels: tuple[str, ...] = ()
    if any(table.named for table in (*tables, *tests)):
        labels = tuple(sorted({str(name) for table in (*tables, *tests) for name in table.names()}))

    def pair(tables_of_it: Sequence[_Table], name: str) -> Pair:
        made = [table.pair(labels, tables[0]) for table in tables_of_it]
        return joined(made, name, f"{name}[{tables[0].title}]")

    return pair(tables, data.path), pair(tests, str(data.test_path)) if tests else None, labels


class _Table:
    def __init__(self, path: Path, data: CsvData) -> None:
        self.path = path
        self.data = data
        with self.opened() as file:
            reader = csv.reader(file, delimiter=data.delimiter)
            rows = self._rows(reader)
            head = next(rows, [])
            self.header_lines = reader.line_num if data.header else 0
            first = next(rows, []) if data.header else head
        if not first:
            raise DataError(f"{path}: holds no rows" + (" below its header" if data.header else ""))
        if len(head) != len(first):
            raise DataError(
                f"{path}: its header names {len(head)} columns, and its first row has {len(first)}: give each"
                " column a name (row names, as R writes them, are a column too)"
            )
        self.columns = [name.strip() for name in head] if data.header else []
        self.width = len(first)
        self.target = self._target()
        self.named = not _is_number(first[self.target])

    @contextmanager
    def opened(self) -> Iterator[TextIO]:
        """The file as text; what is wrong with it while it is read becomes a DataError."""
        open_text = gzip.open if is_gzip(self.path) else open
        try:
            with open_text(self.path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.path}: cannot be read: {error}") from error
        except csv.Error as error:  # its fields are limited
            raise DataError(
                f"{self.path}: cannot be read: {error}; is a quotation mark missing in its first rows?"
            ) from error

    def _rows(self, reader: Iterable[list[str]]) -> Iterator[list[str]]:
        """The rows, less blank lines: of spaces, too, which no numbers are read from.

        Above a header such a line was taken for it, and before a damaged row it was blamed in its place.
        """
        for row in reader:
            line = self.data.delimiter.join(row)
            if line and not line.isspace():
                yield row

    def _target(self) -> int:
        target = self.data.target
        if isinstance(target, int):
            if not -self.width <= target < self.width:
                raise DataError(
                    f"{self.path}: has {self.width} columns, so there is none with number {target}"
                )
            return target % self.width
        if not self.columns:
            raise DataError(
                f"{self.path}: [data] header = false, so the target is a column's number, not {target!r}"
            )
        if target not in self.columns:
            hint = nearest(target, self.columns)
            raise DataError(f"{self.path}: has no column {target!r}{hint}; it has {', '.join(self.columns)}")
        if (count := self.columns.count(target)) > 1:
            raise DataError(
                f"{self.path}: has {count} columns {target!r}; say which by its number, counted from 0"
            )
        return self.columns.index(target)

    def pair(self, labels: tuple[str, ...], like: _Table) -> Pair:
        """The samples, their columns in the order of `like`'s where both are named."""
        others = self.others()
        if self.columns != like.columns:
            others = [self._called(like.columns[column], like) for column in like.others()]
            alike = self.columns[self.target] == like.columns[like.target]
            if not alike or self.width != like.width:
                raise self._other_columns(like)
        if labels:
            inputs = self.numbers(others)
            targets: AnyArray = np.searchsorted(np.array(labels), self.names()).astype(np.int32)
        else:
            table = self.numbers([*others, self.target])
            inputs, targets = table[:, :-1], table[:, -1]
        return Pair(inputs, targets, str(self.path), f"{self.path}[{self.title}]")

    @property
    def title(self) -> str:
        """The target's column, by its name or its number."""
        return self.columns[self.target] if self.columns else str(self.target)

    def others(self) -> list[int]:
        """All columns but the target."""
        return [column for column in range(self.width) if column != self.target]

    def _called(self, name: str, like: _Table) -> int:
        if self.columns.count(name) != 1:
            raise self._other_columns(like)
        return self.columns.index(name)

    def _other_columns(self, like: _Table) -> DataError:
        return DataError(
            f"{self.path}: has the columns {', '.join(self.columns)}, but {like.path} "
            f"{', '.join(like.columns)}; name the same ones in both, in any order"
        )

    def names(self) -> AnyArray:
        names: AnyArray = np.char.strip(self._load([self.target], np.dtype(str))[:, 0])
        if not names.all():
            raise self._culprit([self.target], None)
        return names

    def numbers(self, columns: list[int]) -> AnyArray:
        table = self._load(columns, np.dtype(np.float64))
        if not np.isfinite(table).all():
            raise self._culprit(columns, None)
        return table

    def _load(self, columns: list[int], dtype: np.dtype[np.generic]) -> AnyArray:
        try:
            with self.opened() as file:
                for _ in range(self.header_lines):
                    next(file)
                table: AnyArray = np.loadtxt(
                    self._of_one_width(file),
                    dtype,
                    comments=None,
                    delimiter=self.data.delimiter,
                    usecols=columns,
                    ndmin=2,
                    quotechar='"',
                )
        except ValueError as error:
            raise self._culprit(columns, error) from None
        return table

    def _of_one_width(self, lines: Iterator[str]) -> Iterator[str]:
        """The lines, less blank ones; ValueError at one with other columns than the first, of which NumPy
        would take some.
        """
        for line in lines:
            if '"' in line:
                yield from self._quoted(chain([line], lines))
            elif line.isspace():
                continue
            elif line.count(self.data.delimiter) != self.width - 1:
                raise ValueError("rows have different numbers of columns")
            else:
                yield line

    def _quoted(self, lines: Iterator[str]) -> Iterator[str]:
        """The same from the first quoted line on: what is quoted may hold delimiters and ends of lines.

        Such lines were taken unseen: of a row with a column too many the wrong one was the target, and a
        quotation mark that nobody closed made one name of all the rows behind it.
        """
        delimiter, taken = self.data.delimiter, list[str]()

        def noted() -> Iterator[str]:
            for line in lines:
                taken.append(line)
                yield line

        try:
            for row in csv.reader(noted(), delimiter=delimiter):
                if not (len(taken) == 1 and taken[0].isspace()):
                    if len(row) != self.width:
                        raise ValueError("rows have different numbers of columns")
                    if len(taken) > 1:
                        self._require_closed(taken)
                    yield from taken
                taken.clear()
        except csv.Error as error:  # a field with more characters than the csv module takes
            if len(taken) > 1:  # not for `_culprit`, whose reader would end here, too
                raise DataError(f"{self.path}: cannot be read: {_unclosed(taken)}") from error
            raise

    def _require_closed(self, lines: Sequence[str]) -> None:
        """ValueError where a row of several lines is one only because a quotation mark is missing."""
        try:
            next(csv.reader(lines, delimiter=self.data.delimiter, strict=True))
        except csv.Error as error:
            raise ValueError(_unclosed(lines)) from error

    def _culprit(self, columns: list[int], error: Exception | None) -> DataError:
        """The first line of another length, or field that is no finite number, or no name."""
        with self.opened() as file:
            reader = csv.reader(file, delimiter=self.data.delimiter)
            rows = self._rows(reader)
            if self.data.header:
                next(rows)
            for number, row in enumerate(rows):
                if problem := self._problem(row, columns):
                    hint = "" if number or self.data.header else "; if it is a header, say header = true"
                    return DataError(f"{self.path}:{reader.line_num}: {problem}{hint}")
        return DataError(f"{self.path}: cannot be read: {error}")

    def _problem(self, row: list[str], columns: list[int]) -> str:
        if len(row) != self.width:
            return f"has {len(row)} columns where the first row has {self.width}"
        for column in columns:
            if column == self.target and self.named:
                if not row[column].strip():
                    return f"column {column}{self._name(column)} is empty, and names no class"
            elif not _is_number(row[column]) or not isfinite(float(row[column])):
                return f"column {column}{self._name(column)} holds {row[column]!r}, not a finite number"
        return ""

    def _name(self, column: int) -> str:
        return f" ({self.columns[column]})" if self.columns else ""


def _unclosed(lines: Sequence[str]) -> str:
    return f"the row that begins with {lines[0][:80]!r} has {len(lines):,} lines: a quotation mark is missing"


def _is_number(text: str) -> bool:
    """Whether NumPy reads a number there; Python takes 1_000 for one, too, and digits of other scripts.

    Classes called 1_1 and 1_2 were taken for numbers, and refused without their line.
    """
    if "_" in text or not text.strip().isascii():
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True
