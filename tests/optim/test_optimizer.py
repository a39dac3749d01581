"""Runs of neighbours, state and groups: what every optimizer shares."""

import copy
import pickle

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import _blocks, optim
from gpuprop.errors import CheckpointError
from gpuprop.nn import Parameter
from gpuprop.nn.parameter import one_chunk

KINDS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}),
    (optim.Adam, {"amsgrad": True, "weight_decay": 0.01}),
    (optim.AdamW, {}),
    (optim.RMSprop, {"centered": True, "momentum": 0.9}),
    (optim.Adagrad, {"lr_decay": 0.1}),
]
SHAPES = [(7, 5), (5,), (), (3, 1, 2)]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0].__name__)
def make(request):
    kind, options = request.param
    return lambda parameters: kind(parameters, **options)


def parameters_of(seed=0, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    with one_chunk(shapes, dtype, gp.Device("cpu")):
        return [Parameter(a) for a in arrays]


def learn(optimizer, parameters, steps, seed=1, skip=()):
    """Steps with drawn gradients, which backward writes."""
    rng = np.random.default_rng(seed)
    for number in range(steps):
        optimizer.zero_grad()
        for i, p in enumerate(parameters):
            g = gp.tensor(rng.standard_normal(p.shape), dtype=p.dtype)
            if (number, i) not in skip:
                (p * g).sum().backward()
        optimizer.step()


def bytes_of(tensors):
    return [t.numpy().tobytes() for t in tensors]


def runs(optimizer):
    return [len(table.runs) for table in optimizer._tables]


# --- Runs -----------------------------------------------------------------------------------------------------------


def test_neighbours_are_one_run_and_strangers_give_the_same_bytes(make):
    together = parameters_of()
    optimizer = make(together)
    learn(optimizer, together, 5)
    assert runs(optimizer) == [1]

    apart = []
    for p in parameters_of():
        with one_chunk([p.shape], p.dtype, p.device):
            apart.append(Parameter(p))
    other = make(apart)
    learn(other, apart, 5)
    assert runs(other) == [len(SHAPES)]

    plain = [gp.tensor(p, requires_grad=True) for p in parameters_of()]
    third = make(plain)
    learn(third, plain, 5)
    assert bytes_of(together) == bytes_of(apart) == bytes_of(plain)


def test_the_order_of_parameters_does_not_matter(make):
    a, b = parameters_of(), parameters_of()
    first, second = make(a), make(b[::-1])
    learn(first, a, 3), learn(second, b, 3)
    assert runs(first) == runs(second) == [1]
    assert bytes_of(a) == bytes_of(b)


def test_runs_are_cut_into_blocks(make, monkeypatch):
    whole, cut = parameters_of(), parameters_of()
    first = make(whole)
    learn(first, whole, 3)
    monkeypatch.setattr(_blocks.cut, "__defaults__", (8,))
    second = make(cut)
    learn(second, cut, 3)
    assert len(second._tables[0].runs[0].blocks.arrays) > 5
    assert bytes_of(whole) == bytes_of(cut)


def test_padding_stays_zero(make):
    parameters = parameters_of()
    learn(make(parameters), parameters, 4)
    chunk = parameters[0].segment.chunk
    used = sum(p.size for p in parameters)
    assert np.count_nonzero(chunk.data) == np.count_nonzero(chunk.gradient) == used


def test_a_parameter_without_gradient_is_skipped(make):
    parameters, others = parameters_of(), parameters_of()
    skip = {(0, 1), (2, 1), (3, 0)}
    optimizer, other = make(parameters), make(others)
    learn(optimizer, parameters, 5, skip=skip)
    for i, p in enumerate(others):  # each on its own
        alone = make([p])
        rng = np.random.default_rng(1)
        for number in range(5):
            drawn = [rng.standard_normal(q.shape) for q in others]
            p.grad = None
            if (number, i) not in skip:
                (p * gp.tensor(drawn[i], dtype=p.dtype)).sum().backward()
                alone.step()
        if "step" in alone.state[p]:
            assert alone.state[p]["step"] == optimizer.state[parameters[i]]["step"]
    assert bytes_of(parameters) == bytes_of(others)
    assert not other.state


def test_gradients_and_values_elsewhere(make):
    """A gradient or an array that the user put in place, contiguous or not, takes the same step."""
    expected, parameters = parameters_of(), parameters_of()
    parameters[0].data = np.asfortranarray(parameters[0].numpy())
    optimizer, other = make(expected), make(parameters)
    rng = np.random.default_rng(3)
    for number in range(4):
        for p, q in zip(expected, parameters):
            g = rng.standard_normal(p.shape)
            p.grad = q.grad = None
            (p * gp.tensor(g, dtype=p.dtype)).sum().backward()
            q.grad = gp.tensor(g if number % 2 else g.astype(np.float32))
            if number > 2:
                p.grad = gp.tensor(g.astype(np.float32))
        optimizer.step(), other.step()
    assert bytes_of(expected) == [np.ascontiguousarray(q.numpy()).tobytes() for q in parameters]
    assert not parameters[0].numpy().flags.c_contiguous


def test_gradients_come_home_again(make):
    parameters, others = parameters_of(), parameters_of()
    optimizer, other = make(parameters), make(others)
    for number in range(4):
        learn(optimizer, parameters, 1, seed=number)
        learn(other, others, 0)
        other.zero_grad()
        rng = np.random.default_rng(number)
        for p in others:
            (p * gp.tensor(rng.standard_normal(p.shape), dtype=p.dtype)).sum().backward()
        if number % 2:
            others[1].grad = others[1].grad.clone()
        other.step()
    assert bytes_of(parameters) == bytes_of(others)
    assert [len(t.loose) for t in other._tables] == [1]


def test_steps_raise_versions():
    p = Parameter([1.0, 2.0])
    optimizer = optim.SGD([p], lr=0.1)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(gp.errors.MutationError, match="changed in place"):
        loss.backward()


def test_options_are_read_on_each_step():
    p = Parameter([0.0])
    optimizer = optim.SGD([p], lr=1.0)
    p.grad = gp.tensor([1.0])
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 10.0
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5  # begins now, from this gradient
    optimizer.step()
    optimizer.step()
    assert p.item() == -(1 + 10 + 10 + 15)


def test_options_as_numpy_scalars_are_their_values(make):
    learnt = []
    for number in (lambda x: np.float32(x), lambda x: float(np.float32(x))):
        parameters = parameters_of(dtype=np.float64)
        optimizer = make([{"params": parameters, "lr": number(0.1), "weight_decay": number(0.01)}])
        learn(optimizer, parameters, 3)
        learnt.append(bytes_of(parameters))
    assert learnt[0] == learnt[1]


def test_closure():
    p = Parameter([3.0])
    optimizer = optim.SGD([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with gp.no_grad():
        assert optimizer.step(closure).item() == 9.0
    assert p.item() == 0.0


# --- Groups ---------------------------------------------------------------------------------------------------------


def test_groups_and_late_ones():
    a, b, c = parameters_of(shapes=[(2,), (3,), (4,)])
    before = bytes_of([a, b, c])
    optimizer = optim.Adam([{"params": [a], "lr": 0.0}, {"params": b, "betas": (0.5, 0.5)}], lr=0.1)
    assert optimizer.param_groups[1]["betas"] == (0.5, 0.5) and optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    learn(optimizer, [a, b, c], 2)
    assert bytes_of([a, b, c])[::2] == before[::2] and bytes_of([b]) != before[1:2]
    c.grad = None
    optimizer.add_param_group({"params": [c], "lr": 0.1})
    learn(optimizer, [a, b, c], 2)
    assert [optimizer.state[p]["step"] for p in (a, b, c)] == [4, 4, 2]
    alone = parameters_of(shapes=[(2,), (3,), (4,)])[2]
    other = optim.Adam([alone], lr=0.1)
    rng = np.random.default_rng(1)
    for _ in range(2):
        drawn = [rng.standard_normal(n) for n in (2, 3, 4)]
        alone.grad = gp.tensor(drawn[2].astype(np.float32))
        other.step()
    assert bytes_of([alone]) == bytes_of([c])


def test_two_optimizers_share_a_chunk():
    parameters, others = parameters_of(), parameters_of()
    one, two = optim.Adam(parameters[:2]), optim.SGD(parameters[2:], lr=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    for _ in range(3):
        for p, q in zip(parameters, others):
            g = gp.tensor(rng.standard_normal(p.shape).astype(np.float32))
            p.grad = q.grad = None
            (p * g).sum().backward(), (q * g).sum().backward()
        one.step(), two.step()
        for q in others:
            if not hasattr(q, "own"):
                q.own = optim.Adam([q]) if any(q is o for o in others[:2]) else optim.SGD([q], lr=0.1, momentum=0.9)
            q.own.step()
    assert bytes_of(parameters) == bytes_of(others)


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        ([], ValueError, "at least one parameter"),
        (gp.Tensor(np.ones(1)), TypeError, "list of parameters"),
        ([1.0], TypeError, "expected parameters, got float"),
        ([{"lr": 1}], TypeError, "a dict with 'params'"),
        ([{"params": {gp.Tensor(np.ones(1))}}], TypeError, "got a set"),
    ],
)
def test_what_is_no_list_of_parameters(params, error, match):
    with pytest.raises(error, match=f"SGD: .*{match}"):
        optim.SGD(params)


def test_a_parameter_belongs_to_one_group_and_is_a_leaf():
    p = Parameter([1.0])
    with pytest.raises(ValueError, match="each parameter once"):
        optim.SGD([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match="expected leaves, got a result of multiply"):
        optim.SGD([p * 2])


# --- State ----------------------------------------------------------------------------------------------------------


def test_state_goes_round(make):
    straight, halfway = parameters_of(), parameters_of()
    optimizer, first = make(straight), make(halfway)
    learn(optimizer, straight, 3), learn(first, halfway, 3)
    learn(optimizer, straight, 4, seed=2)

    resumed = [Parameter(p) for p in halfway]
    second = make(resumed)
    second.param_groups[0]["lr"] = 123.0
    learn(second, resumed, 1, seed=9)  # state of its own, to be replaced
    for p, q in zip(resumed, halfway):
        p.data[...] = q.data
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(second, resumed, 4, seed=2)
    assert bytes_of(straight) == bytes_of(resumed)
    assert runs(second) == [1] or not all(p.segment.follows(q.segment) for p, q in zip(resumed[1:], resumed))


def test_state_dict_has_pytorchs_structure():
    parameters = parameters_of(shapes=[(2, 3), (3,)])
    optimizer = optim.Adam([{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:]}])
    learn(optimizer, parameters, 2)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups"} and set(state["state"]) == {0, 1}
    assert [group["params"] for group in state["param_groups"]] == [[0], [1]]
    assert state["param_groups"][0]["lr"] == 0.5 and state["state"][1]["step"] == 2
    assert state["state"][0]["exp_avg"].shape == (2, 3)


def test_state_of_a_live_optimizer_can_be_changed_in_place():
    parameters, others = parameters_of(), parameters_of()
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    learn(optimizer, parameters, 2)
    for p in parameters:
        optimizer.state[p]["momentum_buffer"].zero_()
    for p, q in zip(parameters, others):
        q.data[...] = p.data
    learn(optimizer, parameters, 1, seed=5)
    learn(optim.SGD(others, lr=0.1), others, 1, seed=5)
    for p, q in zip(parameters, others):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-6)


def test_state_that_does_not_fit():
    p, q = Parameter([1.0]), Parameter([1.0, 2.0])
    a, b = optim.Adam([p]), optim.Adam([q])
    q.grad = gp.tensor([1.0, 1.0])
    b.step()
    with pytest.raises(CheckpointError, match=r"'exp_avg' of shape \(1,\), got \(2,\)"):
        a.load_state_dict(b.state_dict())
    with pytest.raises(CheckpointError, match=r"groups of \[1\] parameters, got \[2\]"):
        a.load_state_dict(optim.Adam([p, q]).state_dict())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_alike(make, copied):
    parameters = parameters_of()
    optimizer = make(parameters)
    learn(optimizer, parameters, 2)
    others, other = copied((parameters, optimizer))
    assert other.param_groups[0]["params"][0] is others[0]
    learn(optimizer, parameters, 2, seed=4), learn(other, others, 2, seed=4)
    assert bytes_of(parameters) == bytes_of(others)


def test_state_follows_to_another_dtype(make):
    parameters = parameters_of()
    optimizer = make(parameters)
    learn(optimizer, parameters, 2)
    expected = [p.numpy().copy() for p in parameters]
    for p in parameters:
        p.move_(dtype=np.float64)
    assert all(p.dtype == np.float64 and (p.numpy() == e).all() for p, e in zip(parameters, expected))
    learn(optimizer, parameters, 2)
    assert all(v.dtype == np.float64 for p in parameters for k, v in optimizer.state[p].items() if k != "step")
    assert all(optimizer.state[p]["step"] == 4 for p in parameters if optimizer.state[p])


def test_zero_grad_forgets_and_backward_overwrites():
    p = Parameter([1.0, 2.0])
    optimizer = optim.SGD([p])
    (p * 3).sum().backward()
    memory = p.grad.data
    optimizer.zero_grad()
    assert p.grad is None and memory.tolist() == [3.0, 3.0]
    (p * 5).sum().backward()
    assert p.grad.data is memory and memory.tolist() == [5.0, 5.0]
    (p * 2).sum().backward()
    assert p.grad.tolist() == [7.0, 7.0]
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0.0, 0.0]


def test_repr():
    text = repr(optim.Adam([Parameter([1.0])], lr=0.5))
    assert text.startswith("Adam (\nParameter Group 0\n") and "    lr: 0.5\n" in text and "params" not in text
