"""Features and targets from tables: what is learned from the training rows, and what is said about unusable columns."""

import json

import numpy as np
import pytest

from gpuprop.data import Preprocessing, Table
from gpuprop.data.preprocessing import find_task
from gpuprop.errors import DataError, OptionError


def table(**columns):
    return Table(
        {
            name: np.array(v, dtype=object if any(isinstance(x, (str, type(None))) for x in v) else None)
            for name, v in columns.items()
        }
    )


def fitted(t, target="y", task="auto", rows=None):
    return Preprocessing.fit(
        t, target, find_task(t, target, task), np.arange(len(t)) if rows is None else np.array(rows)
    )


def test_numbers_are_standardised_by_the_training_rows_alone():
    t = table(x=[1.0, 3.0, 100.0], y=["a", "b", "a"])
    np.testing.assert_allclose(fitted(t, rows=[0, 1]).transform(t), [[-1], [1], [98]])


def test_constant_columns_become_zero():
    t = table(x=[0.1, 0.1, 0.1], z=[1.0, 2.0, 3.0], y=["a", "b", "a"])
    np.testing.assert_allclose(fitted(t).transform(t)[:, 0], 0, atol=1e-15)


def test_missing_numbers_become_the_median_and_are_counted():
    t = table(x=[1.0, np.nan, 2.0, 30.0], y=["a", "b", "a", "b"])
    made = fitted(t)
    np.testing.assert_allclose(made.transform(t)[1], made.transform(table(x=[2.0]))[0])
    assert made.notes == ["'x': 1 missing value replaced by the median, 2"]


def test_text_becomes_one_hot_and_unseen_text_zeros():
    t = table(kind=["b", "a", "b"], y=[0, 1, 0])
    made = fitted(t)
    assert made.transform(t).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert made.transform(table(kind=["c", None, "a"])).tolist() == [[0, 0], [0, 0], [1, 0]]


def test_text_that_names_rows_is_left_out():
    t = table(name=[f"n{i}" for i in range(40)], x=np.arange(40.0), y=[0, 1] * 20)
    made = fitted(t)
    assert [f.name for f in made.features] == ["x"]
    assert "'name' was left out: 40 different texts" in made.notes[0]


def test_column_that_numbers_the_rows_is_left_out():
    t = table(Id=np.arange(10), x=np.arange(10.0), y=[0, 1] * 5)
    assert [f.name for f in fitted(t).features] == ["x"]
    assert [f.name for f in fitted(table(Id=np.arange(10), y=[0, 1] * 5)).features] == ["Id"]


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match="no column beside the target 'y' can be learned from"):
        fitted(table(y=[0, 1, 0]))


def test_some_text_among_numbers_is_a_mistake():
    with pytest.raises(DataError, match="column 'x' holds numbers, but 'abc' in row 2"):
        fitted(table(x=["1", "abc", "2.5", "3"], y=[0, 1, 0, 1]))


@pytest.mark.parametrize("texts", [["0,5", "1,25", "2,5"], ["1,000", "2,500", "3,000,000"]])
def test_numbers_written_with_commas_are_a_mistake(texts):
    with pytest.raises(DataError, match="column 'x' holds numbers with commas, '.*' in row 1; write 1234.5"):
        fitted(table(x=texts, y=[0, 1, 0]))


def test_text_where_numbers_were_learned_from():
    made = fitted(table(x=[1.0, 2.0], y=["a", "b"]))
    with pytest.raises(DataError, match="expected numbers in column 'x', got 'abc' in row 2"):
        made.transform(table(x=["1", "abc"]))


def test_numbers_where_text_was_learned_from_are_read_as_text():
    made = fitted(table(x=["7", "a", "b"], y=[0, 1, 0]))
    assert made.transform(table(x=[7.0, 8.0])).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_columns_that_are_missing_and_infinite_numbers():
    made = fitted(table(size=[1.0, 2.0], y=["a", "b"]))
    with pytest.raises(DataError, match="no column 'size'; did you mean 'Size'"):
        made.transform(table(Size=[1.0]))
    with pytest.raises(DataError, match="'size' is infinite in row 2"):
        made.transform(table(size=[1.0, np.inf]))
    with pytest.raises(DataError, match=r"'size' is -1e\+200 in row 2; expected numbers within 1e\+150"):
        made.transform(table(size=[1.0, -1e200]))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([True, False, True], [False, True], [1, 0, 1]),
        ([7.0, 3.0, 3.0], [3, 7], [1, 0, 0]),
        ([-1, 1, 1], [-1, 1], [0, 1, 1]),
    ],
)
def test_labels_of_any_kind(labels, classes, numbers):
    made = fitted(table(x=[1.0, 2.0, 4.0], y=labels))
    assert made.classes == classes
    assert made.targets(table(y=labels)).tolist() == numbers
    assert made.outputs == 2


def test_regression_targets_are_standardised_and_back():
    t = table(x=[1.0, 2.0, 4.0], y=[10.5, 20.0, 60.25])
    made = fitted(t)
    assert (made.task, made.outputs) == ("regression", 1)
    assert made.targets(t).shape == (3, 1)
    np.testing.assert_allclose(made.values(made.targets(t)), [10.5, 20, 60.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ([0.5, 1.5, 2.5], "regression"),
        ([0, 1, 1, 0], "classification"),
        (list(range(30)), "regression"),
        (list(range(4)) * 5, "classification"),
        ([0.0, 1.0, 2.0] * 5, "classification"),
        ([True, False], "classification"),
        (["a", "b"], "classification"),
    ],
)
def test_task_by_the_target(target, task):
    assert find_task(table(y=target), "y") == task


def test_unknown_task():
    with pytest.raises(OptionError, match="expected auto, classification, regression, got 'clustering'"):
        find_task(table(y=[1, 2]), "y", "clustering")


@pytest.mark.parametrize(
    ("target", "task", "message"),
    [
        ([1.0, np.nan, 2.0], "regression", "missing or not finite in row 2"),
        ([1.0, np.nan, np.nan], "classification", "missing or not finite in row 2 and 1 more"),
        ([1.0, np.inf, 2.0], "regression", "infinite in row 2"),
        (["a", None, "b"], "classification", "missing or not finite in row 2"),
        (["a", "a", "a"], "classification", "one class only, 'a'"),
        ([2.0, 2.0, 2.0], "regression", "is 2 in every row"),
        (["a", "b", "c"], "regression", "is text, which regression cannot predict"),
        (["1", "2", "3", "x"], "auto", "holds numbers, but 'x' in row 4"),
        ([f"n{i}" for i in range(300)], "classification", "300 classes in 300 rows"),
    ],
)
def test_targets_that_cannot_be_used(target, task, message):
    with pytest.raises(DataError, match=message):
        fitted(table(x=np.arange(float(len(target))), y=target), task=task)


def test_stored_and_read_again():
    t = table(x=[1.0, np.nan, 3.0, 4.0], kind=["a", "b", "a", "b"], y=["u", "v", "w", "u"])
    made = fitted(t)
    again = Preprocessing.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    np.testing.assert_array_equal(again.transform(t), made.transform(t))
