"""A linear map, its activation and dropout: one record, with the numbers of several."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import nn
from gpuprop.errors import ShapeError


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


@pytest.mark.parametrize("weights", [1, 12])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_an_activation_that_learns(device, weights, dtype, bias, dropout):
    """As three records. On a GPU sums over rows and columns have another order, and 16 bits are not rounded to before the activation."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((33, 5)).astype(dtype), rng.standard_normal((33, 12)).astype(dtype)
    linear, activation = nn.Linear(5, 12, bias=bias, dtype=dtype), nn.PReLU(weights, dtype=dtype)
    last = nn.Dropout(dropout)
    parameters = [*linear.parameters(), *activation.parameters()]
    found = run(nn.Sequential(linear, activation, last), x, dy, parameters)
    expected = run(lambda x: last(activation(linear(x))), x, dy, parameters)
    assert len(found) == 5 + bias
    for a, e in zip(found, expected, strict=True):
        if not device.startswith("cuda"):
            np.testing.assert_array_equal(a, e)
        else:
            length = 33 * 12 if e.size == 1 else 33
            np.testing.assert_allclose(a, e, rtol=0, atol=4 * np.finfo(dtype).eps * length**0.5 * np.abs(e).max())


def test_what_is_learnt_for_channels_that_are_no_columns(device):
    """Of (N, C, columns) the channels are axis 1: the rule's business, as are weights that do not fit."""
    x, linear, activation = gp.ones(2, 4, 3, device=device), nn.Linear(3, 5, device=device), nn.PReLU(4, device=device)
    y = nn.Sequential(linear, activation)(x)
    np.testing.assert_array_equal(y.numpy(), activation(linear(x)).numpy())
    y.sum().backward()
    assert activation.weight.grad.shape == (4,)
    with pytest.raises(ShapeError, match=r"prelu: expected a weight of 1 or 5 numbers.*\(2, 5\), got \(4,\)"):
        nn.Sequential(linear, activation)(x[:, 0])


def test_what_is_learnt_may_be_frozen(device):
    linear, activation = nn.Linear(3, 5, device=device), nn.PReLU(5, device=device)
    model, x = nn.Sequential(linear, activation), gp.ones(4, 3, device=device)
    for frozen in ([activation.weight], [linear.bias], [linear.bias, activation.weight], list(linear.parameters())):
        for p in model.parameters():
            p.grad = None
            p.requires_grad_(all(p is not other for other in frozen))
        model(x).sum().backward()
        for p in model.parameters():
            assert (p.grad is None) == any(p is other for other in frozen)


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
    for weights in (1, 5):
        assert records(nn.Sequential(linear, nn.PReLU(weights))(x)) == ["linear_activation"]
    assert records(nn.Sequential(linear, nn.PReLU(5), nn.Dropout(0.2))(x)) == ["linear_activation_dropout"]
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
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.PReLU(), nn.PReLU(16)], ids=repr)
@pytest.mark.parametrize("bias", [True, False])
def test_dropout_costs_no_launch(count, reference_path, activation, bias):
    activation.to("cuda")
    linear = nn.Linear(20, 16, bias=bias, device="cuda")
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
