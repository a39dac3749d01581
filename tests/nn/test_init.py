"""Initialisers: their distributions, and that they change values in place."""

from math import sqrt

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.nn import Parameter, init

IN, OUT = 300, 200
UNIFORM = {
    "xavier_uniform_": (init.xavier_uniform_, sqrt(6 / (IN + OUT))),
    "kaiming_uniform_": (init.kaiming_uniform_, sqrt(6 / IN)),
    "kaiming_uniform_ fan_out": (
        lambda t, **g: init.kaiming_uniform_(t, mode="fan_out", nonlinearity="relu", **g),
        sqrt(6 / OUT),
    ),
    "kaiming_uniform_ a": (lambda t, **g: init.kaiming_uniform_(t, a=sqrt(5), **g), 1 / sqrt(IN)),
    "lecun_uniform_": (init.lecun_uniform_, sqrt(3 / IN)),
    "uniform_": (lambda t, **g: init.uniform_(t, -0.25, 0.25, **g), 0.25),
}
NORMAL = {
    "xavier_normal_": (init.xavier_normal_, sqrt(2 / (IN + OUT))),
    "xavier_normal_ gain": (lambda t, **g: init.xavier_normal_(t, 3.0, **g), 3 * sqrt(2 / (IN + OUT))),
    "kaiming_normal_": (lambda t, **g: init.kaiming_normal_(t, nonlinearity="relu", **g), sqrt(2 / IN)),
    "lecun_normal_": (init.lecun_normal_, sqrt(1 / IN)),
    "normal_": (lambda t, **g: init.normal_(t, 0.0, 0.02, **g), 0.02),
}


def filled(initialise, seed=0, shape=(OUT, IN), dtype=np.float32):
    p = Parameter(gp.zeros(shape, dtype=dtype))
    memory = p.data
    assert initialise(p, generator=gp.Generator("cpu", seed)) is p and p.data is memory and p.requires_grad
    return p.numpy()


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform(name):
    initialise, bound = UNIFORM[name]
    drawn = filled(initialise)
    assert 0.999 * bound < drawn.max() <= bound * (1 + 1e-6) and -bound * (1 + 1e-6) <= drawn.min() < -0.999 * bound
    np.testing.assert_allclose(drawn.std(), bound / sqrt(3), rtol=0.01)
    np.testing.assert_array_equal(drawn, filled(initialise))
    assert (drawn != filled(initialise, seed=1)).any()


@pytest.mark.parametrize("name", NORMAL)
def test_normal(name):
    initialise, std = NORMAL[name]
    drawn = filled(initialise)
    np.testing.assert_allclose(drawn.std(), std, rtol=0.01)
    assert abs(drawn.mean()) < std / 50 and 3.5 * std < np.abs(drawn).max() < 6.7 * std
    np.testing.assert_array_equal(drawn, filled(initialise))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (4, 2, 3), (5, 2, 1)])
def test_orthogonal(shape):
    drawn = filled(lambda t, **g: init.orthogonal_(t, gain=2.0, **g), shape=shape, dtype=np.float64)
    matrix = drawn.reshape(shape[0], -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-12)


def test_constants(device):
    p = Parameter(gp.rand(2, 3, device=device))
    before = p.version()[0]
    assert init.ones_(p).tolist() == [[1.0] * 3] * 2 and init.constant_(p, 0.5).tolist() == [[0.5] * 3] * 2
    assert init.zeros_(p).tolist() == [[0.0] * 3] * 2 and p.version()[0] > before


def test_a_stream_on_another_device_and_none(device):
    a, b = gp.zeros(3, 4, device=device), gp.zeros(3, 4, device="cpu")
    init.uniform_(a, generator=gp.Generator("cpu", 7)), init.uniform_(b, generator=gp.Generator("cpu", 7))
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    gp.manual_seed(3)
    init.normal_(a)
    assert np.abs(a.numpy()).max() > 0.3


def test_gains():
    assert (
        init.calculate_gain("relu") == sqrt(2)
        and init.calculate_gain("tanh") == 5 / 3
        and init.calculate_gain("linear") == 1
    )
    assert init.calculate_gain("leaky_relu") == sqrt(2 / 1.0001) and init.calculate_gain("leaky_relu", 1.0) == 1.0
    torch = pytest.importorskip("torch")
    for name in ("linear", "sigmoid", "tanh", "relu", "selu", "leaky_relu"):
        assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)


def test_fans_of_more_axes():
    drawn = filled(init.xavier_uniform_, shape=(20, 30, 5, 2))
    np.testing.assert_allclose(drawn.max(), sqrt(6 / 500), rtol=0.01)


@pytest.mark.parametrize(
    ("initialise", "match"),
    [
        (
            lambda t: init.xavier_uniform_(t),
            r"xavier_uniform_: expected a weight of two or more axes, got shape \(3,\)",
        ),
        (lambda t: init.orthogonal_(t), "orthogonal_: expected a weight"),
        (lambda t: init.kaiming_normal_(t, mode="fan"), "'fan_in' or 'fan_out', got 'fan'"),
        (lambda t: init.calculate_gain("relu7"), "calculate_gain: expected leaky_relu, linear.*got 'relu7'"),
    ],
)
def test_errors(initialise, match):
    with pytest.raises(ValueError, match=match):
        initialise(gp.zeros(3))
