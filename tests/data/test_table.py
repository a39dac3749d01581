"""Reading tables: what the three formats give, and what is said about a file that cannot be used."""

import datetime

import numpy as np
import pytest

from gpuprop.data import read_table
from gpuprop.errors import DataError


@pytest.fixture
def csv(tmp_path):
    def write(text, name="t.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_csv_columns_are_numbers_or_text(csv):
    table = read_table(csv("size,kind,note\n1,a,\n2.5,b c,?\n-1e3, a ,x\n"))
    assert table["size"].tolist() == [1, 2.5, -1000]
    assert table["kind"].tolist() == ["a", "b c", "a"]
    assert table["note"].tolist() == [None, None, "x"]


def test_csv_truth_values_are_as_in_the_other_formats(csv):
    table = read_table(csv("x,y,z\nTrue,true,true\nFALSE,,maybe\n"))
    assert (table["x"].dtype, table["x"].tolist()) == (bool, [True, False])
    np.testing.assert_array_equal(table["y"], [1, np.nan])
    assert table["z"].tolist() == ["true", "maybe"]


def test_csv_text_that_only_python_reads_as_a_number(csv):
    assert read_table(csv("x\n1_2\n2_1\n"))["x"].tolist() == ["1_2", "2_1"]


def test_csv_missing_numbers_are_nan(csv):
    assert np.isnan(read_table(csv("x,y\n1,NA\n2,\n3,nan\n4,5\n"))["y"]).tolist() == [True, True, True, False]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiter_comes_from_the_header(csv, delimiter):
    table = read_table(csv("a,b,c\n1,2,3\n4,5,6\n".replace(",", delimiter)))
    assert [table[name].tolist() for name in "abc"] == [[1, 4], [2, 5], [3, 6]]


def test_csv_quotes_byte_order_mark_and_blank_lines(csv):
    table = read_table(csv('\ufeffname,"x, y"\n"a ""b""\nc",1\n\nd,2\n'))
    assert table["name"].tolist() == ['a "b"\nc', "d"]
    assert table["x, y"].tolist() == [1, 2]
    assert [table.place(row) for row in range(2)] == ["line 3", "line 5"]


def test_csv_column_without_a_name_gets_one(csv):
    assert list(read_table(csv(",x\n0,1\n")).columns) == ["column_1", "x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n", "has no rows"),
        ("a,b\n1,2\n3\n", "line 3 has 1 values, the header names 2 columns"),
        ("a,b\n1,2,3\n", "line 2 has 3 values"),
        ("a,b,a\n1,2,3\n", "two columns named 'a'"),
    ],
)
def test_csv_that_cannot_be_used(csv, text, message):
    with pytest.raises(DataError, match=message):
        read_table(csv(text))


def test_csv_in_another_encoding(csv):
    with pytest.raises(DataError, match="expected text in UTF-8"):
        read_table(csv("größe,y\n1,2\n", encoding="latin-1"))


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path / "folder.csv")


def test_unknown_ending(csv):
    with pytest.raises(DataError, match=r"expected a file ending in \.csv, \.npz, \.parquet, got '\.xls'"):
        read_table(csv("a\n1\n", name="t.xls"))


def test_unknown_column_names_the_nearest(csv):
    with pytest.raises(DataError, match="no column 'pirce'; did you mean 'price'"):
        read_table(csv("price,size\n1,2\n"))["pirce"]


def test_npz_matrices_become_columns(tmp_path):
    np.savez(
        tmp_path / "t.npz", X=np.arange(12.0).reshape(3, 2, 2), y=np.array([0, 1, 1]), kind=np.array(["a", "", "b"])
    )
    table = read_table(tmp_path / "t.npz")
    assert list(table.columns) == ["X_0", "X_1", "X_2", "X_3", "y", "kind"]
    assert table["X_2"].tolist() == [2, 6, 10]
    assert table["y"].dtype == np.int64
    assert table["kind"].tolist() == ["a", None, "b"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((3, 2)), "y": np.zeros(4)}, r"one row per sample, got X \(3, 2\), y \(4,\)"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(())}, "one row per sample"),
        ({"X": np.zeros((0, 2)), "y": np.zeros(0)}, "has no rows"),
        ({"X": np.zeros((3, 2), complex)}, "got complex128"),
        ({"X": np.zeros((3, 2)), "X_1": np.zeros(3)}, "column 1 of 'X' is named as the array 'X_1'"),
        ({"X": np.array([{}, []], dtype=object)}, "is not an archive of plain arrays"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.npz")


def test_npz_that_is_damaged_or_something_else(tmp_path):
    for content in (b"", b"PK\x03\x04 cut", b"not an archive"):
        (tmp_path / "t.npz").write_bytes(content)
        with pytest.raises(DataError, match="is not an archive of plain arrays"):
            read_table(tmp_path / "t.npz")
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="got a single array"):
        read_table(tmp_path / "t.npz")


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "i": [1, None, 3],
        "f": [0.5, 1.5, None],
        "b": [True, False, True],
        "t": ["a", None, "b"],
        "d": ["u", "v", "u"],
        "day": [datetime.date(2024, 2, 29), None, datetime.date(2024, 3, 1)],
    }
    table = arrow.table(columns)
    table = table.set_column(4, "d", table["d"].dictionary_encode())
    parquet.write_table(table, tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    np.testing.assert_array_equal(read["i"], [1, np.nan, 3])
    np.testing.assert_array_equal(read["f"], [0.5, 1.5, np.nan])
    assert read["b"].dtype == bool
    assert read["day"].tolist() == ["2024-02-29", None, "2024-03-01"]
    assert (read["t"].tolist(), read["d"].tolist()) == (["a", None, "b"], ["u", "v", "u"])


def test_parquet_that_cannot_be_used(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "t.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read_table(tmp_path / "t.parquet")
    parquet.write_table(arrow.table({"x": [[1], [2]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="expected numbers, truth values or text in 'x', got list"):
        read_table(tmp_path / "t.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"needs pyarrow; pip install 'gpuprop\[data\]'"):
        read_table(tmp_path / "t.parquet")
