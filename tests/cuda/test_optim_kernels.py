"""Optimizers as kernels: what the rules on the host compute, in one launch, from what lies on the device."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import optim
from gpuprop.nn import Parameter
from gpuprop.nn.parameter import one_chunk

pytestmark = pytest.mark.cuda

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.0, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.02, "amsgrad": True, "betas": (0.8, 0.5)}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "weight_decay": 0.1, "momentum": 0.5}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9, "maximize": True}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.3, "weight_decay": 0.1}),
]
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else None)
SIZES = [0, 1, 3, 31, 33, 1000, 1025, 4096, 20000]
STEPS = 20


@pytest.fixture(autouse=True)
def cuda():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])


def drawn(dtype, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(n)).astype(dtype) for n in SIZES]


def parameters_of(device, dtype=np.float32):
    """Neighbours, then strangers, one that begins off a multiple of 16 bytes, one in Fortran order, and a plain tensor."""
    values = [gp.tensor(v, device=device) for v in drawn(dtype)]
    with one_chunk([v.shape for v in values[:6]], dtype, gp.Device(device)):
        parameters = [Parameter(v) for v in values[:6]]
    for v in values[6:]:
        with one_chunk([v.shape], dtype, gp.Device(device)):
            parameters.append(Parameter(v))
    parameters[6].data = gp.numpy.concatenate([values[6][:1], values[6]]).data[1:]
    plain = gp.tensor(values[7], requires_grad=True)
    matrix = gp.tensor(values[7].reshape(64, 64), requires_grad=True)
    matrix.data = matrix.data.T.copy().T
    return [*parameters, plain, matrix]


def give_gradients(parameters, step, without=()):
    """As backward leaves them: the same on all devices."""
    for i, p in enumerate(parameters):
        p.grad = None
        if i not in without:
            drawn = np.random.default_rng((step, i)).standard_normal(p.shape)
            p._leaf.accumulate(gp.tensor(drawn, dtype=p.dtype, device=p.device).data, owned=True)


def train(device, name, options, dtype=np.float32, steps=STEPS, **more):
    """Two groups, a schedule, and parameters that are without a gradient at times."""
    parameters = parameters_of(device, dtype)
    groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.03}]
    optimizer = getattr(optim, name)(groups, **options, **more)
    schedule = optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.5)
    for step in range(steps):
        give_gradients(parameters, step, {0: [2], 1: [2], 8: [2, 5], 14: [4, 7, 9]}.get(step, ()))
        optimizer.step()
        schedule.step()
    return parameters, optimizer


def compare(actual, expected, tolerance):
    a, b = actual.numpy().astype(np.float64), expected.numpy().astype(np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1))


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_agree_with_the_rules(name, options, dtype):
    """Two roundings of the largest element per step, on each side."""
    ours, optimizer = train("cuda", name, options, dtype, max_grad_norm=60.0, ema_decay=0.9)
    theirs, other = train("cpu", name, options, dtype, max_grad_norm=60.0, ema_decay=0.9)
    tolerance = 4 * STEPS * np.finfo(dtype).eps
    for p, q in zip(ours, theirs):
        assert p.dtype == dtype
        compare(p, q, tolerance)
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, value in other.state[q].items():
            if key == "step":
                assert optimizer.state[p]["step"] == value
            else:
                compare(optimizer.state[p][key], value, tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "options"), [CASES[1], CASES[3], CASES[7], CASES[11], CASES[13]])
def test_16_bits_are_stored_and_32_computed(name, options, dtype):
    """One step from float32 arithmetic, rounded once per array. On the host: the rule in float32, from the same values.

    An eps of 1e-2, since what float16 rounds to 0 is not taken (`not_nothing`).
    """
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    values, gradients = drawn(dtype, 1), drawn(dtype, 2)
    ours = [Parameter(gp.tensor(v, device="cuda")) for v in values]
    theirs = [Parameter(gp.tensor(v.astype(np.float32), device="cpu")) for v in values]
    options = options if name == "SGD" else {**options, "eps": 1e-2}
    optimizers = [getattr(optim, name)(ps, **options) for ps in (ours, theirs)]
    for p, q, g in zip(ours, theirs, gradients):
        p.grad, q.grad = gp.tensor(g, device="cuda"), gp.tensor(g.astype(np.float32), device="cpu")
    for optimizer in optimizers:
        optimizer.step()
    eps = 2.0**-8 if np.dtype(dtype).name == "bfloat16" else 2.0**-11
    for p, q in zip(ours, theirs):
        assert p.dtype == dtype
        a, b = p.numpy().astype(np.float32), q.numpy()
        np.testing.assert_allclose(a, b, rtol=2 * eps, atol=2 * eps)


def test_what_is_not_finite_stays_where_it_is():
    values = np.array([1.0, np.inf, np.nan, 2.0, 3.0, -np.inf, 5.0], np.float32)
    gradients = np.array([np.nan, 1.0, 1.0, np.inf, -np.inf, 0.0, 1.0], np.float32)
    for name, options in CASES:
        results = []
        for device in ("cuda", "cpu"):
            p = Parameter(gp.tensor(values, device=device))
            optimizer = getattr(optim, name)([p], **options)
            for _ in range(2):
                p.grad = gp.tensor(gradients, device=device)
                with np.errstate(invalid="ignore"):
                    optimizer.step()
            results.append(p.numpy())
        np.testing.assert_allclose(*results, rtol=1e-6)


@every_case
def test_two_runs_have_the_same_bits(name, options):
    first, second = (train("cuda", name, options, steps=4, max_grad_norm=1.0)[0] for _ in range(2))
    assert [p.numpy().tobytes() for p in first] == [p.numpy().tobytes() for p in second]


# --- Launches -------------------------------------------------------------------------------------------------------


def steady(name="Adam", **more):
    parameters = [p for p in parameters_of("cuda") if isinstance(p, Parameter) and p.at_home]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:5], "lr": 0.5}, {"params": parameters[5:]}]
    optimizer = getattr(optim, name)(groups, **more)
    give_gradients(parameters, 0)
    for _ in range(2):
        optimizer.step()
    return parameters, optimizer


NOTHING_ELSE = (
    "gemm_calls",
    "host_to_device",
    "device_to_host",
    "device_to_device",
    "memsets",
    "mallocs",
    "synchronizations",
)


def assert_launches(counted, launches):
    assert counted["kernel_launches"] == launches
    assert not [name for name in NOTHING_ELSE if counted[name]]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_a_step_is_one_launch(count, name):
    _, optimizer = steady(name)
    assert len(optimizer._work.fused) == 1 and len(optimizer._tables) == 3
    assert_launches(count(optimizer.step), 1)


def test_what_rides_along_costs_no_launch(count):
    parameters, optimizer = steady(ema_decay=0.9)
    given = {"grad_scale": gp.tensor(0.5, device="cuda"), "skip": gp.tensor(0.0, device="cuda")}
    assert_launches(count(lambda: optimizer.step(**given)), 1)
    assert [optimizer.state[p]["step"] for p in parameters] == [3] * len(parameters)


def test_clipping_costs_one(count):
    _, optimizer = steady(max_grad_norm=0.5)
    assert_launches(count(optimizer.step), 2)


def test_new_options_travel_as_arguments_of_one_launch(count):
    _, optimizer = steady()
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    assert_launches(count(optimizer.step), 2)
    assert_launches(count(optimizer.step), 1)


def test_large_tables_are_sent_in_parts(count):
    parameters = [gp.tensor(np.full(3, i), dtype=np.float32, device="cuda", requires_grad=True) for i in range(200)]
    for p in parameters:
        p.grad = gp.ones(3, device="cuda")
    optimizer = optim.SGD(parameters, lr=1.0)
    optimizer.step()
    assert_launches(count(optimizer.step), 1)
    assert [p.numpy()[2] for p in parameters] == [i - 2 for i in range(200)]


def test_clip_grad_norm_is_two_launches(count):
    parameters, _ = steady()
    optim.clip_grad_norm_(parameters, 1.0)
    assert_launches(count(lambda: optim.clip_grad_norm_(parameters, 1.0)), 2)


@pytest.mark.parametrize("size", [*SIZES, 5_000_000])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_norm(size, dtype):
    values = np.random.default_rng(size).standard_normal(size).astype(dtype)
    p = gp.tensor(np.zeros(size, dtype), device="cuda")
    p.grad = gp.tensor(values, device="cuda")
    norm = optim.clip_grad_norm_([p], 1e9)
    expected = np.linalg.norm(values.astype(np.float64))
    # At most 20 additions in a row in each thread and 13 in the trees over them.
    np.testing.assert_allclose(norm.item(), expected, rtol=17 * np.finfo(norm.dtype).eps)
    assert norm.dtype == ("float64" if dtype == "float64" else "float32")


# --- Replay ---------------------------------------------------------------------------------------------------------


def test_a_recorded_step_goes_on_where_it_stands():
    """What changes from step to step lies on the device: a graph that replays the launch makes the steps that calls would make."""
    import cupy

    (eager, optimizer), (recorded, other) = (steady("Adam", max_grad_norm=2.0) for _ in range(2))
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        other.step()  # tickets and tables of this stream
        stream.begin_capture()
        try:
            other.step()
        finally:
            graph = stream.end_capture()
        for _ in range(5):
            graph.launch()
        other.param_groups[0]["lr"] = 0.25
        ((place, stepper),) = other._steppers.items()
        stepper.refresh(other._work.fused[place], other._rows(place[1]))
        graph.launch()
        stream.synchronize()
    for _ in range(6):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert [p.numpy().tobytes() for p in eager] == [p.numpy().tobytes() for p in recorded]
