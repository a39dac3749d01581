"""Every kernel made by `elementwise` against its op's rule in float64: values and gradients, at every size, dtype and layout."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop._op import REGISTRY
from gpuprop.cuda import random
from gpuprop.cuda._elementwise import Dropout, Elementwise
from gpuprop.device import HOST, copy_to, require
from gpuprop.testing import Draw

pytestmark = pytest.mark.cuda

DTYPES = ["float32", "float64", "float16", "bfloat16"]
SIZES = [0, 1, 3, 31, 33, 1000, 1025]


def bound_ops():
    for op in REGISTRY.values():
        twin = op.cuda.implementation
        if twin is not None and type(twin.binder) is Elementwise:  # those that learn: test_learnt_kernels.py
            yield op


def cases():
    """Each op with each set of options that its samples name."""
    for op in bound_ops():
        seen = []
        for sample in op.samples(Draw()):
            options = {**op.defaults, **sample.options}
            if options not in seen:
                seen.append(options)
                yield pytest.param(
                    op, options, id="-".join([op.name, *(f"{k}={v}" for k, v in sample.options.items())])
                )


every_case = pytest.mark.parametrize("op, options", list(cases()))
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def cuda():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def rounded(options, dtype):
    """Options as the kernel gets them, so that both compute the same function."""
    narrow = np.float64 if dtype == np.float64 else np.float32
    return {k: float(narrow(v)) if isinstance(v, float) else v for k, v in options.items()}


def on_the_device(host):
    return copy_to(host, require("cuda"))


def forward(op, x, options):
    return op.cuda.implementation.forward(on_the_device(x), **options).get()


def backward(op, dy, kept, options):
    (rule,) = op.cuda.implementation.gradients
    return rule.function(on_the_device(dy), on_the_device(kept), **options).get()


class Rule:
    """The op's own rules, in float64."""

    def __init__(self, op, options):
        self.op, self.options = op, options
        (self.gradient,) = op.gradients
        self.keeps_x = self.gradient.keeps == ("x",)

    def forward(self, x):
        with np.errstate(all="ignore"):
            return self.op.rule(HOST.xp, np.asarray(x, np.float64), **self.options)

    def backward(self, dy, kept):
        options = {name: self.options[name] for name in self.gradient.options}
        with np.errstate(all="ignore"):
            return self.gradient.function(HOST.xp, np.asarray(dy, np.float64), np.asarray(kept, np.float64), **options)


def points(dtype, count=4000):
    """Both signs, from the smallest normal numbers to where everything saturates, dense where functions bend."""
    rng = np.random.default_rng(3)
    magnitudes = [10.0 ** rng.uniform(-6, 1, count), rng.uniform(0, 9, count), rng.uniform(0, 100, count), [0.0, 3e4]]
    x = np.concatenate([sign * np.asarray(m) for m in magnitudes for sign in (1, -1)])
    return x.astype(dtype)


def kept_points(rule, x):
    return x if rule.keeps_x else rule.forward(x).astype(x.dtype)


# --- Precision ------------------------------------------------------------------------------------------------------


def ulps(actual, expected, scale, dtype):
    """Errors in units in the last place of `scale`, where the result is a normal number; the number of these."""
    info = np.finfo(dtype)
    normal = (np.abs(expected) >= info.tiny) & (np.abs(expected) <= info.max)
    unit = np.spacing(np.abs(scale).astype(dtype)).astype(np.float64)
    return (np.abs(actual.astype(np.float64) - expected) / unit)[normal]


@every_case
def test_values_are_right_to_the_last_places(op, options):
    """float32: 4 ulp. Where exp, erfcx and a division compound, each with an ulp or two of its own, 8."""
    options = rounded(options, np.float32)
    rule, x = Rule(op, options), points(np.float32)
    expected = rule.forward(x)
    errors = ulps(forward(op, x, options), expected, expected, np.float32)
    assert len(errors) > 1000
    assert errors.max() <= (8 if compounds(op) else 4)


@every_case
def test_gradients_are_right_to_the_last_places(op, options):
    """As values. Beside a root of the gradient (silu's at -1.28), where it is a difference of terms, in ulp of the values around."""
    options = rounded(options, np.float32)
    rule, x = Rule(op, options), points(np.float32)
    kept, dy = kept_points(rule, x), np.random.default_rng(4).standard_normal(x.shape).astype(np.float32)
    expected = rule.backward(dy, kept)
    scale = expected
    if rule.keeps_x:
        nearer, farther = rule.backward(dy, 0.75 * kept), rule.backward(dy, 1.25 * kept)
        scale = np.where(nearer * farther < 0, np.maximum(np.abs(nearer), np.abs(farther)), expected)
    errors = ulps(backward(op, dy, kept, options), expected, scale, np.float32)
    assert len(errors) > 1000
    assert errors.max() <= (8 if compounds(op) else 4)


def compounds(op):
    """Whether an exponential, a polynomial or logarithm of it, and a division follow each other, up to 2 ulp each."""
    return op.name in ("softplus", "gelu", "silu", "mish")


# --- Sizes, dtypes, layouts, and what is not a number ---------------------------------------------------------------


def assert_agrees(actual, expected, dtype):
    """Within 8 units of the dtype; float64 within 1e-13, because the rule itself rounds what it exponentiates."""
    assert actual.dtype == dtype
    eps = {"float64": 1e-13 / 8, "float32": 2.0**-23, "float16": 2.0**-10 / 8, "bfloat16": 2.0**-7 / 8}[dtype.name]
    with np.errstate(over="ignore"):
        expected = expected.astype(dtype).astype(np.float64)  # what is too large is infinite, as the kernel's is
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=8 * eps, atol=8 * eps)


def assert_kernels_agree(op, options, dy, x, place):
    options = rounded(options, x.dtype)
    rule = Rule(op, options)
    kept = kept_points(rule, x)
    implementation = op.cuda.implementation
    y = implementation.forward(place(x), **options)
    dx = implementation.gradients[0].function(place(dy), place(kept), **options)
    assert_agrees(y.get(), rule.forward(x), x.dtype)
    assert_agrees(dx.get(), rule.backward(dy, kept), x.dtype)


def draw(shape, dtype):
    rng = np.random.default_rng(5)
    return (rng.standard_normal(shape)).astype(dtype), (4 * rng.standard_normal(shape)).astype(dtype)


@every_dtype
@every_case
def test_every_size(op, options, dtype):
    for size in SIZES:
        assert_kernels_agree(op, options, *draw((size,), dtype_of(dtype)), on_the_device)


def transposed(host):
    return on_the_device(np.ascontiguousarray(host.T)).T


def every_second(host):
    return on_the_device(np.repeat(host, 2, axis=-1))[..., ::2]


def unaligned(host):
    """In C order, but starting 2 to 8 bytes behind a multiple of 16."""
    place = on_the_device(np.zeros(host.size + 1, host.dtype))[1:].reshape(host.shape)
    place[...] = on_the_device(host)
    return place


@pytest.mark.parametrize("layout", [transposed, every_second, unaligned])
@every_dtype
@every_case
def test_every_layout(op, options, dtype, layout):
    assert_kernels_agree(op, options, *draw((31, 33), dtype_of(dtype)), layout)


@every_dtype
@every_case
def test_what_is_no_number_passes_as_in_the_rule(op, options, dtype):
    """NaN and infinities in x, against each cotangent; and the same in dy, at points where no derivative underflows."""
    dtype = dtype_of(dtype)
    strange = np.array([np.nan, np.inf, -np.inf])
    usual = np.array([0.0, 1.0, -1.0, 5.0, -5.0, 100.0, -100.0])
    x = np.concatenate([np.repeat(strange, usual.size), np.tile(usual[:5], 3)]).astype(dtype)
    dy = np.concatenate([np.tile(usual, 3), np.repeat(strange, 5)]).astype(dtype)
    assert_kernels_agree(op, options, dy, x, on_the_device)


@every_dtype
@every_case
def test_results_are_written_where_they_are_wanted(op, options, dtype):
    """Into `out`, which may be dy itself or what no kernel could write to in packs; the values are the same to the bit."""
    dy, x = draw((31, 33), dtype_of(dtype))
    options = rounded(options, x.dtype)
    kept = kept_points(Rule(op, options), x)
    function = op.cuda.implementation.gradients[0].function
    expected = function(on_the_device(dy), on_the_device(kept), **options).get()
    for place in (on_the_device, transposed, unaligned):
        out = place(dy)
        result = function(out, on_the_device(kept), out=out, **options)
        assert result is out
        np.testing.assert_array_equal(out.get(), expected)


@every_dtype
@every_case
def test_dropout_in_the_pass_of_a_bias(op, options, dtype):
    """What dropout makes of y and of dy in a pass of its own: the same bits, but for the gradient where y is computed again."""
    import cupy

    binder, dtype = op.cuda.implementation.binder, dtype_of(dtype)
    key = {
        "base": on_the_device(np.array([3], np.uint64)),
        "threshold": 2**31,
        "scale": 2.0,
        "seed": 5,
        "offset": 2**33,
    }
    for shape in [(3, 7), (33, 12), (700, 136)]:
        dy, x = map(on_the_device, draw(shape, dtype))
        bias = on_the_device(draw(shape[1:], dtype)[1])
        fused, y, dx, expected_dx = (cupy.empty_like(x) for _ in range(4))
        db, expected_db = cupy.empty_like(bias), cupy.empty_like(bias)
        binder.bias_forward(x, bias, fused, Dropout(**key), **options)
        binder.bias_forward(x, bias, y, **options)
        np.testing.assert_array_equal(fused.get(), random.dropout(y, **key).get())

        kept = {"x": x, "y": fused}[binder.keeps_of(True)]
        binder.bias_backward(dy, kept, bias, dx, db, Dropout(**key), **options)
        kept = {"x": x, "y": y}[binder.keeps]
        binder.bias_backward(random.dropout(dy, **key), kept, bias, expected_dx, expected_db, **options)
        if binder.keeps_of(True) == binder.keeps:
            np.testing.assert_array_equal(dx.get(), expected_dx.get())
            np.testing.assert_array_equal(db.get(), expected_db.get())
        else:
            assert_agrees(dx.get(), expected_dx.get().astype(np.float64), dtype)


def test_indices_of_32_bits_hold_a_stride_beyond_the_last_element():
    """A loop adds the stride of its grid to its index until that is no element's."""
    from gpuprop.cuda import launch

    count = launch.FAR - 1
    assert (launch.index_type(count), launch.index_type(count + 1)) == ("int", "long long")
    assert type(launch.index(count)) is np.int32
    for each in (1, 2, 4, 8, 16):  # bytes of an element
        assert count + launch.blocks_for(count, each) * launch.THREADS < 2**31


def test_ops_with_kernels_are_found():
    assert len(list(bound_ops())) >= 16
