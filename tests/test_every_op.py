"""Every op of the registry, on every sample: values, derivatives, dtypes, devices, layouts, errors.

A new op is tested here by being declared. What cannot be said of all ops stands in `tests/ops/`.
"""

import zlib

import numpy as np
import pytest
import scipy.special
from conftest import CUDA

import gpuprop as gp
from gpuprop import testing
from gpuprop._op import REGISTRY
from gpuprop._tensor import Tensor
from gpuprop.device import backend_for, copy_to, device_scope, require
from gpuprop.errors import CaptureError
from gpuprop.tape import is_floating, walk

OPS = [op for op in REGISTRY.values() if op.__module__.startswith("gpuprop.")]


def cases(kind):
    for op in OPS:
        draw = testing.Draw(zlib.crc32(op.name.encode()))  # an op's samples do not depend on the other ops
        for index, sample in enumerate(getattr(op, kind)(draw) if getattr(op, kind) else ()):
            yield pytest.param(op, sample, id=f"{op.name}-{index}")


CASES = list(cases("samples"))
every_sample = pytest.mark.parametrize("op, sample", CASES)
smooth_samples = pytest.mark.parametrize("op, sample", [c for c in CASES if c.values[0].smooth and c.values[1].order])


@pytest.fixture
def place(request):
    if request.param == "cuda" and not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    return request.param


# --- One run of an op -----------------------------------------------------------------------------------------------


def differentiable(op, inputs):
    """The positions of the real arrays that have a gradient rule."""
    ruled = {target for rule in op.gradients for target in rule.targets}
    last = len(op.inputs) - 1
    return [
        i
        for i, value in enumerate(inputs)
        if isinstance(value, np.ndarray) and is_floating(value.dtype) and op.inputs[min(i, last)] in ruled
    ]


def cast(value, dtype):
    return value.astype(dtype) if isinstance(value, np.ndarray) and is_floating(value.dtype) else value


def contiguous(host, device):
    return copy_to(host.copy(), device)


def strided(host, device):
    """The same values as a part of a larger array, in Fortran order."""
    every_second = (..., *[slice(None, None, 2)] * host.ndim)
    wide = np.zeros([2 * n for n in reversed(host.shape)], host.dtype)
    wide[every_second] = host.T
    return copy_to(wide, device)[every_second].T


class Run:
    """An op on one device: its results, and gradients for random cotangents, as host arrays.

    order 1: the gradients, by the device's implementations. order 2: also by the rules, on Tensors; and theirs.
    """

    def __init__(self, op, sample, place="cpu", dtype=np.float64, layout=contiguous, order=1):
        self.device = require(place)
        before = [cast(value, dtype) for value in sample.inputs]
        options = {k: str(self.device) if v == "cpu" else v for k, v in sample.options.items()}
        with device_scope(self.device):
            inputs = [Tensor(layout(v, self.device)) if isinstance(v, np.ndarray) else v for v in before]
            self.wanted = [inputs[i].requires_grad_() for i in differentiable(op, before)] if order else []
            results = op(*inputs, **options)
            self.results = results if isinstance(results, tuple) else (results,)
            self.values = self.on_the_host(self.results)
            self.gradients = []
            if op.smooth and order >= 1:
                self.differentiate(self.results, retain_graph=True)
            if op.smooth and order >= 2:
                self.differentiate(self.differentiate(self.results, create_graph=True))
        for value, tensor in zip(before, inputs, strict=True):
            if isinstance(tensor, Tensor):
                np.testing.assert_array_equal(tensor.numpy(), value, "an input was changed")

    def on_the_host(self, tensors):
        kind = backend_for(self.device).array_type
        assert all(type(t.data) is kind for t in tensors), "results are arrays of the device, 0-d ones too"
        return [t.numpy() for t in tensors]

    def random_like(self, tensors):
        rng = np.random.default_rng(7)
        drawn = [np.asarray(rng.standard_normal(t.shape), t.dtype) for t in tensors]
        return [Tensor(copy_to(u, self.device)) for u in drawn]

    def differentiate(self, results, create_graph=False, **options):
        """Adds the gradients of the results to those found so far, and returns them."""
        results = [t for t in results if t is not None and t.requires_grad]
        cotangents = self.random_like(results)
        before = self.on_the_host(cotangents)
        pairs = [(t, u if create_graph else u.data) for t, u in zip(results, cotangents, strict=True)]
        found = walk(pairs, wanted=[t._node for t in self.wanted], create_graph=create_graph, **options)
        found = [found.get(t._node) for t in self.wanted]
        # What a walk hands out may be a scalar, which NumPy's operators make of 0-d arrays.
        found = [Tensor(np.asarray(g)) if isinstance(g, np.generic) else g for g in found]
        found = [g if g is None or isinstance(g, Tensor) else Tensor(g) for g in found]
        self.gradients += [None if g is None else self.on_the_host([g])[0] for g in found]
        for u, value in zip(cotangents, before, strict=True):
            np.testing.assert_array_equal(u.numpy(), value, "a cotangent was changed")
        return found


def assert_agree(actual, expected, sample, dtype):
    """Equal within 8 eps, times the largest value that occurs, times the root of the longest sum's length.

    Rounding errors of a sum grow as the root of its length; no sum is longer than the largest input. `eps` is that of
    the computation's dtype, or of the result's where an option asks for a coarser one.
    """
    length = max([1, *(v.size for v in sample.inputs if isinstance(v, np.ndarray))])
    for a, e in zip(actual, expected, strict=True):
        assert getattr(a, "shape", None) == getattr(e, "shape", None)
        if e is None or e.dtype.kind != "f":
            np.testing.assert_array_equal(a, e)
        else:
            tolerance = 8 * max(np.finfo(dtype).eps, np.finfo(e.dtype).eps) * np.sqrt(length)
            largest = max([1.0, *np.abs(e[np.isfinite(e)], dtype=np.float64).ravel()])
            np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * largest)


# --- The tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_op_says_what_it_computes(op):
    first = (op.__doc__ or "").strip().split("\n")[0]
    assert len(first) > 10 and first.endswith("."), "a docstring begins with a sentence"


# Where the function that NumPy or SciPy has for an op has another name, or takes its arguments otherwise.
REFERENCES = {
    "astype": lambda x, dtype: x.astype(dtype),
    "einsum": lambda *arrays, subscripts: np.einsum(subscripts, *arrays),
    "erf": scipy.special.erf,
    "logsumexp": scipy.special.logsumexp,
    "norm": np.linalg.norm,
    "take_along_axis": lambda x, indices, axis=-1: np.take_along_axis(x, indices, axis),  # no default before NumPy 2.3
}


def reference(op):
    return REFERENCES.get(op.name) or getattr(np, op.name, None)


@pytest.mark.parametrize("op, sample", [c for c in CASES if reference(c.values[0])])
def test_values_are_those_of_numpy(op, sample):
    inputs = [list(sample.inputs)] if op.variadic and op.name != "einsum" else sample.inputs
    expected = reference(op)(*inputs, **sample.options)
    actual = op(*sample.inputs, **sample.options)
    several = isinstance(expected, (list, tuple))
    expected = [np.asarray(e) for e in (expected if several else [expected])]
    actual = list(actual) if several else [actual]
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    assert [a.shape for a in actual] == [e.shape for e in expected]
    assert_agree(actual, expected, sample, np.float64)


@every_sample
def test_plain_arrays_in_plain_arrays_out(op, sample):
    results = op(*sample.inputs, **sample.options)
    results = results if isinstance(results, tuple) else (results,)
    for result, expected in zip(results, Run(op, sample, order=0).values, strict=True):
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, expected)


@smooth_samples
def test_derivatives_are_those_of_finite_differences(op, sample):
    places = differentiable(op, sample.inputs)
    numbers = [i for i, v in enumerate(sample.inputs) if type(v) is float]
    if not places:
        pytest.skip("no real array in this sample")

    def f(*real):
        inputs = list(sample.inputs)
        for i, value in zip([*places, *numbers], real, strict=True):
            inputs[i] = value
        return op(*inputs, **sample.options)

    testing.check_gradients(f, *(sample.inputs[i] for i in [*places, *numbers]), order=sample.order)


@every_sample
def test_float32_stays_float32_and_agrees_with_float64(op, sample):
    rounded = testing.Sample(*(cast(cast(v, np.float32), np.float64) for v in sample.inputs), **sample.options)
    single, double = Run(op, rounded, dtype=np.float32), Run(op, rounded)
    assert_agree(single.values, double.values, sample, np.float32)
    if sample.order:
        assert_agree(single.gradients, double.gradients, sample, np.float32)
    assert all(g is None or g.dtype == np.float32 for g in single.gradients)
    for s, d in zip(single.values, double.values, strict=True):
        promoted = any(isinstance(v, np.ndarray) and v.dtype == np.int64 for v in sample.inputs) and reference(op)
        if "dtype" not in sample.options and not promoted:
            assert s.dtype == (np.float32 if d.dtype == np.float64 and differentiable(op, sample.inputs) else d.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("place", ["cpu", CUDA], indirect=True)
@every_sample
def test_devices_agree(op, sample, place, dtype):
    expected = Run(op, sample, "guard", dtype, order=min(sample.order, 2))
    actual = Run(op, sample, place, dtype, order=min(sample.order, 2))
    assert [v.dtype for v in actual.values] == [v.dtype for v in expected.values]
    assert_agree(actual.values, expected.values, sample, dtype)
    assert_agree(actual.gradients, expected.gradients, sample, dtype)


@pytest.mark.parametrize("place", ["cpu", CUDA], indirect=True)
@every_sample
def test_layout_in_memory_does_not_matter(op, sample, place):
    expected, actual = Run(op, sample, place), Run(op, sample, place, layout=strided)
    assert_agree(actual.values, expected.values, sample, np.float64)
    if sample.order:
        assert_agree(actual.gradients, expected.gradients, sample, np.float64)


@pytest.mark.parametrize("place", ["cpu", CUDA], indirect=True)
@smooth_samples
def test_gradients_add_up_where_they_live(op, sample, place):
    """Walks into `.grad`: from the second on, implementations add in place; the seed of a scalar may stay symbolic."""
    run = Run(op, sample, place)
    assert all(t.grad is None for t in run.wanted), "gradients that were asked for by name leave .grad alone"
    roots = [t for t in run.results if t.requires_grad]
    pairs = [(t, u.data) for t, u in zip(roots, run.random_like(roots), strict=True)]

    def added(backward, *arguments):
        before = [0.0 if t.grad is None else t.grad.numpy().copy() for t in run.wanted]
        backward(*arguments, retain_graph=True)
        return [None if t.grad is None else t.grad.numpy() - b for t, b in zip(run.wanted, before, strict=True)]

    for _ in range(2):
        assert_agree(added(walk, pairs), run.gradients, sample, np.float64)
    if len(roots) == 1 and roots[0].size == 1:
        loss = roots[0]
        assert_agree(added(loss.backward), added(loss.backward, gp.ones_like(loss)), sample, np.float64)


@pytest.mark.parametrize("op, sample", list(cases("errors")))
def test_wrong_arguments_are_refused(op, sample):
    tensors = [Tensor(v) if isinstance(v, np.ndarray) else v for v in sample.inputs]
    with pytest.raises(sample.error, match=sample.match) as raised:
        op(*tensors, **sample.options)
    assert str(raised.value).startswith(f"{op.name}: ")
    assert isinstance(raised.value, gp.Error)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_samples_are_not_square(op):
    arrays = [v for case in CASES if case.values[0] is op for v in case.values[1].inputs if isinstance(v, np.ndarray)]
    matrices = [a for a in arrays if a.ndim > 1]
    assert arrays and (not matrices or any(a.shape[-1] != a.shape[-2] for a in matrices)), "transposition goes unseen"


# --- Captured -------------------------------------------------------------------------------------------------------


def drawn_again(op, index, seed):
    """The sample of an index with other values."""
    samples = list(op.samples(testing.Draw(seed)))
    return samples[index]


NUMBERED = [pytest.param(*c.values, int(c.id.rpartition("-")[2]), id=c.id) for c in CASES]


@pytest.mark.parametrize("op, sample, index", NUMBERED)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", ["cpu", CUDA], indirect=True)
def test_a_recording_repeats_the_op(op, sample, index, dtype, place):
    """Recorded on one input and repeated on others: the results and gradients of the op, bit for bit."""
    device = require(place)
    if (
        device == "cuda"
        and op.name in ("sort", "argsort")
        and gp.device_report()["cuda"][0]["name"].startswith("cudasim")
    ):
        pytest.skip("the simulated GPU does not sort while it captures")
    options = {k: str(device) if v == "cpu" else v for k, v in sample.options.items()}
    seeds = [zlib.crc32(op.name.encode()), 1, 2]
    samples = [sample, *(drawn_again(op, index, seed) for seed in seeds[1:])]
    arrays = [[cast(v, dtype) for v in s.inputs if isinstance(v, np.ndarray)] for s in samples]
    if not arrays[0]:
        pytest.skip("no arrays")
    wanted = differentiable(op, [cast(v, dtype) for v in sample.inputs])
    rng = np.random.default_rng(7)

    def run(given, *cotangents):
        left = iter(given)
        inputs = [next(left).detach() if isinstance(v, np.ndarray) else v for v in sample.inputs]
        leaves = [inputs[i].requires_grad_() for i in wanted] if op.smooth and sample.order else []
        results = op(*inputs, **options)
        results = results if isinstance(results, tuple) else (results,)
        roots = [(t, u._data) for t, u in zip((t for t in results if t.requires_grad), cotangents)]
        found = walk(roots, wanted=[leaf._node for leaf in leaves]) if roots else {}
        return [t.detach() for t in results], [Tensor(found[leaf._node]) for leaf in leaves if leaf._node in found]

    captured = gp.capture(run)
    with device_scope(device):
        given = [[Tensor(copy_to(a.copy(), device)) for a in each] for each in arrays]
        shapes = [
            (t.shape, t.dtype)
            for t in Run(op, sample, place, dtype, order=0 if not sample.order else 1).results
            if t.requires_grad
        ]
        cotangents = [Tensor(copy_to(rng.standard_normal(s).astype(d), device)) for s, d in shapes]
        if not (op.capturable([t._data for t in given[0]]) if callable(op.capturable) else op.capturable):
            captured(given[0], *cotangents)
            with pytest.raises(CaptureError, match=f"{op.name}, where a shape depends on values"):
                captured(given[0], *cotangents)
            return
        for turn in (0, 0, 1, 2, 0):
            if [a.shape for a in arrays[turn]] != [a.shape for a in arrays[0]]:
                continue
            expected, expected_gradients = run(given[turn], *cotangents)
            found, gradients = captured(given[turn], *cotangents)
            for a, b in zip([*expected, *expected_gradients], [*found, *gradients], strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                assert a.numpy().tobytes() == b.numpy().tobytes()
