"""The picture of a training: drawn for any number of epochs, without pyplot, the same bytes each time."""

import sys

import pytest

from gpuprop.train import draw_curves


def rows(epochs, metric, loss=lambda e: 2.0 / e):
    return [
        {
            "epoch": e,
            **{
                f"{part}_{name}": value
                for part in ("train", "validation")
                for name, value in (("loss", loss(e)), (metric, 1 - 1 / (e + 1)))
            },
        }
        for e in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 40])
@pytest.mark.parametrize("metric", ["accuracy", "r2"])
def test_curves(tmp_path, epochs, metric):
    draw_curves(tmp_path / "a.png", rows(epochs, metric), title="t", test={"loss": 0.1, metric: 0.9})
    draw_curves(tmp_path / "b.png", rows(epochs, metric), title="t", test={"loss": 0.1, metric: 0.9})
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "b.png").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules


def test_curves_with_figures_that_are_not_numbers(tmp_path):
    history = rows(3, "r2")
    history[0]["validation_r2"] = None
    draw_curves(tmp_path / "a.png", history, title="t", test={"loss": 0.0, "r2": float("nan")})
    assert (tmp_path / "a.png").stat().st_size > 1000
