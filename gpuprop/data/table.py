"""Tables: named columns of equal length, read from .csv, .npz and .parquet files.

A column is an array of float64 (NaN where a number is missing), int64, bool, or text (str; None where it is missing).
Nothing is guessed beyond that here: what a column is used for is decided in `preprocessing.py`.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, did_you_mean

TRUTH = {"true": True, "false": False}  # in lower case
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})  # in lower case
DELIMITERS = ",;\t"


class Table:
    """Named columns of equal length.

    columns: arrays (N,) by name. name: what messages call the table. lines: where each row stands in a file, if known.
    """

    def __init__(self, columns: dict[str, np.ndarray], name: str = "table", lines: np.ndarray | None = None):
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            sizes = ", ".join(f"{key} ({len(values)})" for key, values in columns.items())
            raise DataError(f"{name}: expected columns of one length, got {sizes}")
        self.columns = columns
        self.name = name
        self.lines = lines

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.columns:
            raise DataError(f"{self.name}: has no column {column!r}; {did_you_mean(column, self.columns)}")
        return self.columns[column]

    def place(self, row: int) -> str:
        """How a message names a row: by its line in the file, or counted from 1."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"


def read_table(path: str | Path) -> Table:
    """The table in a file, read as its ending says: .csv, .npz or .parquet.

    .csv      a header line with the columns' names, values separated by commas, semicolons or tabs; UTF-8
    .npz      arrays (N,) are columns under their names; arrays (N, ...) become columns <name>_0, <name>_1, ...
    .parquet  numbers, truth values, text, and dates as text; needs pyarrow

    Raises: DataError for a file that is missing, empty or not what its ending says, saying where.
    """
    path = Path(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        got = repr(path.suffix) if path.suffix else "none"
        raise DataError(f"{path}: expected a file ending in {', '.join(READERS)}, got {got}")
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a data file")
    try:
        table = read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not table.columns or not len(table):
        raise DataError(f"{path}: has no rows of data")
    return table


# --- CSV ------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)  # the comma, where none occurs
            file.seek(0)
            names, rows, lines = _csv_rows(path, csv.reader(file, delimiter=delimiter))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{path}: expected text in UTF-8, got byte 0x{byte:02x}; save the file as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file: {error}") from error
    columns = {name: _parse(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=False)}
    return Table(columns, str(path), np.array(lines))


def _csv_rows(path: Path, reader: Any) -> tuple[list[str], list[list[str]], list[int]]:
    header: list[str] = []
    rows, lines = [], []
    for cells in reader:
        if not cells or (len(cells) == 1 and not cells[0].strip()):  # a blank line
            continue
        if not header:
            header = [cell.strip() or f"column_{i + 1}" for i, cell in enumerate(cells)]
        elif len(cells) != len(header):
            raise DataError(
                f"{path}: line {reader.line_num} has {len(cells)} values, the header names {len(header)} columns"
            )
        else:
            rows.append(cells)
            lines.append(reader.line_num)
    if not header:
        raise DataError(f"{path}: is empty")
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path}: has two columns named {name!r}")
    return header, rows, lines


def _parse(cells: tuple[str, ...]) -> np.ndarray:
    """Numbers where every value that is there is one; truth values likewise, as numbers if any is missing; else text."""
    stripped = [cell.strip() for cell in cells]
    values = [None if cell.lower() in MISSING else cell for cell in stripped]
    try:
        return np.array([np.nan if value is None else number(value) for value in values])
    except ValueError:
        pass
    if {value.lower() for value in values if value is not None} <= TRUTH.keys():
        truths = [np.nan if value is None else TRUTH[value.lower()] for value in values]
        return np.array(truths)  # of truth values, or of numbers where one is missing
    return np.array(values, dtype=object)


def number(text: str) -> float:
    """The number that a text is. Raises: ValueError for another text; "1_2", which Python reads as 12, is one."""
    if "_" in text:
        raise ValueError(text)
    return float(text)


# --- NumPy archives -------------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> Table:
    try:
        with path.open("rb") as file:  # which np.load would leave open where it fails
            archive = np.load(file, allow_pickle=False)
            arrays = None if isinstance(archive, np.ndarray) else {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not an archive of plain arrays: {str(error).splitlines()[0]}") from error
    if arrays is None:
        raise DataError(f"{path}: expected an archive of arrays (numpy.savez), got a single array")
    sizes = {array.shape[0] for array in arrays.values() if array.ndim}
    if any(not array.ndim for array in arrays.values()) or len(sizes) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: expected arrays with one row per sample, got {shapes}")
    columns = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            columns[name] = _column(array, path, name)
        else:
            flat = array.reshape(len(array), int(np.prod(array.shape[1:])))
            for i in range(flat.shape[1]):
                if f"{name}_{i}" in arrays:
                    raise DataError(f"{path}: column {i} of {name!r} is named as the array '{name}_{i}'; rename one")
                columns[f"{name}_{i}"] = _column(flat[:, i], path, name)
    return Table(columns, str(path))


def _column(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    """The array in one of the dtypes that a column has."""
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    if array.dtype.kind in "UO":
        return np.array([_text(value) for value in array.tolist()], dtype=object)
    raise DataError(f"{path}: expected numbers, truth values or text in {name!r}, got {array.dtype}")


def _text(value: Any) -> str | None:
    if value is None or str(value).strip().lower() in MISSING:
        return None
    return str(value).strip()


# --- Parquet --------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading .parquet needs pyarrow; pip install 'gpuprop[data]'") from error
    try:
        arrow = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: is not a Parquet file: {str(error).splitlines()[0]}") from error
    if len(set(arrow.column_names)) < len(arrow.column_names):
        raise DataError(f"{path}: has two columns of the same name")
    columns = {name: _from_arrow(arrow.column(name), path, name) for name in arrow.column_names}
    return Table(columns, str(path))


def _from_arrow(column: Any, path: Path, name: str) -> np.ndarray:
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kinds.is_decimal(column.type) or kinds.is_null(column.type):
        column = column.cast(pyarrow.float64())
    if kinds.is_date(column.type) or kinds.is_timestamp(column.type):  # text, as in a .csv
        column = column.cast(pyarrow.string())
    if kinds.is_boolean(column.type) and column.null_count:
        column = column.cast(pyarrow.int8())
    known: tuple[Callable[[Any], bool], ...] = (
        kinds.is_integer,
        kinds.is_floating,
        kinds.is_boolean,
        kinds.is_string,
        kinds.is_large_string,
    )
    if not any(is_kind(column.type) for is_kind in known):
        raise DataError(f"{path}: expected numbers, truth values or text in {name!r}, got {column.type}")
    return _column(column.to_numpy(), path, name)


READERS: dict[str, Callable[[Path], Table]] = {".csv": _read_csv, ".npz": _read_npz, ".parquet": _read_parquet}
