"""The modules of activations and losses: their functions, with their options."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import nn
from gpuprop.nn import functions

BASES = (functions.FunctionModule, functions.Activation, functions.Loss)
MADE = {
    name: made
    for name, made in vars(functions).items()
    if isinstance(made, type) and issubclass(made, functions.FunctionModule) and made not in BASES
}


def inputs_of(op):
    """The arrays of the op's first sample of two axes that it takes without weights."""
    for sample in op.samples(gp.testing.Draw(0)):
        arrays = [a for a in sample.inputs if a is not None]
        if arrays[0].ndim == 2 and arrays[0].size and len(arrays) == op.required:
            return [gp.tensor(a, device="cpu") for a in arrays]
    raise AssertionError(f"no sample of {op.name}")


@pytest.mark.parametrize("name", MADE)
def test_it_calls_its_function(name):
    made = MADE[name]
    module = made()
    inputs = given = inputs_of(made.function)
    if getattr(made, "learns", ""):
        inputs, given = given[:1], [given[0], module.learnt]
    np.testing.assert_array_equal(module(*inputs).numpy(), made.function(*given).numpy())
    assert getattr(nn, name) is made and name in nn.__all__
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(again) == repr(module)
    assert made.function.__doc__.splitlines()[0] in made.__doc__


def test_there_is_one_per_activation_and_loss():
    ops = {made.function.name for made in MADE.values()}
    assert {
        op.name for op in gp._op.REGISTRY.values() if op.rule.__module__.endswith((".activations", ".losses"))
    } - ops <= {"ndtr"}
    assert ops == {
        *functions.activations(),
        *(made.function.name for made in MADE.values() if issubclass(made, functions.Loss)),
    }


@pytest.mark.parametrize("name", MADE)
def test_options_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    gone = (
        "self",
        "args",
        "kwargs",
        "size_average",
        "reduce",
        "min_value",
        "max_value",
    )  # the last four are deprecated there
    theirs = [p for p in inspect.signature(getattr(torch.nn, name).__init__).parameters.values() if p.name not in gone]
    ours = inspect.signature(MADE[name]).parameters
    assert list(ours) == [p.name for p in theirs]
    for p in theirs:
        if p.name != "dim":
            assert ours[p.name].default == p.default


def test_options_reach_the_function():
    x, labels = gp.tensor([[-1.0, 0.5, 2.0], [3.0, -4.0, 0.0]]), gp.tensor([2, -1])
    for module, expected in [
        (nn.LeakyReLU(0.5), F.leaky_relu(x, 0.5)),
        (nn.Hardtanh(-0.5, 0.25), F.hardtanh(x, -0.5, 0.25)),
        (nn.GELU(approximate="tanh"), F.gelu(x, approximate="tanh")),
        (nn.Softmax(dim=0), F.softmax(x, 0)),
        (nn.ReLU(inplace=True), F.relu(x)),
        (nn.PReLU(init=0.1), F.leaky_relu(x, 0.1)),
    ]:
        np.testing.assert_allclose(module(x).numpy(), expected.numpy(), rtol=1e-6)
    assert x[0, 0].item() == -1.0
    weight = gp.tensor([1.0, 2.0, 3.0])
    loss = nn.CrossEntropyLoss(weight, ignore_index=-1, label_smoothing=0.1)
    np.testing.assert_allclose(
        loss(x, labels).item(), F.cross_entropy(x, labels, weight, ignore_index=-1, label_smoothing=0.1).item()
    )
    assert nn.MSELoss(reduction="none")(x, x).shape == x.shape
    positive = nn.BCEWithLogitsLoss(pos_weight=np.float32([2.0, 1.0, 1.0]))
    target = gp.ones(2, 3)
    np.testing.assert_allclose(
        positive(x, target).item(), F.binary_cross_entropy_with_logits(x, target, pos_weight=positive.pos_weight).item()
    )


def test_weights_are_buffers(device):
    loss = nn.CrossEntropyLoss(weight=gp.ones(3, device="cpu")).to(device)
    assert list(loss.state_dict()) == ["weight"] and loss.weight.device == device
    assert loss(gp.zeros(2, 3, device=device), gp.tensor([0, 1], device=device)).device == device
    assert nn.NLLLoss().state_dict() == {}


def test_prelu_learns():
    layer = nn.PReLU(2)
    layer(gp.tensor([[-1.0, 2.0], [-3.0, -5.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [-4.0, -5.0] and repr(layer) == "PReLU(num_parameters=2)"


def test_repr_and_unknown_options():
    assert (
        repr(nn.ELU()) == "ELU(alpha=1.0)"
        and repr(nn.ReLU()) == "ReLU()"
        and repr(nn.ReLU(True)) == "ReLU(inplace=True)"
    )
    assert repr(nn.MSELoss()) == "MSELoss()" and repr(nn.HuberLoss(delta=2.0)) == "HuberLoss(delta=2.0)"
    with pytest.raises(TypeError, match="alhpa"):
        nn.ELU(alhpa=1.0)
