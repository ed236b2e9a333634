"""Tables in .csv files: a heading and rows, whose numbers are checked one by one.

`read_csv` reads the texts; `CsvTable.numbers` turns columns into features. A missing or foreign
entry is named by row and column. Columns may be separated by commas, semicolons or tabs.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxspec.applications.command.errors import FileRefused, WrongUse
from jaxspec.applications.command.output import require_input

__all__ = ["CsvTable", "read_csv"]

MISSING = {"", "na", "nan", "n/a", "null", "none", "?"}  # in lower case


@dataclasses.dataclass(frozen=True)
class CsvTable:
    """A table of texts.

    Attributes:
        path: of the file.
        columns: their names, all different.
        rows: one list of texts per row.
    """

    path: Path
    columns: list[str]
    rows: list[list[str]]

    def require_column(self, name: str, option: str) -> int:
        """Return where a column is.

        Raises:
            WrongUse: there is none of this name.
        """
        if name not in self.columns:
            there = ", ".join(self.columns)
            raise WrongUse(f"{option}: {self.path} has no column {name!r}; it has {there:.200}")
        return self.columns.index(name)

    def texts(self, column: str) -> list[str]:
        """Return the entries of one column, each of which must say something."""
        at = self.columns.index(column)
        for number, row in enumerate(self.rows, start=1):
            if row[at].lower() in MISSING:
                raise FileRefused(
                    self.path, f"row {number}, column {column!r}: expected a label, got {row[at]!r}"
                )
        return [row[at] for row in self.rows]

    def numbers(self, columns: Sequence[str]) -> np.ndarray:
        """Return columns as (n, d) float64.

        Raises:
            FileRefused: an entry is missing, or is not a finite number.
        """
        places = [self.columns.index(name) for name in columns]
        if not places:
            raise FileRefused(self.path, "expected at least one column of numbers, got none")
        found = np.empty((len(self.rows), len(places)))
        for i, row in enumerate(self.rows):
            for j, place in enumerate(places):
                found[i, j] = self._number(row[place], i + 1, columns[j])
        return found

    def _number(self, text: str, row: int, column: str) -> float:
        where = f"row {row}, column {column!r}: expected a number"
        if text.lower() in MISSING:
            raise FileRefused(
                self.path, f"{where}, got a missing value ({text!r}); fill it in or drop the row"
            )
        try:
            value = float(text)
        except ValueError:
            raise FileRefused(
                self.path,
                f"{where}, got {text!r:.40}; --labels {column} makes the column the labels, "
                f"--ignore {column} leaves it out",
            ) from None
        if not math.isfinite(value):
            raise FileRefused(self.path, f"{where} that is finite, got {text!r}")
        return value


def read_csv(path: Path) -> CsvTable:
    """Return the table in a file, whose first line holds the names of the columns.

    Raises:
        FileRefused: it is missing, is no such text, or has rows of different lengths.
    """
    require_input(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=first.count)
            rows = [
                [entry.strip() for entry in row]
                for row in csv.reader(file, delimiter=separator)
                if any(entry.strip() for entry in row)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileRefused(path, f"expected a table in UTF-8 (.csv): {error}") from error
    if len(rows) < 2:
        raise FileRefused(path, "expected a line of column names and rows below it")
    columns = rows.pop(0)
    if len(set(columns)) != len(columns) or "" in columns:
        raise FileRefused(
            path, f"expected different names of columns in the first line, got {columns!r:.200}"
        )
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise FileRefused(
                path, f"row {number}: expected {len(columns)} entries, got {len(row)}"
            )
    return CsvTable(path, columns, rows)
