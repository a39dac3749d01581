"""Clipping of gradients, by norm and by value."""

from math import inf

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import optim
from gpuprop.nn import Parameter


def parameters_with_gradients(device="cpu", dtype=np.float32):
    rng = np.random.default_rng(0)
    parameters = [Parameter(gp.zeros(shape, dtype=dtype, device=device)) for shape in [(3, 4), (5,), (), (0, 2), (7,)]]
    gradients = [np.asarray(rng.standard_normal(p.shape)) for p in parameters[:-1]]  # the last one has none
    for p, g in zip(parameters, gradients):
        p.grad = gp.tensor(g, dtype=dtype, device=device)
    return parameters, np.concatenate([g.ravel() for g in gradients])


@pytest.mark.parametrize("norm_type", [2.0, inf, 1.0, 3.5])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_norm(device, norm_type, max_norm):
    parameters, flat = parameters_with_gradients(device)
    norm = gp.nn.utils.clip_grad_norm_(iter(parameters), max_norm, norm_type)
    expected = np.linalg.norm(flat, norm_type)
    assert isinstance(norm, gp.Tensor) and norm.shape == () and norm.dtype == np.float32
    np.testing.assert_allclose(norm.item(), expected, rtol=1e-6)
    clipped = np.concatenate([p.grad.numpy().ravel() for p in parameters if p.grad is not None])
    np.testing.assert_allclose(clipped, flat * min(1.0, max_norm / (expected + 1e-6)), rtol=1e-6)
    assert parameters[-1].grad is None


def test_value(device):
    parameters, flat = parameters_with_gradients(device)
    optim.clip_grad_value_(parameters, 0.25)
    clipped = np.concatenate([p.grad.numpy().ravel() for p in parameters if p.grad is not None])
    np.testing.assert_array_equal(clipped, np.clip(flat.astype(np.float32), -0.25, 0.25))


def test_as_pytorch():
    torch = pytest.importorskip("torch")
    parameters, _ = parameters_with_gradients()
    theirs = [torch.zeros(p.shape, requires_grad=True) for p in parameters]
    for p, q in zip(parameters[:-1], theirs):
        q.grad = torch.tensor(p.grad.numpy().copy())
    norm = optim.clip_grad_norm_(parameters, 1.0)
    other = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    np.testing.assert_allclose(norm.item(), other.item(), rtol=1e-6)
    for p, q in zip(parameters[:-1], theirs):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)


def test_large_float16_gradients_do_not_overflow():
    p = Parameter(np.zeros(3, np.float16))
    p.grad = gp.tensor([300.0, 400.0, 0.0], dtype=np.float16)
    assert optim.clip_grad_norm_([p], 5.0).item() == 500.0
    np.testing.assert_allclose(p.grad.numpy(), [3, 4, 0], rtol=1e-3)


def test_gradients_stay_at_home_and_change_their_version():
    p = Parameter([3.0, 4.0])
    (p * p).sum().backward()
    memory, before = p.grad.data, p.grad.version()[0]
    optim.clip_grad_norm_(p, 1.0)
    assert p.grad.data is memory and p.grad.version()[0] > before
    np.testing.assert_allclose(memory, [0.6, 0.8], rtol=1e-5)


def test_norms_that_are_not_finite():
    p = Parameter([1.0, 2.0])
    p.grad = gp.tensor([float("nan"), 1.0])
    with pytest.raises(RuntimeError, match="clip_grad_norm_: expected a finite norm, got nan"):
        optim.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    assert np.isnan(optim.clip_grad_norm_([p], 1.0).item())


def test_arguments_are_checked():
    assert optim.clip_grad_norm_([Parameter([1.0])], 1.0).item() == 0.0
    with pytest.raises(ValueError, match="norm_type > 0"):
        optim.clip_grad_norm_([], 1.0, norm_type=0)
    with pytest.raises(TypeError, match="clip_grad_value_: expected parameters, got int"):
        optim.clip_grad_value_([1], 1.0)
