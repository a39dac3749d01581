"""Matrix products by cuBLASLt against NumPy's in float64: every layout, dtype and epilogue, eagerly and in a graph."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from native import on_device, on_host

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop._matmul import PRECISIONS
from gpuprop.train import Trainer

pytestmark = pytest.mark.cuda

# Odd and even, one row, one column, one term; 13 and 67 fit neither 16-byte accesses nor tiles.
SIZES = [(1, 1, 1), (5, 3, 7), (64, 32, 16), (13, 67, 10), (1, 40, 9), (9, 40, 1), (33, 1, 6)]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module")
def gemm():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    pytest.importorskip("nvmath")
    from gpuprop.cuda import gemm

    return gemm


@pytest.fixture
def precision():
    yield gp.set_float32_matmul_precision
    gp.set_float32_matmul_precision("highest")


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def eps_of(dtype):
    return {"bfloat16": 2.0**-8}.get(dtype.name) or np.finfo(dtype).eps


def normal(*shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def double(*arrays):
    return [array.astype(np.float64) for array in arrays]


def assert_close(actual, expected, dtype, terms):
    """Within the rounding of the result and of `terms` products that are added in float32, or in float64."""
    actual = on_host(actual)
    assert actual.dtype == dtype and actual.shape == expected.shape
    sums = np.finfo(np.float64 if dtype == np.float64 else np.float32).eps * terms
    tolerance = 4 * (eps_of(dtype) + sums)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=tolerance, atol=tolerance * terms**0.5)


def laid_out(array, how):
    """The same values on the device, as rows, as columns, with gaps between the rows or columns, or every second one."""
    lead = (slice(None),) * (array.ndim - 2)
    *batch, rows, columns = array.shape
    if how == "rows":
        return on_device(array)
    if how == "columns":
        return on_device(np.ascontiguousarray(array.swapaxes(-1, -2))).swapaxes(-1, -2)
    if how == "apart":
        wide = on_device(np.full((*batch, rows, columns + 3), 7, array.dtype))[(*lead, slice(None), slice(columns))]
    elif how == "columns apart":
        wide = on_device(np.full((*batch, columns, rows + 3), 7, array.dtype)).swapaxes(-1, -2)
        wide = wide[(*lead, slice(rows), slice(None))]
    else:
        wide = on_device(np.full((*batch, 2 * rows, 2 * columns), 7, array.dtype))
        wide = wide[(*lead, slice(None, None, -2), slice(None, None, 2))]
    wide[...] = on_device(array)
    return wide


LAYOUTS = ["rows", "columns", "apart", "columns apart", "every second"]


# --- Plain products -------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("m, k, n", SIZES)
def test_sizes(gemm, dtype, m, k, n):
    dtype = dtype_of(dtype)
    a, b = normal(m, k, dtype=dtype), normal(k, n, dtype=dtype, seed=1)
    assert_close(gemm.product(on_device(a), on_device(b)), np.matmul(*double(a, b)), dtype, k)


@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_layouts(gemm, of_a, of_b, batch):
    a, b = normal(*batch, 6, 10, dtype=np.float32), normal(*batch, 10, 4, dtype=np.float32, seed=1)
    y = gemm.product(laid_out(a, of_a), laid_out(b, of_b))
    assert_close(y, np.matmul(*double(a, b)), a.dtype, 10)


@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_matrices_in_rows_or_columns_are_not_copied(gemm, count, layout):
    a, b = laid_out(normal(6, 10, dtype=np.float32), layout), laid_out(normal(10, 4, dtype=np.float32), layout)
    counted = count(lambda: gemm.product(a, b))
    assert counted["gemm_calls"] == 1 and counted["kernel_launches"] == counted["device_to_device"] == 0


BATCHES = [
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (4, 3, 2)),  # neither stack has one step
    ((2, 5, 2, 3), (2, 5, 3, 4)),
    ((1, 5, 2, 3), (3, 1, 3, 4)),
    ((1, 2, 3), (3, 4)),
    ((4, 1, 3), (3, 6)),
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 4)),
    ((6,), (1, 2, 6, 1)),
]


@pytest.mark.parametrize("of_a, of_b", BATCHES, ids=str)
def test_batches_and_vectors(gemm, of_a, of_b):
    a, b = normal(*of_a, dtype=np.float32), normal(*of_b, dtype=np.float32, seed=1)
    assert_close(gemm.product(on_device(a), on_device(b)), np.matmul(*double(a, b)), a.dtype, of_a[-1])


def test_vectors_with_steps(gemm):
    a, b = normal(20, dtype=np.float32), normal(20, dtype=np.float32, seed=1)
    for every in (2, -2):
        y = gemm.product(on_device(a)[::every], on_device(b)[::every])
        assert_close(y, np.matmul(*double(a[::every], b[::every])), a.dtype, 10)


def test_rows_of_a_batch_are_one_product(gemm):
    """Activations (N, T, in) times a weight (in, out): one tall matrix."""
    plan = gemm.plan_for(on_device(normal(5, 2, 3, dtype=np.float32)), on_device(normal(4, 3, dtype=np.float32)).T)
    assert plan.pack_a is plan.pack_b is None and gemm.offers(
        "BIAS", on_device(normal(5, 2, 3, dtype=np.float32)), on_device(normal(4, 3, dtype=np.float32)).T
    )


EMPTY = [((0, 3), (3, 2)), ((2, 3), (3, 0)), ((2, 0), (0, 3)), ((0, 2, 3), (3, 4)), ((4, 2, 0), (0, 3)), ((0,), (0,))]


@pytest.mark.parametrize("of_a, of_b", EMPTY, ids=str)
def test_empty(gemm, of_a, of_b):
    a, b = on_device(np.zeros(of_a, np.float32)), on_device(np.zeros(of_b, np.float32))
    expected = np.zeros(of_a, np.float32) @ np.zeros(of_b, np.float32)
    np.testing.assert_array_equal(on_host(gemm.product(a, b)), expected, strict=True)
    ones = np.ones(expected.shape, np.float32)
    np.testing.assert_array_equal(on_host(gemm.product(a, b, out=on_device(ones))), expected)
    np.testing.assert_array_equal(on_host(gemm.product(a, b, out=on_device(ones), accumulate=True)), ones)


@pytest.mark.parametrize("of_a, of_b", [((2, 3), (4, 2)), ((), (3,)), ((2, 2, 3), (3, 3, 2)), ((3,), (4, 3))], ids=str)
def test_shapes_that_do_not_fit(gemm, of_a, of_b):
    with pytest.raises(ValueError):
        gemm.product(on_device(np.zeros(of_a, np.float32)), on_device(np.zeros(of_b, np.float32)))


# --- Where the result goes ------------------------------------------------------------------------------------------


@every_dtype
def test_out(gemm, count, dtype):
    dtype = dtype_of(dtype)
    a, b, c = (normal(*s, dtype=dtype, seed=i) for i, s in enumerate([(9, 6), (6, 7), (9, 7)]))
    left, right, out = on_device(a), on_device(b), on_device(c)

    def work():
        assert gemm.product(left, right, out=out) is out
        assert gemm.product(left, right, out=out, accumulate=True) is out

    gemm.product(left, right)
    counted = count(work)
    assert counted["gemm_calls"] == 2 and counted["kernel_launches"] == counted["device_to_device"] == 0
    assert_close(out, 2 * np.matmul(*double(a, b)), dtype, 12)


def test_an_uninitialised_out_is_overwritten(gemm):
    a, b = normal(4, 3, dtype=np.float32), normal(3, 5, dtype=np.float32)
    out = on_device(np.full((4, 5), np.nan, np.float32))
    assert_close(gemm.product(on_device(a), on_device(b), out=out), np.matmul(*double(a, b)), a.dtype, 3)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", ["columns", "float64", "broadcast"])
def test_an_out_that_the_library_cannot_write_to(gemm, kind, accumulate):
    a, b, c = (normal(*s, dtype=np.float32, seed=i) for i, s in enumerate([(4, 3), (3, 5), (4, 5)]))
    if kind == "broadcast":
        c = normal(2, 4, 5, dtype=np.float32)
    out = laid_out(c, "columns") if kind == "columns" else on_device(c.astype(np.float64) if kind == "float64" else c)
    assert gemm.product(on_device(a), on_device(b), out=out, accumulate=accumulate) is out
    expected = np.matmul(*double(a, b)) + (c.astype(np.float64) if accumulate else 0 * c.astype(np.float64))
    np.testing.assert_allclose(on_host(out), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip, alignment", [(0, 16), (1, 4), (2, 8), (3, 4), (4, 16)])
@pytest.mark.parametrize("moved", range(3))
def test_places_that_are_not_aligned(gemm, monkeypatch, skip, alignment, moved):
    """Parts of a buffer that begin anywhere: the algorithm is one that can do with that."""
    asked = []
    proposals = gemm.proposals
    monkeypatch.setattr(gemm, "proposals", lambda *given: asked.append(given[-1]) or proposals(*given))
    monkeypatch.setattr(gemm, "_plans", {})
    places = []
    for i, (rows, columns) in enumerate([(4, 3), (3, 5), (4, 5)]):
        begin = skip if i == moved else 0
        part = on_device(normal(begin + rows * columns, dtype=np.float32, seed=i))[begin:]
        places.append(part.reshape(rows, columns))
    a, b, out = places
    gemm.product(a, b, out=out)
    assert_close(out, np.matmul(*double(on_host(a), on_host(b))), a.dtype, 3)
    assert asked == [alignment]


# --- Dtypes ---------------------------------------------------------------------------------------------------------


def test_tf32_rounds_the_factors(gemm, precision):
    a, b = normal(8, 50, dtype=np.float32), normal(50, 6, dtype=np.float32, seed=1)
    assert gp.get_float32_matmul_precision() == "highest"
    exact = np.matmul(*double(a, b))
    errors = {}
    for name in PRECISIONS:
        precision(name)
        errors[name] = np.abs(on_host(gemm.product(on_device(a), on_device(b))) - exact).max()
        double_precision = gemm.product(on_device(a.astype(np.float64)), on_device(b.astype(np.float64)))
        assert np.abs(on_host(double_precision) - exact).max() < 1e-13
    assert errors["highest"] < 1e-5 < errors["high"] < 2e-2


def test_other_dtypes(gemm):
    a, b = np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(on_host(gemm.product(on_device(a), on_device(b))), a @ b, strict=True)
    mixed = gemm.product(on_device(a.astype(np.float32)), on_device(b.astype(np.float64)))
    np.testing.assert_array_equal(on_host(mixed), (a @ b).astype(np.float64), strict=True)


def test_without_the_library(gemm, monkeypatch):
    monkeypatch.setattr(gemm, "load", lambda: (None, gemm.NEEDS))
    monkeypatch.setattr(gemm, "_plans", {})
    a, b = normal(4, 3, dtype=np.float32), normal(3, 5, dtype=np.float32, seed=1)
    out = on_device(np.ones((4, 5), np.float32))
    gemm.product(on_device(a), on_device(b), out=out, accumulate=True)
    assert_close(out, np.matmul(*double(a, b)) + 1, a.dtype, 4)
    assert gemm.report() == (None, gemm.NEEDS) and "cuda13" in gp.device_report()["cublaslt_reason"]


# --- Plans, workspaces, graphs --------------------------------------------------------------------------------------


def test_a_plan_is_made_once(gemm):
    a, b = on_device(normal(4, 3, dtype=np.float32)), on_device(normal(3, 5, dtype=np.float32))
    assert gemm.plan_for(a, b) is gemm.plan_for(a.copy(), b.copy()) is not gemm.plan_for(a, b[:, :4])


def test_a_workspace_for_each_stream_thread_and_owner(gemm):
    import cupy

    a, b = on_device(normal(4, 3, dtype=np.float32)), on_device(normal(3, 5, dtype=np.float32))
    plan = gemm.plan_for(a, b)
    plan.workspace, before = 1, plan.workspace  # as an algorithm that adds parts would have it
    try:
        owned, other = gemm.Workspaces(), gemm.Workspaces()
        with gemm.workspaces(owned):
            gemm.product(a, b)
            thread = threading.Thread(target=gemm.product, args=(a, b))
            thread.start()
            thread.join()
            with cupy.cuda.Stream(non_blocking=True) as stream:
                gemm.product(a, b)
                with gemm.workspaces(other):
                    gemm.product(a, b)
                gemm.product(a, b)
    finally:
        plan.workspace = before
    assert set(owned) == {(0, cupy.cuda.Stream.null.ptr), (0, stream.ptr)} and set(other) == {(0, stream.ptr)}
    assert len({buffer.data.ptr for buffer in [*owned.values(), *other.values()]}) == 3
    assert all(buffer.nbytes == gemm.workspace_size(0) for buffer in owned.values())


def test_a_captured_product_is_that_of_the_new_values(gemm):
    import cupy

    shapes = [(9, 6), (6, 7), (9, 7)]
    a, b, out = (on_device(np.zeros(s, np.float32)) for s in shapes)
    gemm.product(a, b, out=out)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, gemm.workspaces(gemm.Workspaces()):
        stream.begin_capture()
        try:
            gemm.product(a, b, out=out)
            gemm.product(a, b, out=out, accumulate=True)
        finally:
            graph = stream.end_capture()
    for seed in (1, 2):
        left, right = normal(*shapes[0], dtype=np.float32, seed=seed), normal(*shapes[1], dtype=np.float32, seed=seed)
        a.set(left), b.set(right)
        graph.launch(stream)
        stream.synchronize()
        assert_close(out, 2 * np.matmul(*double(left, right)), left.dtype, 12)


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 4)], ids=str)
def test_adding_to_a_weights_gradient_costs_no_more_than_writing_it(gemm, count, shape):
    x, dy = normal(*shape, dtype=np.float32), normal(*shape[:-1], 5, dtype=np.float32)
    layer = gp.nn.Linear(4, 5, bias=False).to("cuda")
    y, seed = layer(gp.tensor(x, device="cuda")), gp.tensor(dy, device="cuda")
    y.backward(seed, retain_graph=True)  # makes the plan, and the buffer
    layer.zero_grad()
    first, second = (count(lambda: y.backward(seed, retain_graph=True)) for _ in range(2))
    assert first == second and first["gemm_calls"] == 1 and first["kernel_launches"] == first["mallocs"] == 0
    expected = 2 * np.tensordot(*double(dy, x), axes=2 * [range(len(shape) - 1)])
    assert_close(layer.weight.grad.data, expected, x.dtype, 24)


# --- Autotuning -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tuning(gemm, monkeypatch):
    """Three algorithms instead of the simulator's one; the second is timed as the fastest. Returns the names of what was timed."""
    timed = []

    def proposals(plan, alignment):
        return np.concatenate(3 * [found(plan, alignment)])

    def milliseconds(work):
        work()
        timed.append(work)
        return [3.0, 1.0, 2.0][(len(timed) - 1) % 3]

    found = gemm.proposals
    monkeypatch.setattr(gemm, "_plans", {})
    monkeypatch.setattr(gemm, "proposals", proposals)
    monkeypatch.setattr(gemm, "milliseconds", milliseconds)
    yield timed
    gp.set_matmul_autotuning(False)
    gp.set_matmul_choices({})


def test_the_fastest_algorithm_is_taken_and_remembered(gemm, tuning):
    a, b = normal(4, 3, dtype=np.float32), normal(3, 5, dtype=np.float32, seed=1)
    left, right = on_device(a), on_device(b)

    def place():
        plan = gemm.plan_for(left, right)
        assert_close(gemm.product(left, right), np.matmul(*double(a, b)), a.dtype, 3)
        return (plan.algorithm_at - plan.algorithm.base.ctypes.data) // plan.algorithm.nbytes

    assert place() == 0 and not tuning and not gp.get_matmul_choices()
    gp.set_matmul_autotuning(True)
    assert place() == place() == 1 and len(tuning) == 3
    gp.set_matmul_autotuning(False)
    assert place() == 1
    choices = gp.get_matmul_choices()
    assert list(choices.values()) == [1] and all("cudasim" in key for key in choices)
    gp.set_matmul_choices({})
    assert place() == 0
    gp.set_matmul_choices(dict.fromkeys(choices, 2))
    assert place() == 2
    gp.set_matmul_choices({key.replace("cudasim", "another GPU"): 2 for key in choices})
    assert place() == 0 and len(tuning) == 3


def test_autotuning_of_packed_operands_and_epilogues(gemm, tuning):
    gp.set_matmul_autotuning(True)
    a, b, bias = (normal(*s, dtype=np.float32) for s in [(5, 1, 2, 3), (4, 3, 2), (2,)])
    assert_close(gemm.product(on_device(a), on_device(b)), np.matmul(*double(a, b)), a.dtype, 3)
    given = on_device(a[0, 0]), on_device(b[0])
    assert gemm.offers("RELU_AUX_BIAS", *given)
    aux = gemm.new_aux("RELU_AUX_BIAS", 2, 2, a.dtype)
    y = gemm.fused_product("RELU_AUX_BIAS", *given, bias=on_device(bias), aux=aux)
    assert_close(y, np.maximum(np.matmul(*double(a[0, 0], b[0])) + bias, 0), a.dtype, 3)
    assert sorted(gp.get_matmul_choices().values()) == [1, 1] and len(tuning) == 6


def test_nothing_is_timed_in_a_capture(gemm, tuning):
    import cupy

    a, b = on_device(normal(4, 3, dtype=np.float32)), on_device(normal(3, 5, dtype=np.float32))
    out = on_device(np.zeros((4, 5), np.float32))
    gp.set_matmul_autotuning(True)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            gemm.product(a, b, out=out)
        finally:
            stream.end_capture()
    assert not tuning and not gp.get_matmul_choices()


def test_a_training_is_gone_on_with_by_the_algorithms_that_it_had(gemm, tuning, monkeypatch, tmp_path):
    """As by another process, which has chosen nothing, or something else."""
    rng = np.random.default_rng(0)
    data = [gp.tensor(a, device="cuda") for a in (rng.standard_normal((24, 6), np.float32), rng.integers(0, 4, 24))]
    loader, used = gp.data.DataLoader(data, batch_size=12), []
    multiply = gemm.Plan.multiply

    def noted(plan, *given):
        used.append((plan.algorithm_at - plan.algorithm.base.ctypes.data) // plan.algorithm.nbytes)
        multiply(plan, *given)

    def trained(epochs, state=None):
        model = gp.nn.MLP([6, 8, 4], activation="tanh", seed=1, device="cuda")
        trainer = Trainer(model, gp.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy)
        if state is not None:
            trainer.load_state_dict(state)
        used.clear()
        trainer.fit(loader, epochs=epochs)
        return trainer

    monkeypatch.setattr(gemm.Plan, "multiply", noted)
    gp.set_matmul_autotuning(True)
    first, path = trained(1), tmp_path / "checkpoint"
    assert tuning
    gp.save(path, first.state_dict())
    gp.set_matmul_autotuning(False)
    tuning.clear()
    for others in ({}, dict.fromkeys(gp.get_matmul_choices(), 2)):
        gp.set_matmul_choices(others)
        trained(1)
        assert set(used) == ({2} if others else {0})
        trained(2, gp.load(path))
        assert set(used) == {1} and not tuning
        assert gp.get_matmul_choices() == first.state_dict()["matmul_choices"]


def test_the_stopwatch(gemm):
    calls = []
    assert gemm.milliseconds(lambda: calls.append(1), calls=2, rounds=3) >= 0 and len(calls) == 8


# --- Epilogues ------------------------------------------------------------------------------------------------------


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def gelu_slope(x, step=1e-6):
    return (gelu(x + step) - gelu(x - step)) / (2 * step)


FUNCTIONS = {"RELU": lambda x: np.maximum(x, 0), "GELU": gelu}
SLOPES = {"RELU": lambda x: (x > 0).astype(np.float64), "GELU": gelu_slope}
epilogue_dtypes = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


@epilogue_dtypes
@pytest.mark.parametrize("epilogue", ["BIAS", "RELU_BIAS", "GELU_BIAS"])
def test_bias_and_activation(gemm, dtype, epilogue):
    dtype = dtype_of(dtype)
    x, weight, bias = normal(5, 2, 16, dtype=dtype), normal(24, 16, dtype=dtype), normal(24, dtype=dtype)
    given = on_device(x), on_device(weight).T
    assert gemm.offers(epilogue, *given)
    y = gemm.fused_product(epilogue, *given, bias=on_device(bias))
    z = double(x)[0] @ double(weight)[0].T + double(bias)[0]
    assert_close(y, FUNCTIONS.get(epilogue[:4], lambda z: z)(z), dtype, 32)


@epilogue_dtypes
@pytest.mark.parametrize("kind", ["RELU", "GELU"])
def test_gradients_of_bias_and_activation(gemm, dtype, kind):
    """Two layers: the first one's epilogue writes what the second one's input gradient reads."""
    dtype = dtype_of(dtype)
    x, weight, bias = normal(12, 16, dtype=dtype), normal(24, 16, dtype=dtype), normal(24, dtype=dtype)
    dy, above = normal(12, 8, dtype=dtype), normal(8, 24, dtype=dtype)
    aux, db = gemm.new_aux(f"{kind}_AUX_BIAS", 12, 24, dtype), on_device(np.full(24, np.nan, dtype))
    y = gemm.fused_product(f"{kind}_AUX_BIAS", on_device(x), on_device(weight).T, bias=on_device(bias), aux=aux)
    z = double(x)[0] @ double(weight)[0].T + double(bias)[0]
    assert_close(y, FUNCTIONS[kind](z), dtype, 32)
    if kind == "GELU":  # the slope is taken at what was stored
        z = on_host(aux)[:, :24].astype(np.float64)
    dz = double(dy)[0] @ double(above)[0] * SLOPES[kind](z)
    plain = gemm.fused_product(f"D{kind}", on_device(dy), on_device(above), aux=aux)
    summed = gemm.fused_product(f"D{kind}_BGRAD", on_device(dy), on_device(above), aux=aux, bias=db)
    assert_close(plain, dz, dtype, 16)
    assert_close(summed, dz, dtype, 16)
    assert_close(db, dz.sum(0), dtype, 12 * 16)


@epilogue_dtypes
def test_bias_gradient_beside_the_weights(gemm, dtype):
    dtype = dtype_of(dtype)
    dz, x = normal(40, 24, dtype=dtype), normal(40, 16, dtype=dtype)
    db, dw = on_device(np.full(24, np.nan, dtype)), on_device(np.full((24, 16), np.nan, dtype))
    gemm.fused_product("BGRADB", on_device(dz).T, on_device(x), bias=db, out=dw)
    assert_close(dw, double(dz)[0].T @ double(x)[0], dtype, 40)
    assert_close(db, double(dz)[0].sum(0), dtype, 40)


def test_what_is_not_offered(gemm):
    stack = on_device(normal(3, 4, 4, dtype=np.float32))
    assert not gemm.offers("BIAS", stack, stack)  # a bias for each of the matrices
    empty = on_device(np.zeros((0, 4), np.float32))
    assert not gemm.offers("BIAS", empty, stack[0])
    whole = on_device(np.ones((4, 4), np.int64))
    assert not gemm.offers("BIAS", whole, whole)
