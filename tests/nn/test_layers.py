"""Layers and containers."""

import copy
import pickle
from collections import OrderedDict
from math import sqrt

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import nn


def test_linear(device):
    layer = nn.Linear(3, 2, generator=gp.Generator("cpu", 3)).to(device)
    x = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
    y = layer(gp.tensor(x, device=device))
    np.testing.assert_allclose(y.numpy(), x @ layer.weight.numpy().T + layer.bias.numpy(), rtol=1e-5, atol=1e-6)
    assert layer.weight.shape == (2, 3) and layer.bias.shape == (2,)
    assert nn.Linear(3, 2, bias=False).bias is None and list(nn.Linear(3, 2, bias=False).state_dict()) == ["weight"]
    assert nn.Linear(3, 2, dtype=np.float64).weight.dtype == np.float64
    assert nn.Linear(0, 2).bias.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="not negative, got -1 and 2"):
        nn.Linear(-1, 2)


def test_linear_begins_uniform_as_pytorchs():
    layer = nn.Linear(100, 400, generator=gp.Generator("cpu", 0))
    for p in (layer.weight.numpy(), layer.bias.numpy()):
        assert np.abs(p).max() < 0.1 + 1e-7 and np.abs(p).max() > 0.098
        np.testing.assert_allclose(p.std(), 0.1 / sqrt(3), rtol=0.05)
        assert abs(p.mean()) < 0.01


def test_flatten_and_identity():
    x = gp.zeros(2, 3, 4, 5)
    for arguments, shape in [
        ((), (2, 60)),
        ((0,), (120,)),
        ((1, 2), (2, 12, 5)),
        ((-2, -1), (2, 3, 20)),
        ((1, 1), (2, 3, 4, 5)),
    ]:
        assert nn.Flatten(*arguments)(x).shape == shape
    assert nn.Flatten()(gp.zeros(0, 3, 4)).shape == (0, 12)
    with pytest.raises(IndexError, match="start_dim before end_dim"):
        nn.Flatten(2, 1)(x)
    assert nn.Identity(54, unused=1)(x) is x


def test_embedding(device):
    layer = nn.Embedding(5, 3, device=device)
    index = gp.tensor([[4, 0], [4, 4]], device=device)
    y = layer(index)
    np.testing.assert_array_equal(y.numpy(), layer.weight.numpy()[index.numpy()])
    y.sum().backward()
    assert layer.weight.grad.numpy()[:, 0].tolist() == [1, 0, 0, 0, 3]


def test_dropout(device):
    x = gp.ones(50, 40, device=device)
    layer = nn.Dropout(0.25, generator=gp.Generator(device, 1))
    y = layer(x).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)} and abs((y == 0).mean() - 0.25) < 0.04
    assert (layer(x).numpy() != y).any()
    assert layer.eval()(x) is x
    again = nn.Dropout(0.25, generator=gp.Generator(device, 1))
    assert (again(x).numpy() == y).all()
    with pytest.raises(ValueError, match="p from 0 to 1, got 1.5"):
        nn.Dropout(1.5)


def test_layer_and_rms_norm(device):
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    t = gp.tensor(x, device=device)
    layer = nn.LayerNorm((3, 5), eps=0.1, device=device)
    with gp.no_grad():
        layer.weight += 1.0
        layer.bias += 0.5
    mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    np.testing.assert_allclose(layer(t).numpy(), 2 * (x - mean) / np.sqrt(var + 0.1) + 0.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        nn.RMSNorm(5, eps=0.1, device=device)(t).numpy(), x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1), rtol=1e-5
    )
    assert nn.LayerNorm(5, bias=False).bias is None and nn.LayerNorm(5).normalized_shape == (5,)
    assert not list(nn.LayerNorm(5, elementwise_affine=False).parameters())
    assert not list(nn.RMSNorm(5, elementwise_affine=False).parameters())


def test_batch_norm(device):
    rng = np.random.default_rng(0)
    layer = nn.BatchNorm1d(3, momentum=0.2, eps=0.01, device=device)
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = rng.standard_normal((6, 3)).astype(np.float32)
        y = layer(gp.tensor(x, device=device))
        np.testing.assert_allclose(y.numpy(), (x - x.mean(0)) / np.sqrt(x.var(0) + 0.01), rtol=1e-4, atol=1e-5)
        mean, var = 0.8 * mean + 0.2 * x.mean(0), 0.8 * var + 0.2 * x.var(0, ddof=1)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-5)
    assert layer.num_batches_tracked.item() == 3
    y = layer.eval()(gp.tensor(x, device=device))
    np.testing.assert_allclose(y.numpy(), (x - mean) / np.sqrt(var + 0.01), rtol=1e-4, atol=1e-5)
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert layer.num_batches_tracked.item() == 3
    with pytest.raises(TypeError, match=r"x \(N, C\) or \(N, C, L\), got \(3,\)"):
        layer(gp.zeros(3, device=device))


def test_batch_norm_without_momentum_and_without_statistics():
    x = gp.tensor(np.random.default_rng(0).standard_normal((2, 8, 3)))
    layer = nn.BatchNorm1d(3, momentum=None, dtype=np.float64)
    for batch in x:
        layer(batch)
    np.testing.assert_allclose(layer.running_mean.numpy(), x.numpy().mean(1).mean(0))
    bare = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    assert not bare.state_dict()
    np.testing.assert_allclose(bare.eval()(x[0]).numpy().mean(0), 0, atol=1e-12)


# --- Containers -----------------------------------------------------------------------------------------------------


def test_sequential():
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, nn.ReLU(), second)
    x = gp.ones(5, 3)
    np.testing.assert_array_equal(model(x).numpy(), second(nn.functional.relu(first(x))).numpy())
    assert len(model) == 3 and model[0] is first and model[-1] is second and list(model)[2] is second
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    head = model[:2]
    assert type(head) is nn.Sequential and len(head) == 2 and head[0] is first
    assert model.append(nn.Tanh()) is model and len(model) == 4
    named = nn.Sequential(OrderedDict([("body", first), ("act", nn.ReLU())]))
    assert named.body is first and list(named.state_dict()) == ["body.weight", "body.bias"]
    with pytest.raises(IndexError, match="an index below 4, got 4"):
        model[4]
    with pytest.raises(TypeError, match="expected a Module or None"):
        nn.Sequential(len)
    assert nn.Sequential()(x) is x
    shared = nn.Linear(3, 3)
    assert len(list(nn.Sequential(shared, nn.ReLU(), shared).parameters())) == 2


def test_module_list():
    layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    layers.extend([nn.ReLU()])
    assert len(layers) == 4 and len(list(layers.parameters())) == 6 and type(layers[1:]) is nn.ModuleList
    assert next(iter(layers.state_dict())) == "0.weight"
    with pytest.raises(NotImplementedError):
        layers(1)


# --- MLP ------------------------------------------------------------------------------------------------------------


def test_mlp_structure():
    model = nn.MLP([4, 8, 6, 2], activation="gelu", output_activation="log_softmax", dropout=0.1, norm="layer")
    kinds = [type(m).__name__ for m in model]
    block = ["Linear", "LayerNorm", "GELU", "Dropout"]
    assert kinds == [*block, *block, "Linear", "LogSoftmax"]
    assert model(gp.ones(3, 4)).shape == (3, 2)
    assert [type(m).__name__ for m in nn.MLP([4, 2])] == ["Linear"]
    assert [type(m).__name__ for m in nn.MLP([4, 3, 2], nn.Tanh, norm="batch")] == [
        "Linear",
        "BatchNorm1d",
        "Tanh",
        "Linear",
    ]
    assert [type(m).__name__ for m in nn.MLP([4, 3, 2], None)] == ["Linear", "Linear"]


@pytest.mark.parametrize("activation", ["relu", "prelu", lambda: nn.PReLU(1, device="cpu", dtype=np.float64)])
@pytest.mark.parametrize("norm", [None, "layer", "batch", "rms"])
def test_mlp_lies_in_one_piece(device, norm, activation):
    model = nn.MLP([300, 200, 100, 10], activation, output_activation=activation, norm=norm, device=device)
    parameters = list(model.parameters())
    assert all(q.segment.follows(p.segment) for p, q in zip(parameters, parameters[1:]))
    assert parameters[0].segment.chunk.data.size == parameters[-1].segment.stop
    optimizer = gp.optim.Adam(model.parameters())
    model(gp.ones(5, 300, device=device)).sum().backward()
    optimizer.step()
    assert len(optimizer._tables[0].runs) == 1
    moved = model.double()
    assert len({id(p.segment.chunk) for p in moved.parameters()}) == 1


def test_mlp_seed(device):
    first, second, other = (nn.MLP([4, 8, 2], seed=seed, device=device) for seed in (1, 1, 2))
    same = [(p.numpy() == q.numpy()).all() for p, q in zip(first.parameters(), second.parameters())]
    assert all(same)
    assert (first[0].weight.numpy() != other[0].weight.numpy()).any()
    on_cpu = nn.MLP([4, 8, 2], seed=1, device="cpu")
    for p, q in zip(first.parameters(), on_cpu.parameters()):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_the_default_generator_draws_without_a_seed():
    weights = []
    for _ in range(2):
        gp.manual_seed(5)
        weights.append(nn.MLP([4, 8, 2])[0].weight.tolist())
    assert weights[0] == weights[1] != nn.MLP([4, 8, 2])[0].weight.tolist()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([4],), "two sizes at least"),
        (([4, 2, 1], "rellu"), "an activation among .*relu.*, got 'rellu'"),
        (([4, 2], "relu", None, 0.0, "group"), "norm None, 'layer', 'batch', 'rms', got 'group'"),
    ],
)
def test_mlp_options(arguments, match):
    with pytest.raises(ValueError, match=f"MLP: expected {match}"):
        nn.MLP(*arguments)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(copied):
    model = nn.MLP([4, 8, 2], dropout=0.3, norm="batch")
    model(gp.ones(5, 4))
    other = copied(model)
    assert repr(other) == repr(model)
    x = gp.rand(3, 4)
    np.testing.assert_array_equal(other.eval()(x).numpy(), model.eval()(x).numpy())
    assert other[1].running_mean.data is not model[1].running_mean.data


def test_repr_is_pytorchs():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.1), nn.Sequential(nn.Linear(4, 2, bias=False)))
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Linear(in_features=3, out_features=4, bias=True)\n"
        "  (1): ReLU()\n"
        "  (2): Dropout(p=0.1)\n"
        "  (3): Sequential(\n"
        "    (0): Linear(in_features=4, out_features=2, bias=False)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.LayerNorm(3)) == "LayerNorm((3,), eps=1e-05, elementwise_affine=True)"
    assert repr(nn.RMSNorm(3)) == "RMSNorm((3,), eps=None, elementwise_affine=True)"
    assert repr(nn.BatchNorm1d(3)) == "BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    assert repr(nn.Flatten()) == "Flatten(start_dim=1, end_dim=-1)" and repr(nn.Embedding(5, 3)) == "Embedding(5, 3)"


# --- A bias that is left to the loss --------------------------------------------------------------------------------


def logits_and_loss(device, look):
    """Two steps; what was seen of the first step's logits, `look` saying when, and the parameters afterwards."""
    layer = nn.Linear(5, 4, generator=gp.Generator("cpu", 3)).to(device)
    optimizer = gp.optim.SGD(layer.parameters(), lr=0.5)
    x = gp.tensor(np.linspace(-1, 1, 15).reshape(3, 5).astype(np.float32), device=device)
    labels, seen = gp.tensor([0, 3, 1], device=device), None
    for step in range(2):
        optimizer.zero_grad()
        logits = layer(x)
        if look == "before" and not step:
            seen = logits.numpy()
        loss = F.cross_entropy(logits, labels)
        if look == "also" and not step:
            loss = loss + logits.sum() * 0.0
        loss.backward()
        optimizer.step()
        if look == "after" and not step:
            seen = logits.numpy()
    return seen, [p.numpy() for p in layer.parameters()]


@pytest.mark.parametrize("look", ["never", "before", "after", "also"])
def test_nobody_can_tell_when_a_bias_was_added(device, look):
    seen, parameters = logits_and_loss(device, look)
    expected, expected_parameters = logits_and_loss("cpu", "before")
    for p, q in zip(parameters, expected_parameters):
        np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-6)
    if seen is not None:
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


def test_outputs_of_a_linear_layer_are_ordinary_tensors(device):
    layer = nn.Linear(5, 4, generator=gp.Generator("cpu", 3)).to(device)
    x = gp.ones(3, 5, device=device)
    y = layer(x)
    assert y.shape == (3, 4) and y.requires_grad and y.ndim == 2 and not y.is_leaf
    bias = layer.bias.numpy().copy()
    with gp.no_grad():
        z = layer(x)
        assert not z.requires_grad
        kept = layer(x)
        layer.bias += 1
    np.testing.assert_allclose(layer(x).numpy(), y.numpy() + 1, rtol=1e-5)
    np.testing.assert_allclose(kept.numpy(), z.numpy())
    y.sum().backward()
    np.testing.assert_allclose(layer.bias.grad.numpy(), 3)
    layer.bias.data = gp.zeros(4, device=device).data
    np.testing.assert_allclose(y.numpy() - bias, layer(x).numpy(), rtol=1e-4, atol=1e-6)
    for _ in range(4):
        layer(x)
    assert len(layer.bias.version()) == 1  # nobody waits any more


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.ReLU])
def test_an_activation_of_no_columns(activation, device):
    model = nn.Sequential(nn.Linear(3, 0), activation()).to(device)
    assert model(gp.ones(4, 3, device=device)).shape == (4, 0)
