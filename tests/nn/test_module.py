"""Module: what it finds among its attributes, its state, and its copies."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.errors import CheckpointError
from gpuprop.nn import Module, Parameter


class Affine(Module):
    def __init__(self, n=3, m=2):
        self.weight = Parameter(np.arange(m * n, dtype=np.float32).reshape(m, n))
        self.bias = Parameter(np.zeros(m, np.float32))
        self.register_buffer("count", gp.tensor(0))
        self.register_buffer("mask", gp.tensor([1.0, 0.0]), persistent=False)

    def forward(self, x, scale=1.0):
        return (x @ self.weight.T + self.bias) * scale


class Net(Module):
    def __init__(self):
        self.first = Affine(3, 4)
        self.second = Affine(4, 2)
        self.scale = Parameter([2.0])
        self.same = self.first
        self.note = "not a parameter"

    def forward(self, x):
        return self.second(self.first(x)) * self.scale


NAMES = ["first.weight", "first.bias", "second.weight", "second.bias"]


def test_what_it_consists_of():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == ["scale", *NAMES]
    assert [name for name, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert [name for name, _ in net.named_parameters("net")][:2] == ["net.scale", "net.first.weight"]
    assert [name for name, _ in net.named_buffers()] == ["first.count", "first.mask", "second.count", "second.mask"]
    assert [name for name, _ in net.named_children()] == ["first", "second"]
    assert [name for name, _ in net.named_modules()] == ["", "first", "second"]
    assert list(net.modules()) == [net, net.first, net.second] and list(net.children()) == [net.first, net.second]
    assert net.get_submodule("second") is net.second and net.get_submodule("") is net
    assert sum(p.size for p in net.parameters()) == 16 + 10 + 1
    assert len(list(net.buffers())) == 4


def test_tied_parameters_count_once():
    net = Net()
    net.second.bias = Parameter(np.zeros(2, np.float32))
    net.extra = net.second.bias
    assert len(list(net.parameters())) == 5
    names = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    assert names == ["scale", "extra", *NAMES, "same.weight", "same.bias"]


def test_call_and_gradients(device):
    net = Net().to(device)
    x = gp.ones(5, 3, device=device)
    y = net(x)
    expected = np.ones((5, 3)) @ np.arange(12).reshape(4, 3).T @ np.arange(8).reshape(2, 4).T * 2
    np.testing.assert_allclose(y.numpy(), expected)
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad(set_to_none=False)
    assert all(float(p.grad.abs().sum().item()) == 0 for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    assert net.first(x, scale=0.0).numpy().sum() == 0


def test_modes():
    net = Net()
    assert net.training and net.eval() is net
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    assert net.requires_grad_(False) is net and not any(p.requires_grad for p in net.parameters())


def test_apply_visits_children_first():
    visited = []
    net = Net()
    assert net.apply(visited.append) is net
    assert visited == [net.first, net.second, net]


# --- State ----------------------------------------------------------------------------------------------------------


def test_state_goes_round():
    net, other = Net(), Net()
    with gp.no_grad():
        for p in net.parameters():
            p += 1.0
        net.first.count += 7
    state = net.state_dict()
    assert list(state) == [
        "scale", "first.weight", "first.bias", "first.count", "second.weight", "second.bias", "second.count",
        "same.weight", "same.bias", "same.count",
    ]  # fmt: skip
    memory = other.first.weight.data
    result = other.load_state_dict({k: v.numpy() if "bias" in k else v for k, v in state.items()})
    assert result == ([], []) and other.first.weight.data is memory
    for p, q in zip(net.parameters(), other.parameters()):
        assert p.tolist() == q.tolist()
    assert other.first.count.item() == 7


def test_state_crosses_devices_and_dtypes(device):
    source, target = Net().double(), Net().to(device)
    with gp.no_grad():
        source.scale.fill_(0.25)
    target.load_state_dict(source.state_dict())
    assert target.scale.dtype == np.float32 and target.scale.device == device and target.scale.tolist() == [0.25]


def test_state_that_does_not_fit_changes_nothing():
    net = Net()
    state = {k: v + 1.0 for k, v in net.state_dict().items() if k != "scale"}
    state["first.weight"] = gp.zeros(3, 4)
    state["third.weight"] = gp.zeros(1)
    before = [p.tolist() for p in net.parameters()]
    with pytest.raises(CheckpointError) as caught:
        net.load_state_dict(state)
    for part in (
        "Net: first.weight expected (4, 3), got (3, 4)",
        "missing scale",
        "unexpected third.weight",
        "strict=False",
    ):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match="first.weight expected"):
        net.load_state_dict(state, strict=False)
    assert [p.tolist() for p in net.parameters()] == before
    del state["first.weight"]
    result = net.load_state_dict(state, strict=False)
    assert result.missing_keys == ["scale", "first.weight"] and result.unexpected_keys == ["third.weight"]
    assert net.second.bias.tolist() == [1.0, 1.0]


def test_loading_makes_what_was_recorded_stale():
    net = Net()
    loss = net(gp.ones(1, 3)).sum()
    net.load_state_dict(net.state_dict())
    with pytest.raises(gp.errors.MutationError):
        loss.backward()


# --- Changes --------------------------------------------------------------------------------------------------------


def test_to_keeps_parameters_and_makes_neighbours(device):
    net = Net()
    before = list(net.parameters())
    assert net.to(device, np.float64) is net
    after = list(net.parameters())
    assert all(p is q for p, q in zip(before, after))
    assert all(p.device == device and p.dtype == np.float64 for p in after)
    assert all(q.segment.follows(p.segment) for p, q in zip(after, after[1:]))
    assert net.first.count.device == device and net.first.count.dtype == np.int64 and net.first.mask.dtype == np.float64
    memory = [p.data for p in after]
    net.to(gp.zeros(1, dtype=np.float64, device=device))
    assert all(p.data is m for p, m in zip(after, memory))
    assert net.float().scale.dtype == np.float32 and net.half().scale.dtype == np.float16
    assert net.cpu().scale.device == "cpu"
    with pytest.raises(TypeError, match="Net.to: expected a floating dtype, got int64"):
        net.to(np.int64)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_keep_ties(copied):
    net = Net()
    net.second.extra = net.scale
    net.eval()
    other = copied(net)
    assert other.same is other.first and other.second.extra is other.scale and not other.training
    assert [name for name, _ in other.named_buffers()] == [name for name, _ in net.named_buffers()]
    x = gp.ones(2, 3)
    assert other(x).tolist() == net(x).tolist()
    with gp.no_grad():
        other.scale.fill_(0.0)
    assert net.scale.tolist() == [2.0]


def test_a_model_frees_itself():
    gc.disable()
    try:
        net = gp.nn.Linear(400, 300)  # large enough for a chunk that no other module shares
        net(gp.ones(2, 400)).sum().backward()
        chunk, model = weakref.ref(net.weight.segment.chunk), weakref.ref(net)
        del net
        assert model() is None and chunk() is None
    finally:
        gc.enable()


# --- Attributes -----------------------------------------------------------------------------------------------------


def test_attributes_do_not_change_their_kind():
    net = Net()
    net.scale = Parameter([3.0])
    net.first.count = gp.tensor(5)
    net.first = Affine(3, 4)
    for owner, name, value, kind in [
        (net, "scale", gp.tensor([1.0]), "Parameter"),
        (net, "second", 3, "Module"),
        (net.second, "count", 5, "Tensor"),
    ]:
        with pytest.raises(TypeError, match=rf"\.{name}: expected a {kind} or None"):
            setattr(owner, name, value)
    net.scale = None
    assert "scale" not in dict(net.named_parameters()) and "scale" not in net.state_dict()
    net.scale = Parameter([1.0])
    del net.first.bias
    assert "first.bias" not in net.state_dict()


def test_names_that_are_no_identifiers():
    net = Module()
    net.add_module("0", Affine())
    net.register_parameter("p", Parameter([1.0]))
    net.register_parameter("none", None)
    assert getattr(net, "0") is next(net.children()) and net.none is None
    assert [name for name, _ in net.named_parameters()] == ["p", "0.weight", "0.bias"]
    for name in ("a.b", "", "forward", 3):
        with pytest.raises(TypeError, match="a new name without dots"):
            net.register_buffer(name, gp.tensor(1.0))
    with pytest.raises(TypeError, match="register_parameter: expected a Parameter or None for 'x', got Tensor"):
        net.register_parameter("x", gp.tensor(1.0))
    with pytest.raises(TypeError, match="register_buffer: expected a Tensor or None for 'x', got float"):
        net.register_buffer("x", 1.0)
    with pytest.raises(TypeError, match="add_module: expected a Module or None"):
        net.add_module("x", 1.0)
    with pytest.raises(TypeError, match="a module below Module, got '0.weight'"):
        net.get_submodule("0.weight")


def test_forward_has_to_be_written():
    with pytest.raises(NotImplementedError, match="Module: expected a method `forward`"):
        Module()(1)


def test_repr():
    class Named(Affine):
        def extra_repr(self):
            return "n=3"

    net = Module()
    net.a, net.b = Named(), Net()
    assert repr(net) == (
        "Module(\n  (a): Named(n=3)\n  (b): Net(\n    (first): Affine()\n    (second): Affine()\n    (same): Affine()\n  )\n)"
    )
