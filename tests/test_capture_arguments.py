"""Arguments of captured functions: in any layout, in one another's buffers, in memory that the function changes."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import nn
from gpuprop._calls import SMALL
from gpuprop.device import BACKENDS
from gpuprop.errors import CaptureError

RNG = np.random.default_rng(0)


def normal(place, *shape):
    return gp.tensor(RNG.standard_normal(shape, dtype=np.float32), device=place)


def bits(result):
    return [t.numpy().tobytes() for t in (result if isinstance(result, tuple) else [result])]


# --- Layouts --------------------------------------------------------------------------------------------------------

# Functions of an array's namespace, one that makes random arrays, and a shape.
LAYOUTS = {
    "C": lambda xp, new, n, m: new(n, m),
    "Fortran": lambda xp, new, n, m: new(m, n).T,
    "every other column": lambda xp, new, n, m: new(n, 2 * m)[:, ::2],
    "every third row": lambda xp, new, n, m: new(3 * n, m)[::3],
    "some columns": lambda xp, new, n, m: new(n, m + 5)[:, 2 : m + 2],
    "backwards": lambda xp, new, n, m: new(n, m)[::-1, ::-1],
    "Fortran, every other": lambda xp, new, n, m: new(2 * m, n)[::2].T,
    "one row": lambda xp, new, n, m: xp.broadcast_to(new(m), (n, m)),
    "one column": lambda xp, new, n, m: xp.broadcast_to(new(n, 1), (n, m)),
    "one number": lambda xp, new, n, m: xp.broadcast_to(new(1), (n, m)),
    "windows": lambda xp, new, n, m: xp.lib.stride_tricks.as_strided(new(n + m), (n, m), (4, 4)),
}


def computed(x):
    return x.sum(), x.mean(axis=0), (x * x).sum(axis=1), x @ x.T, gp.nn.functional.softmax(x), x.reshape(-1) * 2.0


@pytest.mark.parametrize("shape", [(37, 29), (300, 120), (1, 40), (40, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(place, layout, shape):
    assert 4 * 37 * 29 <= SMALL < 4 * 300 * 120  # bytes: on a CPU copied, and worked on where they lie
    captured = gp.capture(computed)
    for _ in range(4):
        xp = BACKENDS[type(normal(place, 1).data)].xp
        x = gp.asarray(LAYOUTS[layout](xp, lambda *shape: normal(place, *shape).data, *shape), device=place)
        assert bits(captured(x)) == bits(computed(x))


@pytest.mark.parametrize("shape", [(37, 29), (300, 120)], ids=str)
def test_layouts_have_recordings_of_their_own(place, shape):
    xp = BACKENDS[type(normal(place, 1).data)].xp
    captured = gp.capture(computed, recordings=len(LAYOUTS))
    for _ in range(4):
        for make in LAYOUTS.values():
            x = gp.asarray(make(xp, lambda *shape: normal(place, *shape).data, *shape), device=place)
            assert bits(captured(x)) == bits(computed(x))


def test_any_stride_will_do_for_an_axis_of_one_element(place):
    captured = gp.capture(lambda x: x * 2.0)
    wide = normal(place, 6, 40)
    for row in range(3):
        captured(wide[row : row + 1])
    recording = captured.recording
    for x in (wide[3:6:3], wide[::6], normal(place, 1, 40)):
        assert bits(captured(x)) == bits(x * 2.0)
        assert captured.recording is recording


def test_elements_that_begin_between_multiples_of_their_size():
    def unaligned():
        memory = b"x" + RNG.standard_normal((300, 120), dtype=np.float32).tobytes()
        return gp.asarray(np.frombuffer(memory, np.uint8)[1:].view(np.float32).reshape(300, 120))

    captured = gp.capture(computed)
    for x in [unaligned() for _ in range(4)] + [normal("cpu", 300, 120) for _ in range(4)] + [unaligned()]:
        assert bits(captured(x)) == bits(computed(x))


# --- In one another's buffers ---------------------------------------------------------------------------------------


def test_buffers_of_arguments(place):
    double = gp.capture(lambda x: x * 2.0)
    for _ in range(4):
        double(normal(place, 12, 6))
    (mine,) = double.inputs
    mine.fill_(4.0)
    assert bits(double(mine)) == bits(mine * 2.0)


@pytest.mark.parametrize("size", [50, 200])
def test_buffers_that_change_places(place, size):
    def function(a, b):
        return a * 2.0 + b, a - b

    captured = gp.capture(function)
    for _ in range(3):
        captured(normal(place, size, size), normal(place, size, size))
    a, b = captured.inputs
    for arguments in ((b, a), (a, a), (b[:], normal(place, size, size)), (b, b), (a, b)):
        a.copy_(normal(place, size, size)), b.copy_(normal(place, size, size))
        expected = bits(function(*arguments))
        assert bits(captured(*arguments)) == expected


@pytest.mark.parametrize("shape", [(37, 29), (300, 120)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_buffers_of_any_layout_that_change_places(place, layout, shape):
    xp = BACKENDS[type(normal(place, 1).data)].xp

    def one():
        return gp.asarray(LAYOUTS[layout](xp, lambda *shape: normal(place, *shape).data, *shape), device=place)

    def function(a, b):
        return a * 2.0 + b, a.sum(axis=0)

    captured = gp.capture(function)
    for _ in range(3):
        captured(one(), one())
    a, b = captured.inputs
    for arguments in ((b, a), (one(), one())):
        expected = bits(function(*arguments))
        assert bits(captured(*arguments)) == expected


def test_a_view_that_another_library_made(place):
    xp = BACKENDS[type(normal(place, 1).data)].xp
    captured = gp.capture(lambda a, b: (a * 2.0, b.sum(axis=0)))
    for _ in range(3):
        captured(normal(place, 50), normal(place, 30))
    foreign = gp.asarray(xp.from_dlpack(captured.inputs[0].data)[:30], device=place)
    x = normal(place, 50)
    expected = bits((x * 2.0, foreign.sum(axis=0)))
    assert bits(captured(x, foreign)) == expected


# --- In memory that the function changes ----------------------------------------------------------------------------


def training(place):
    layer = nn.Linear(5, 5, generator=gp.Generator("cpu", 1)).to(place)
    optimizer = gp.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def step(x):
        optimizer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()
        return x * 2.0

    return layer, optimizer, step


def parts(layer, optimizer):
    yield layer.weight.detach()
    yield optimizer.state[layer.weight]["momentum_buffer"]
    yield layer.weight.grad.detach()


@pytest.mark.parametrize("part", range(3))
def test_parts_of_what_a_step_changes(place, part):
    layer, optimizer, step = training(place)
    captured = gp.capture(step)
    for _ in range(3):
        captured(normal(place, 5, 5))
    before = bits(layer.weight)
    for recorded in (False, True):
        with pytest.raises(CaptureError, match=r"in the memory of a parameter.*\.clone\(\)"):
            if recorded:
                captured(list(parts(layer, optimizer))[part])
            else:  # a function that has never seen another argument
                fresh = gp.capture(step, warmup=0)
                fresh(list(parts(layer, optimizer))[part])
        assert bits(layer.weight) == before
    captured(list(parts(layer, optimizer))[part].clone())
    assert bits(layer.weight) != before


@pytest.mark.parametrize(
    "size", [20, 150]
)  # of the latter two weights in one chunk are large enough to be worked on where they lie
def test_neighbours_of_what_a_step_changes(place, size):
    first, second = (m for m in nn.MLP([size] * 3).to(place).modules() if isinstance(m, nn.Linear))
    first.requires_grad_(False)
    optimizer = gp.optim.SGD(second.parameters(), lr=0.1)

    def step(x):
        optimizer.zero_grad()
        second(x).sum().backward()
        optimizer.step()
        return x.sum(), x * 2.0

    captured, frozen = gp.capture(step), first.weight.detach()
    for x in (frozen, frozen.T, frozen[::2], frozen[::-1], frozen[:, ::-1]):
        for _ in range(4):
            result, _ = captured(x)
            assert bits(result) == bits(x.sum())


def test_a_parameter_by_way_of_another_library(place):
    layer, _, step = training(place)
    xp = BACKENDS[type(layer.weight.data)].xp
    captured = gp.capture(step)
    for _ in range(3):
        captured(normal(place, 5, 5))
    with pytest.raises(CaptureError, match="in the memory of a parameter"):
        captured(gp.asarray(xp.from_dlpack(layer.weight.data), device=place))


def test_running_statistics(place):
    norm = nn.BatchNorm1d(4).to(place)
    captured = gp.capture(lambda x, shift: norm(x) + shift)
    for _ in range(3):
        captured(normal(place, 6, 4), normal(place, 4))
    with pytest.raises(CaptureError, match=r"in the memory of"):
        captured(normal(place, 6, 4), norm.running_mean)
    norm.eval()  # they are only read
    for _ in range(3):
        x = normal(place, 6, 4)
        assert bits(captured(x, norm.running_mean)) == bits(norm(x) + norm.running_mean)


def test_a_gradient_that_is_only_read(place):
    layer, _, _ = training(place)
    captured = gp.capture(lambda g: g * 2.0)
    for _ in range(4):
        layer.zero_grad()
        layer(normal(place, 3, 5)).sum().backward()
        assert bits(captured(layer.weight.grad)) == bits(layer.weight.grad * 2.0)


# --- The same argument twice ----------------------------------------------------------------------------------------


def test_products_of_an_argument_with_itself(place):
    def function(a, b):
        return a.T @ b

    captured = gp.capture(function)
    for dtype in (np.float64, np.float32):
        for _ in range(4):  # NumPy's BLAS has a routine of its own for these
            x, y = (gp.tensor(RNG.standard_normal((26, 13)), dtype=dtype, device=place) for _ in range(2))
            for arguments in ((x, x), (x, y), (y, y)):
                assert bits(captured(*arguments)) == bits(function(*arguments))


# --- Arrays that NumPy works on unseen ------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [np.asarray, np.array, np.ascontiguousarray], ids=lambda f: f.__name__)
def test_values_that_numpy_computed_unseen(hidden):
    captured = gp.capture(lambda x: gp.asarray(hidden(x) * 2.0))
    x = np.ones(5, np.float32)
    for _ in range(4):  # with the same argument each time it may as well be a constant
        assert (captured(x).numpy() == 2).all()
    for i in range(3, 6):
        if i == 4:
            with pytest.raises(CaptureError, match=r"made within the function by NumPy.*test_capture_arguments"):
                captured(x * i)
        else:
            assert (captured(x * i).numpy() == 2 * i).all()
    seen = gp.capture(lambda x: gp.asarray(x * 2.0))
    for i in range(4):
        assert (seen(x * i).numpy() == 2 * i).all()


@pytest.mark.parametrize(
    "enter", [gp.tensor, gp.asarray, lambda a: gp.zeros(4) + a], ids=["tensor", "asarray", "operand"]
)
def test_random_numbers_of_numpy(enter):
    captured = gp.capture(lambda x: x + enter(RNG.standard_normal(4, dtype=np.float32)))
    captured(gp.ones(4))
    with pytest.raises(CaptureError, match=r"may be another in each run"):
        captured(gp.ones(4))


@pytest.mark.parametrize(
    "enter",
    [
        lambda v: gp.tensor([v, 1.0]),
        lambda v: gp.tensor(v),
        lambda v: gp.full((2,), v),
        lambda v: gp.full(2, v, dtype=np.float32),
    ],
)
def test_random_numbers_of_python(enter):
    captured = gp.capture(lambda x: x + enter(RNG.random()))
    captured(gp.ones(2))
    with pytest.raises(CaptureError, match=r"other numbers than before"):
        captured(gp.ones(2))
    captured = gp.capture(lambda x: gp.asarray(x) + enter(0.25))
    for i in range(4):  # of arrays, too, where NumPy's own arrays are refused
        x = np.full(2, i, np.float32)
        assert bits(captured(x)) == bits(gp.asarray(x) + enter(0.25))


def test_batches_in_another_order():
    data, rng = np.arange(16, dtype=np.float32).reshape(4, 4), np.random.default_rng(0)

    def function(x):
        for i in rng.permutation(4):
            x = x * 0.5 + gp.tensor(data[i])
        return x

    captured = gp.capture(function)
    captured(gp.ones(4))
    with pytest.raises(CaptureError, match="may be another in each run"):
        captured(gp.ones(4))


@pytest.mark.parametrize(
    "enter", [lambda x, a: x + gp.tensor(a), lambda x, a: (x * 1.0).add_(a)], ids=["tensor", "in place"]
)
def test_a_buffer_that_numpy_fills_again(enter):
    buffer = np.zeros(4, np.float32)

    def function(x):
        buffer[:] = RNG.standard_normal(4)
        return enter(x, buffer)

    captured = gp.capture(function)
    captured(gp.ones(4))
    with pytest.raises(CaptureError, match="may be another in each run"):
        captured(gp.ones(4))


def test_rows_of_a_file(tmp_path):
    rows = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(6, 4))
    rows[:] = RNG.standard_normal((6, 4))
    count = iter(range(6))
    captured = gp.capture(lambda: gp.asarray(rows[next(count)]) * 2.0)
    captured()
    with pytest.raises(CaptureError, match="may be another in each run"):
        captured()
    double = gp.capture(lambda x: x * 2.0)
    for row in rows:
        assert bits(double(gp.asarray(row))) == bits(gp.asarray(row) * 2.0)


def test_batches_that_python_counts():
    data, count = RNG.standard_normal((6, 4), dtype=np.float32), iter(range(6))
    captured = gp.capture(lambda: gp.asarray(data[next(count)]) * 2.0)
    captured()
    with pytest.raises(CaptureError, match=r"may be another in each run"):
        captured()


def test_constants_that_the_first_run_keeps():
    kept = []

    def function(x):
        if not kept:
            kept.append(gp.tensor(np.tril(np.ones((4, 4), np.float32))))
        return x @ kept[0] + gp.tensor(np.arange(4.0, dtype=np.float32))

    captured = gp.capture(function)
    for i in range(4):
        assert bits(captured(gp.ones(2, 4) * i)) == bits(function(gp.ones(2, 4) * i))


@pytest.mark.parametrize("same_first", [False, True])
def test_constants_beside_arguments_that_are_arrays(same_first):
    runs = []

    def function(x):
        runs.append(None)
        return gp.numpy.take(x, [0, 2], axis=0) * np.array([1, 2, 3], "f"), gp.tensor(x) * gp.tensor(
            np.eye(3, dtype="f")
        )[0]

    captured, x = gp.capture(function), RNG.standard_normal((4, 3), dtype=np.float32)
    for i in range(8):
        given = x * (0 if same_first and i < 4 else i)
        a, b = captured(given)
        assert np.array_equal(a, given[[0, 2]] * np.array([1, 2, 3], "f"))
        assert np.array_equal(b.numpy(), given * np.eye(3, dtype="f")[0])
    assert len(runs) == (4 if same_first else 2)


def test_a_buffer_that_is_filled_between_calls(place):
    buffer = np.zeros((4, 3), np.float32)
    captured = gp.capture(lambda x: gp.asarray(buffer, device=place) * x)
    for i in range(2 if place == "cuda" else 5):  # a GPU has a copy of it
        buffer[...] = i
        assert (captured(gp.ones(4, 3, device=place)).numpy() == i).all()


def test_constants_of_numpy(place):
    mask, own = np.ones(4, np.float32), np.full(4, 3.0, np.float32)
    captured = gp.capture(
        lambda x: (
            x * gp.tensor(mask, device=place) + gp.tensor(np.arange(4.0, dtype=np.float32), device=place) + own.sum()
        )
    )
    for _ in range(4):
        x = normal(place, 4)
        expected = x + gp.tensor(np.arange(4.0, dtype=np.float32), device=place) + 12.0
        assert bits(captured(x)) == bits(expected)
