"""What matrix products of a network take over from kernels: how many nodes a step has then, and that the numbers agree."""

import numpy as np
import pytest
from test_gemm import dtype_of, eps_of

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import nn, tape
from gpuprop._op import REGISTRY
from gpuprop._recorder import Recorder
from gpuprop.ops.fused import fusible

pytestmark = pytest.mark.cuda
pytest.importorskip("cupy")
pytest.importorskip("nvmath")


def tanh_gelu():
    return nn.GELU("tanh")


RIDING = {"RELU": nn.ReLU, "GELU": tanh_gelu}
riding = pytest.mark.parametrize("function", RIDING)
NETWORKS = {"float32": "highest", "TF32": "high", "float16": "highest", "bfloat16": "highest"}


@pytest.fixture
def network():
    """A function that makes a network of a name in `NETWORKS`, with a batch for it."""
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])

    def make(name, activation, sizes=(20, 16, 24, 8), rows=12):
        dtype = dtype_of("float32" if name == "TF32" else name)
        gp.set_float32_matmul_precision(NETWORKS.get(name, "highest"))
        model = nn.MLP(list(sizes), activation=activation, seed=1, device="cuda").to(dtype)
        rng = np.random.default_rng(0)
        x = gp.tensor(rng.standard_normal((rows, sizes[0])).astype(dtype), device="cuda")
        return model, x, gp.tensor(rng.integers(0, sizes[-1], rows), device="cuda")

    yield make
    gp.set_float32_matmul_precision("highest")


@pytest.fixture
def used():
    """A function that returns which epilogues products had since it was last called."""
    recorder = Recorder()

    def read():
        seen = dict(recorder.epilogues)
        recorder.epilogues.clear()
        return seen

    with tape.Mode(recorder=recorder):
        yield read
    gp.set_matmul_epilogues(True)


def replayed(model, x, labels, steps=4, optimizer=gp.optim.SGD, **options):
    """The recording of some training steps."""
    optimizer = optimizer(model.parameters(), **{"lr": 0.1, **options})

    @gp.capture
    def step(x, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(steps):
        step(x, labels)
    return step.recording


# --- Nodes of a step ------------------------------------------------------------------------------------------------

ACTIVATIONS = sorted(name for name in REGISTRY if fusible(name) is not None)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", [*NETWORKS, "float64"])
def test_on_the_reference_path_5_nodes_per_layer_less_one(network, reference_path, activation, name):
    """Of L layers: 3 L - 1 products, L - 1 times bias and activation, L - 1 times their gradients, the loss, and the optimizer."""
    for layers in (1, 3):
        model, x, labels = network(name, activation, (20, *[16] * (layers - 1), 10))
        report = replayed(model, x, labels, steps=2, optimizer=gp.optim.Adam).report()
        assert report["nodes"] == 5 * layers - 1 and not report["epilogues"]
        assert report["calls"]["cublasLtMatmul"] == 3 * layers - 1


@riding
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_with_epilogues_3_nodes_per_layer_and_one(network, count, function, name, layers):
    """Of L layers: 3 L - 1 products, the loss, and the optimizer."""
    model, x, labels = network(name, RIDING[function], (20, *[16] * (layers - 1), 10))
    optimizer = gp.optim.Adam(model.parameters())

    @gp.capture
    def step(x, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3):
        step(x, labels)
    report, hidden = step.recording.report(), layers - 1
    assert report["nodes"] == 3 * layers + 1 and report["calls"]["cublasLtMatmul"] == 3 * layers - 1
    assert report["epilogues"] == ({f"{function}_AUX_BIAS": hidden, f"D{function}_BGRAD": hidden} if hidden else {})
    counted = count(lambda: step(x, labels))
    assert counted["graph_launches"] == 1 and counted["device_to_device"] == 2  # one for each argument
    free = ("host_to_device", "device_to_host", "synchronizations", "mallocs", "memsets")
    assert all(counted[name] == 0 for name in free)
    assert counted["gemm_calls"] == 3 * layers - 1 and counted["kernel_launches"] == 2


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
def test_other_activations_stay_as_they_are(network, activation):
    report = replayed(*network("float32", activation)).report()
    assert report["nodes"] == 14 and not report["epilogues"]


def test_dropout_stays_as_it_is(network):
    model, x, labels = network("float32", nn.ReLU)
    dropped = nn.Sequential(model[0], model[1], nn.Dropout(0.5), *model[2:])
    report = replayed(dropped, x, labels).report()
    assert report["epilogues"] == {"RELU_AUX_BIAS": 1, "DRELU_BGRAD": 1}
    assert report["nodes"] == 10 + 2 + 1  # two kernels with dropout, and the base of the random numbers goes on


@riding
def test_a_refusal_of_one_product_concerns_no_other(network, monkeypatch, function):
    """As of a float32 layer of 10 outputs, whose rows are no multiple of 16 bytes: its input gradient is made without epilogue."""
    from gpuprop.cuda import fused

    expected = parameters_after(network("float32", RIDING[function]))
    offers, refused = fused.offers, [f"D{function}_BGRAD"]
    monkeypatch.setattr(
        fused, "offers", lambda name, a, b: offers(name, a, b) and not (name in refused and a.shape == (12, 8))
    )
    model, x, labels = network("float32", RIDING[function])
    report = replayed(model, x, labels).report()
    assert report["epilogues"] == {f"{function}_AUX_BIAS": 2, f"D{function}_BGRAD": 1}
    assert report["nodes"] == 11  # one kernel more: that of the activation's gradient
    agree([p.numpy() for p in model.parameters()], expected)


def parameters_after(given):
    replayed(*given)
    return [p.numpy() for p in given[0].parameters()]


def agree(found, expected):
    """Within some roundings of the largest value in float32."""
    for a, e in zip(found, expected, strict=True):
        a, e = a.astype(np.float64), e.astype(np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=16 * 2.0**-23 * max(np.abs(e).max(), 1e-3))


# --- Numbers --------------------------------------------------------------------------------------------------------


def gradients(model, x, labels, work=None):
    """The gradients of all parameters, as NumPy arrays, and whatever else `work` returns."""
    for p in model.parameters():
        p.grad = None
    if work is None:
        F.cross_entropy(model(x), labels).backward()
        more = []
    else:
        more = work(model, x, labels) or []
    return [t.numpy() for t in [*(p.grad for p in model.parameters() if p.grad is not None), *more]]


@riding
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sizes, rows", [((20, 16, 24, 8), 12), ((7, 5, 130, 3), 9), ((24, 40, 16, 10), 5)], ids=str)
def test_gradients_agree_with_those_of_the_kernels(network, used, function, name, sizes, rows):
    """Small networks: in large ones some values come so near to ReLU's kink that rounding decides on which side of it they are."""
    model, x, labels = network(name, RIDING[function], sizes, rows)
    riding = gradients(model, x, labels)
    assert used() == {f"{function}_AUX_BIAS": 2, f"D{function}_BGRAD": 2}
    gp.set_matmul_epilogues(False)
    alone = gradients(model, x, labels)
    assert not used()
    exact = gradients(model.to(np.float64), x.to(np.float64), labels)
    dtype = x.data.dtype
    eps = 2.0**-11 if name == "TF32" else eps_of(dtype)
    for a, b, e in zip(riding, alone, exact, strict=True):
        size = np.abs(e).max()
        assert np.abs(a - e).max() <= 16 * eps * size  # as precise as kernels, which round once more
        assert np.abs(b - e).max() <= 16 * eps * size


def hooked(model, x, labels):
    """A hook sees, and changes, what an activation's gradient is computed from."""
    h = model[:2](x)
    h.register_hook(lambda g: g * 2.0)
    F.cross_entropy(model[2:](h), labels).backward()


def retained(model, x, labels):
    h = model[:2](x)
    h.retain_grad()
    F.cross_entropy(model[2:](h), labels).backward()
    return [h.grad]


def used_twice(model, x, labels):
    h = model[:2](x)
    (F.cross_entropy(model[2:](h), labels) + (h * h).mean() + F.cross_entropy(model[2:](h), labels)).backward()


def walked_twice(model, x, labels):
    loss = F.cross_entropy(model(x), labels)
    loss.backward(retain_graph=True)
    loss.backward()


def in_parts(model, x, labels):
    for part in (slice(0, 4), slice(4, 12)):
        F.cross_entropy(model(x[part]), labels[part], reduction="sum").backward()


def differentiated_again(model, x, labels):
    F.cross_entropy(model(x), labels).backward(create_graph=True)
    found = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    sum((g * g).sum() for g in found).backward()


def by_name(model, x, labels):
    h = model[:2](x)
    loss = F.cross_entropy(model[2:](h), labels)
    found = tape.walk([(loss, tape.ONE)], wanted=[h._node, model[0].weight._node, model[2].bias._node])
    return [gp.Tensor(g) for g in found.values()]


def frozen_bias(model, x, labels):
    model[2].bias.requires_grad_(False)
    F.cross_entropy(model(x), labels).backward()
    model[2].bias.requires_grad_(True)


def frozen_layer(model, x, labels):
    model[2].requires_grad_(False)
    F.cross_entropy(model(x), labels).backward()
    model[2].requires_grad_(True)


def recomputed(model, x, labels):
    F.cross_entropy(model[4:](gp.checkpoint(model[:4], x)), labels).backward()


def side_by_side(model, x, labels):
    """Two branches of which each leaves a product to the record below it."""
    a, b = model[2:](model[:2](x)), model[2:](model[:2](x * 0.5))
    (F.cross_entropy(a, labels) + F.cross_entropy(b, labels)).backward()


def changed_in_the_walk(model, x, labels):
    """A hook changes a weight that another record's gradient is still to be computed from."""
    h = model[:2](x)
    g = model[:2](x * 0.5)
    before = model[2].weight.detach().clone()

    def spoil(dy):
        with gp.no_grad():
            model[2].weight.mul_(0.0)

    g.register_hook(spoil)
    (F.cross_entropy(model[2:](h), labels) + (g * g).sum()).backward()
    assert not model[2].weight.numpy().any()
    with gp.no_grad():
        model[2].weight.copy_(before)


def watched(model, x, labels):
    with gp.detect_anomaly():
        F.cross_entropy(model(x), labels).backward()


def of_inputs(model, x, labels):
    x = x.detach().requires_grad_()
    F.cross_entropy(model(x), labels).backward()
    return [x.grad]


def of_rows(model, x, labels):
    """Leading axes, and one row alone."""
    y = model(x.reshape(3, 4, 20)).sum() + model(x[0]).sum()
    y.backward()


def without_a_loss(model, x, labels):
    model(x).backward(gp.ones(12, 8, device="cuda", dtype=x.dtype))


WORKS = [
    hooked,
    retained,
    used_twice,
    walked_twice,
    in_parts,
    differentiated_again,
    by_name,
    frozen_bias,
    frozen_layer,
    recomputed,
    side_by_side,
    changed_in_the_walk,
    watched,
    of_inputs,
    of_rows,
    without_a_loss,
]


@riding
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.__name__)
def test_whatever_is_differentiated(network, used, function, work):
    model, x, labels = network("float32", RIDING[function])
    riding = gradients(model, x, labels, work)
    assert used()
    gp.set_matmul_epilogues(False)
    agree(riding, gradients(model, x, labels, work))
    assert not used()


# --- A bias alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 20), (3, 4, 20)], ids=str)
def test_a_linear_map_is_one_product_forward_and_one_for_both_parameters(network, used, count, shape):
    model, x, _ = network("float32", None, (20, 8))
    weight, bias, x = model[0].weight, model[0].bias, x.reshape(shape)
    dy = gp.tensor(np.random.default_rng(1).standard_normal((*shape[:-1], 8), np.float32), device="cuda")

    def results(walks=1):
        weight.grad = bias.grad = None
        for _ in range(walks):
            y = F.linear(x, weight, bias)
            y.backward(dy)
        return [y.detach().numpy(), weight.grad.numpy(), bias.grad.numpy()]

    riding, twice = results(), results(2)
    assert used() == {"BIAS": 3, "BGRADB": 2}  # what adds to a gradient does not overwrite it
    weight.grad = bias.grad = None
    counted = count(lambda: F.linear(x, weight, bias).backward(dy))
    assert counted["gemm_calls"] == 2 and counted["kernel_launches"] == counted["memsets"] == 0
    used()
    gp.set_matmul_epilogues(False)
    agree(riding, results())
    agree(twice, results(2))
    assert not used()


def test_in_use_the_last_layer_is_one_product(network, used):
    model, x, _ = network("float32", nn.ReLU)
    with gp.no_grad():
        model(x)
    assert used() == {"RELU_BIAS": 2, "BIAS": 1}


def test_a_deferred_gradient_that_does_not_ride_is_written_over(network):
    import cupy

    from gpuprop.cuda.fused import activation_gradients

    f, rng = fusible("tanh"), np.random.default_rng(0)
    dy, factor, y, bias = (cupy.asarray(rng.standard_normal(s)) for s in ((6, 4), (4, 8), (6, 8), (8,)))
    made = dy @ factor
    expected = cupy.asnumpy(made * (1 - y * y))
    deferred = tape.Deferred(lambda dy, factor: made, dy, factor, y)
    dz, db, _ = activation_gradients(f, deferred, bias, None, y, None, (True, False), None, (False, False), None)
    assert dz.data.ptr == made.data.ptr
    np.testing.assert_allclose(cupy.asnumpy(dz), expected)
    np.testing.assert_allclose(cupy.asnumpy(db), expected.sum(axis=0))
