"""Options: where their values come from, and which are refused, in words that name the option."""

import pytest

from gpuprop.errors import DataError, OptionError
from gpuprop.train.options import OPTIMIZERS, Options, read_config


def test_later_sources_win_and_texts_become_values():
    options = Options.read({"hidden": [8, 4], "lr": 1, "epochs": 3}, {"hidden": "32,16", "seed": 5})
    assert (options.hidden, options.lr, options.epochs, options.seed) == ((32, 16), 1.0, 3, 5)


def test_no_hidden_layer():
    assert Options.read({"hidden": ""}).hidden == ()


def test_stored_and_read_again():
    options = Options.read({"hidden": "3", "target": "y", "dropout": 0.5})
    assert Options.read(options.to_json()) == options


@pytest.mark.parametrize(("rows", "batch_size"), [(3, 3), (100, 32), (1258, 32), (10_000, 256), (10**7, 1024)])
def test_batch_size_by_the_rows(rows, batch_size):
    assert Options().resolved(target="y", task="regression", rows=rows).batch_size == batch_size


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_by_the_optimizer_unless_given(name):
    choice = OPTIMIZERS[name]
    found = Options(optimizer=name).resolved(target="y", task="auto", rows=100)
    assert (found.lr, found.weight_decay) == (choice.lr, choice.weight_decay)
    found = Options(optimizer=name, lr=0.5, weight_decay=0.25, batch_size=7).resolved(target="y", task="auto", rows=100)
    assert (found.lr, found.weight_decay, found.batch_size) == (0.5, 0.25, 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activation": "geluu"}, "--activation: there is no 'geluu'; did you mean 'gelu'"),
        ({"optimizer": "lion"}, "--optimizer: there is no 'lion'; there are: adamw, adam"),
        ({"schedule": "cos"}, "did you mean 'cosine'"),
        ({"task": "clustering"}, "--task"),
        ({"norm": "group"}, "--norm"),
        ({"lr": -1e-3}, "--lr: expected a number above 0, got -0.001"),
        ({"lr": float("nan")}, "--lr"),
        ({"lr": float("inf")}, "--lr"),
        ({"lr": "fast"}, "--lr: expected a number, got 'fast'"),
        ({"batch_size": 0}, "--batch-size: expected at least 1, got 0"),
        ({"batch_size": 2.5}, "--batch-size: expected a whole number, got 2.5"),
        ({"epochs": 0}, "--epochs"),
        ({"epochs": True}, "--epochs: expected a whole number"),
        ({"patience": 0}, "--patience"),
        ({"dropout": 1.0}, "--dropout: expected a number from 0 to below 1"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"hidden": "8,x"}, "--hidden: expected whole numbers such as 256,128, got '8,x'"),
        ({"hidden": "8,0"}, "--hidden: expected layer sizes from 1 to"),
        ({"hidden": 3}, "--hidden"),
        ({"seed": -1}, "--seed"),
        ({"target": 3}, "--target: expected text"),
    ],
)
def test_values_that_are_refused(given, message):
    with pytest.raises(OptionError, match=message):
        Options.read(given)


def test_config_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('data = "t.csv"\nbatch-size = 4\nweight_decay = 0.5\nhidden = [3, 2]\n')
    assert read_config(path) == {"data": "t.csv", "batch_size": 4, "weight_decay": 0.5, "hidden": [3, 2]}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("epoch = 3", OptionError, "'epoch' is no option; did you mean 'epochs'"),
        ("resume = 'x'", OptionError, "'resume' is no option"),
        ("batch-size = 1\nbatch_size = 2", OptionError, "given twice"),
        ("epochs = ", DataError, "cannot be read as TOML"),
    ],
)
def test_config_that_is_refused(tmp_path, text, error, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(error, match=message):
        read_config(tmp_path / "c.toml")


def test_config_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_config(tmp_path)
