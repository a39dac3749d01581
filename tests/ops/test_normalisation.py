"""Normalisation: values by NumPy's mean and variance, running statistics, and PyTorch as a witness."""

from __future__ import annotations

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop.errors import ArgumentError, ShapeError

rng = np.random.default_rng(5)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_layer_norm(shape):
    x = rng.normal(2.0, 3.0, (4, 3, 5))
    weight, bias = rng.normal(size=shape), rng.normal(size=shape)
    axes = tuple(range(-len(shape), 0))
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 0.1) * weight + bias
    np.testing.assert_allclose(F.layer_norm(x, shape, weight, bias, 0.1), expected, rtol=1e-12)
    y = F.layer_norm(x, shape)
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-14)
    np.testing.assert_allclose(y.std(axes), 1, rtol=1e-4)


def test_rms_norm():
    x, weight = rng.normal(size=(4, 5)), rng.normal(size=5)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * weight
    np.testing.assert_allclose(F.rms_norm(x, 5, weight, 0.1), expected, rtol=1e-12)
    single = np.zeros((2, 4), np.float32) + np.float32(1e-3)
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(F.rms_norm(single, 4), 1e-3 / np.sqrt(1e-6 + eps), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_large_means_do_not_swallow_the_variance(dtype):
    """The variance is that of x - mean: E(x^2) - E(x)^2 would be all rounding here."""
    x = np.array([[1001.0, 1003.0, 1005.0, 1007.0]], dtype)
    expected = np.array([[-3, -1, 1, 3]]) / np.sqrt(5)
    np.testing.assert_allclose(F.layer_norm(x, 4), expected, rtol=2e-3 if dtype == np.float16 else 1e-5)
    np.testing.assert_allclose(
        F.batch_norm(x.T, None, None, training=True), expected.T, rtol=2e-3 if dtype == np.float16 else 1e-5
    )


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5)])
def test_batch_norm_and_its_running_statistics(shape, device):
    running_mean, running_var = gp.zeros(3, dtype=np.float64), gp.ones(3, dtype=np.float64)
    expected_mean, expected_var = np.zeros(3), np.ones(3)
    mean_data, var_data = running_mean.data, running_var.data
    axes = (0, *range(2, len(shape)))
    weight, bias = gp.tensor([1.0, 2.0, 3.0], dtype=np.float64), gp.tensor([0.5, 0.0, -0.5], dtype=np.float64)
    for _ in range(3):
        x = rng.normal(2.0, 3.0, shape)
        tensor = gp.tensor(x, requires_grad=True)
        y = F.batch_norm(tensor, running_mean, running_var, weight, bias, training=True, momentum=0.3)
        y.sum().backward()
        standard = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
        channels = [1, 3] + [1] * (len(shape) - 2)
        expected = standard * weight.numpy().reshape(channels) + bias.numpy().reshape(channels)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(tensor.grad.numpy(), 0, atol=1e-12)  # the sum of what has mean 0 cannot change
        expected_mean = 0.7 * expected_mean + 0.3 * x.mean(axes)
        expected_var = 0.7 * expected_var + 0.3 * x.var(axes, ddof=1)
    np.testing.assert_allclose(running_mean.numpy(), expected_mean, rtol=1e-12)
    np.testing.assert_allclose(running_var.numpy(), expected_var, rtol=1e-12)
    assert (
        running_mean.data is mean_data and running_var.data is var_data
    )  # in place, where a captured step expects them

    before = running_mean.numpy().copy()
    y = F.batch_norm(gp.tensor(x), running_mean, running_var, weight, bias)
    scale = weight.numpy() / np.sqrt(expected_var + 1e-5)
    expected = (x - expected_mean.reshape(channels)) * scale.reshape(channels) + bias.numpy().reshape(channels)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10)
    np.testing.assert_array_equal(running_mean.numpy(), before)


def test_batch_norm_says_what_it_lacks():
    x = gp.tensor(rng.normal(size=(1, 3)))
    with pytest.raises(ShapeError, match="more than one value per channel"):
        F.batch_norm(x, None, None, training=True)
    with pytest.raises(ArgumentError, match="running_mean and running_var"):
        F.batch_norm(x, None, None)


def test_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    x, weight, bias = rng.normal(size=(4, 3, 5)), rng.normal(size=3), rng.normal(size=3)
    dy = rng.normal(size=x.shape)
    last_weight, last_bias = rng.normal(size=5), rng.normal(size=5)
    mean, var = rng.normal(size=3), rng.uniform(0.5, 2.0, 3)
    cases = [
        ("layer_norm", lambda f, a, w, b, m, v: f(a, (5,), w, b, 1e-3), last_weight, last_bias),
        ("rms_norm", lambda f, a, w, b, m, v: f(a, (5,), w), last_weight, None),
        ("batch_norm", lambda f, a, w, b, m, v: f(a, m, v, w, b, True, 0.2, 1e-3), weight, bias),
        ("batch_norm", lambda f, a, w, b, m, v: f(a, m, v, w, b), weight, bias),
    ]
    for name, call, w, b in cases:
        results = []
        for tensor, module in ((gp.tensor, F), (torch.tensor, torch.nn.functional)):
            arrays = [None if a is None else tensor(a, requires_grad=True) for a in (x, w, b)]
            statistics = [tensor(mean), tensor(var)]
            y = call(getattr(module, name), *arrays, *statistics)
            y.backward(tensor(dy))
            results.append(
                [
                    y.detach().numpy(),
                    *(a.grad.numpy() for a in arrays if a is not None),
                    *(s.numpy() for s in statistics),
                ]
            )
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11, err_msg=name)
