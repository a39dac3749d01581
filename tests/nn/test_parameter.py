"""Flat memory: where parameters and their gradients lie, and that nothing moves unasked."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.device import Device
from gpuprop.nn import Parameter, parameter
from gpuprop.nn.parameter import ALIGNMENT, SMALL, one_chunk


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def a_thread_of_its_own(monkeypatch):
    """No chunk that another test has begun."""
    monkeypatch.setattr(parameter, "_open", parameter._Open())


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_small_parameters_are_aligned_neighbours(dtype):
    values = [
        np.arange(n, dtype=dtype).reshape(shape)
        for n, shape in [(6, (2, 3)), (5, (5,)), (1, ()), (0, (0, 4)), (40, (40,))]
    ]
    parameters = [Parameter(v) for v in values]
    for p, v in zip(parameters, values):
        assert p.shape == v.shape and p.dtype == dtype and p.requires_grad and p.is_leaf
        np.testing.assert_array_equal(p.numpy(), v)
        assert p.numpy().size == 0 or address(p.data) % ALIGNMENT == 0
    for p, q in zip(parameters, parameters[1:]):
        assert q.segment.follows(p.segment)
    flat = parameters[0].segment.chunk.data
    assert flat.sum() == sum(v.sum() for v in values)  # padding is zero


def test_gradients_lie_as_their_parameters(device):
    a, b = Parameter(gp.ones(3, device=device)), Parameter(gp.ones(2, 2, device=device))
    assert a.grad is None and a.segment.chunk._gradient is None  # no memory before the first gradient
    (a.sum() * 2 + (b * b).sum()).backward()
    for p in (a, b):
        assert p.segment.holds(p.grad.data) and p.grad.device == p.device
    assert a.grad.tolist() == [2.0, 2.0, 2.0] and b.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    if device == "cpu":
        assert address(b.grad.data) - address(a.grad.data) == address(b.data) - address(a.data)


def test_the_first_gradient_overwrites_and_later_ones_add():
    p = Parameter([1.0, 2.0])
    for factor, expected in [(3.0, 3.0), (4.0, 7.0)]:
        (p * factor).sum().backward()
        assert p.grad.tolist() == [expected, expected]
    memory, p.grad = p.grad.data, None
    (p * 5.0).sum().backward()
    assert p.grad.data is memory and memory.tolist() == [5.0, 5.0]


def test_chunks_waste_little():
    shapes = [(500, 300), (300,), (300, 300), (300,), (300, 60), (60,), (60, 30), (30,)] * 3
    parameters = [Parameter(np.ones(shape, np.float32)) for shape in shapes]
    chunks = {id(p.segment.chunk): p.segment.chunk.data.nbytes for p in parameters}
    assert sum(chunks.values()) <= sum(p.nbytes for p in parameters) * 1.02 + SMALL
    assert len(chunks) < len(parameters) / 2  # the small ones share
    large = Parameter(np.ones((1000, 1000), np.float32))
    assert large.segment.chunk.data.nbytes <= large.nbytes + ALIGNMENT


def test_one_chunk_for_a_model():
    shapes = [(300, 200), (200,), (200, 10), (10,)]
    before = Parameter([1.0])
    with one_chunk(shapes, np.float32, Device("cpu")):
        parameters = [Parameter(np.ones(shape, np.float32)) for shape in shapes]
    after = Parameter([1.0])
    assert all(q.segment.follows(p.segment) for p, q in zip(parameters, parameters[1:]))
    assert parameters[-1].segment.stop == parameters[0].segment.chunk.data.size
    assert after.segment.follows(before.segment)


def test_a_chunk_lives_as_long_as_a_parameter():
    gc.disable()
    try:
        a, b = Parameter([1.0]), Parameter([2.0])
        (a * b).sum().backward()
        chunk, gradient = weakref.ref(a.segment.chunk), a.grad.data
        del a
        assert chunk() is not None and b.tolist() == [2.0]
        del b
        assert chunk() is None and gradient.tolist() == [2.0]  # arrays that someone has stay valid
    finally:
        gc.enable()


def test_another_array_takes_its_place(device):
    p, q = Parameter(gp.ones(2, 3, device=device)), Parameter(gp.ones(4, device=device))
    mine = gp.full((2, 3), 2.0, device=device).data
    p.data = mine
    assert p.data is mine and not p.at_home and q.at_home
    (p * p).sum().backward()
    assert p.grad.tolist() == [[4.0] * 3] * 2 and not p.segment.holds(p.grad.data)
    p.data = p.segment.array
    p.grad = None
    (p * p).sum().backward()
    assert p.at_home and p.segment.holds(p.grad.data) and p.grad.tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"])
def test_copies_have_memory_of_their_own(copied):
    p = Parameter([1.0, 2.0])
    (p * p).sum().backward()
    q = copied(p)
    assert type(q) is Parameter and q.at_home and q.segment is not p.segment and q.requires_grad
    assert q.tolist() == [1.0, 2.0] and q.grad.tolist() == [2.0, 4.0]
    with gp.no_grad():
        q += 1.0
    assert p.tolist() == [1.0, 2.0]
    frozen = copied(Parameter([1.0], requires_grad=False))
    assert not frozen.requires_grad and frozen.grad is None


def test_moving_keeps_the_object_and_its_gradient(device):
    p = Parameter([1.0, 2.0])
    (p * p).sum().backward()
    old = p.detach()
    assert p.move_(device, "float64") is p
    assert p.device == device and p.dtype == "float64" and p.at_home and p.tolist() == [1.0, 2.0]
    assert p.segment.holds(p.grad.data) and p.grad.dtype == "float64" and p.grad.tolist() == [2.0, 4.0]
    assert old.tolist() == [1.0, 2.0]
    (p * 3).sum().backward()
    assert p.grad.tolist() == [5.0, 7.0]
    before = p.data
    assert p.move_(device, "float64").data is before


def test_it_copies_its_data():
    array = np.ones(3, np.float32)
    parameters = [Parameter(array), Parameter(gp.Tensor(array)), Parameter([1.0, 1.0, 1.0])]
    array[0] = 5.0
    for p in parameters:
        assert p.dtype == np.float32 and p.tolist() == [1.0, 1.0, 1.0]


def test_only_real_numbers_have_gradients():
    with pytest.raises(TypeError, match="expected a floating dtype, got int64"):
        Parameter([1, 2])
    assert Parameter([1, 2], requires_grad=False).dtype == np.int64


def test_threads_fill_chunks_of_their_own():
    made: dict = {}
    barrier = threading.Barrier(2)

    def make(name):
        barrier.wait()
        made[name] = [Parameter(np.full(20, i, np.float32)) for i in range(200)]

    threads = [threading.Thread(target=make, args=(name,)) for name in "ab"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for parameters in made.values():
        assert all(q.segment.follows(p.segment) for p, q in zip(parameters, parameters[1:]))
        assert all((p.numpy() == i).all() for i, p in enumerate(parameters))


def test_repr():
    assert repr(Parameter([1.0])).startswith("Parameter containing:\ntensor([1.]")
