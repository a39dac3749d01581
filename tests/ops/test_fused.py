"""A linear map, its activation and dropout: one record, with the numbers of several."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import nn


def apart(linear, activation, dropout):
    """The same with dropout in a record of its own."""
    return lambda x: dropout(nn.Sequential(linear, activation)(x))


def run(model, x, weights, parameters):
    """The output, all gradients for a given cotangent, and what the generator draws next."""
    gp.manual_seed(3)
    x = gp.tensor(x, device=parameters[0].device, requires_grad=True)
    for p in parameters:
        p.grad = None
    y = model(x)
    (y * gp.tensor(weights, device=x.device)).sum().backward()
    return [y.numpy(), gp.rand(5, device=x.device).numpy(), *(t.grad.numpy().copy() for t in [x, *parameters])]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.GELU("tanh")], ids=repr)
@pytest.mark.parametrize("rows, columns", [(33, 7), (9, 12), (700, 136)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_dropout_is_that_of_a_record_of_its_own(device, reference_path, activation, rows, columns, dtype, bias):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((rows, 5)).astype(dtype), rng.standard_normal((rows, columns)).astype(dtype)
    modules = nn.Linear(5, columns, bias=bias, dtype=dtype), activation, nn.Dropout(0.4)
    parameters = list(modules[0].parameters())
    y, drawn, *gradients = run(nn.Sequential(*modules), x, weights, parameters)
    expected_y, expected_drawn, *expected = run(apart(*modules), x, weights, parameters)
    assert 0.3 < (y == 0).mean() < 0.8 and len(gradients) == 2 + bias
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(drawn, expected_drawn)
    for a, e in zip(gradients, expected, strict=True):
        if isinstance(activation, nn.Tanh):  # a kernel computes y again, and may keep more of its digits
            np.testing.assert_allclose(a, e, rtol=0, atol=4 * np.finfo(dtype).eps * np.abs(e).max())
        else:
            np.testing.assert_array_equal(a, e)


def records(y):
    """The names of the records that lead to y, last first, where each has one input that was computed."""
    node, names = y._node, []
    while node.edges:
        names.append(node.name)
        node = node.edges[0]
    return names


def test_what_is_one_record():
    x = gp.ones(4, 3, requires_grad=True)
    linear, other = nn.Linear(3, 5), nn.Linear(5, 5)
    model = nn.Sequential(linear, nn.ReLU(), nn.Dropout(0.2), other, nn.Dropout(0.2))
    assert records(model(x)) == ["dropout", "linear", "linear_activation_dropout"]
    assert records(model.eval()(x)) == ["linear", "linear_activation"]
    assert records(nn.Sequential(linear, nn.Tanh(), nn.Dropout(0.0))(x)) == ["linear_activation"]
    assert records(nn.Sequential(linear, nn.Dropout(0.2), nn.Tanh())(x)) == ["tanh", "dropout", "linear"]
    assert records(nn.Sequential(linear, nn.Softmax(-1), nn.Dropout(0.2))(x)) == ["dropout", "softmax", "linear"]
    assert records(nn.MLP([3, 4, 4, 2], dropout=0.5)(x)) == [
        "linear",
        "linear_activation_dropout",
        "linear_activation_dropout",
    ]


def test_in_use_nothing_is_drawn(device):
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.5)).eval()
    before = gp.default_generator(device).get_state()
    np.testing.assert_array_equal(model(gp.ones(4, 3)).numpy(), model[:2](gp.ones(4, 3)).numpy())
    assert gp.default_generator(device).get_state() == before


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.SiLU()], ids=repr)
def test_all_may_be_dropped(device, activation):
    model, x = nn.Sequential(nn.Linear(3, 5), activation, nn.Dropout(1.0)), gp.ones(4, 3, requires_grad=True)
    y = model(x)
    y.sum().backward()
    for t in (y, x.grad, model[0].weight.grad, model[0].bias.grad):
        np.testing.assert_array_equal(t.numpy(), 0)


def test_a_generator_of_its_own(device):
    states = []
    for build in (nn.Sequential, apart):
        generator = gp.Generator(device, seed=8)
        linear = nn.Linear(3, 50, generator=gp.Generator(device, seed=1))
        before = gp.default_generator(device).get_state()
        y = build(linear, nn.ReLU(), nn.Dropout(0.5, generator=generator))(gp.ones(4, 3))
        assert gp.default_generator(device).get_state() == before
        states.append((y.tolist(), generator.get_state()))
    assert states[0] == states[1] and states[0][1]["position"] == 25


def test_a_mask_is_drawn_again_in_a_checkpoint(device):
    model, x = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Dropout(0.5)), gp.ones(4, 3)
    gradients = []
    for f in (model, lambda x: gp.checkpoint(model, x)):
        gp.manual_seed(1)
        model[0].weight.grad = None
        f(x).sum().backward()
        gradients.append(model[0].weight.grad.numpy())
    np.testing.assert_array_equal(*gradients)


@pytest.mark.cuda
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.GELU()], ids=repr)
def test_dropout_costs_no_launch(count, reference_path, activation):
    linear = nn.Linear(20, 16, device="cuda")
    x, dy = gp.ones(12, 20, device="cuda", requires_grad=True), gp.ones(12, 16, device="cuda")
    names = ("kernel_launches", "memsets", "gemm_calls", "device_to_device", "mallocs")

    def costs(model):
        """Of a forward and of a backward pass."""
        model(x).backward(dy)  # compiles, allocates
        done = []
        counted = count(lambda: done.append(model(x))), count(lambda: done[0].backward(dy))
        return [{name: part[name] for name in names} for part in counted]

    plain, dropped = (costs(nn.Sequential(linear, activation, *more)) for more in ([], [nn.Dropout(0.5)]))
    assert plain == dropped and plain[0]["kernel_launches"] == 1
