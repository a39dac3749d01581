"""Random kernels against the rules on the host: words, numbers, masks and permutations have the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.device import HOST, backend_for, require
from gpuprop.ops.random import dropout, random_integers, random_normal, random_permutation, random_uniform

pytestmark = pytest.mark.cuda

SIZES = [0, 1, 3, 31, 33, 1000, 1025]
KEYS = [(0, 0, 0), (7, 123, 2**40), (2**64 - 9, 2**64 - 1, 12)]  # base, seed, offset
every_key = pytest.mark.parametrize("base, seed, offset", KEYS)


@pytest.fixture
def cuda():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    return backend_for(require("cuda"))


def on_device(cuda, array):
    return cuda.asarray(array, require("cuda"))


def both(cuda, op, base, **options):
    """What the kernel draws, on the host, and what the rule draws there."""
    host = np.array([base], np.uint64)
    drawn = op.cuda.implementation.forward(on_device(cuda, host), **options)
    return cuda.to_host(drawn), op.rule(HOST.xp, host, **options)


def assert_same_bits(actual, expected):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(actual.view(np.uint8), expected.view(np.uint8))


@every_key
def test_words(cuda, base, seed, offset):
    host = np.array([base], np.uint64)
    for count in SIZES:
        drawn = cuda.to_host(cuda.xp.philox(on_device(cuda, host), seed, offset, count))
        assert_same_bits(drawn, HOST.xp.philox(host, seed, offset, count))


@every_key
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_uniform_numbers(cuda, base, seed, offset, dtype):
    for n in SIZES:
        actual, expected = both(cuda, random_uniform, base, seed=seed, offset=offset, shape=(n,), dtype=np.dtype(dtype))
        assert_same_bits(actual, expected)


@every_key
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_normal_numbers_are_within_8_ulp_of_their_radius(cuda, base, seed, offset, dtype):
    for n in SIZES:
        options = {"seed": seed, "offset": offset, "dtype": np.dtype(dtype)}
        actual, expected = both(cuda, random_normal, base, shape=(n,), **options)
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        pairs = random_normal.rule(HOST.xp, np.array([base], np.uint64), shape=(n + n % 2,), **options).astype(float)
        radius = np.repeat(np.hypot(pairs[::2], pairs[1::2]), 2)[:n]
        assert (np.abs(actual - pairs[:n]) <= 8 * np.finfo(dtype).eps * radius).all()


@every_key
@pytest.mark.parametrize(
    "dtype, low, high",
    [
        (np.int8, -128, 128),
        (np.uint8, 0, 200),
        (np.int16, -5, 7),
        (np.int32, -(2**31), 2**31),
        (np.int64, -3, 8),
        (np.int64, -(2**63), 2**63),
        (np.int64, 2**62, 2**63),
        (np.uint64, 1, 2**64),
    ],
)
def test_integers(cuda, base, seed, offset, dtype, low, high):
    for n in SIZES:
        options = {"seed": seed, "offset": offset, "shape": (n,), "dtype": np.dtype(dtype), "low": low, "high": high}
        assert_same_bits(*both(cuda, random_integers, base, **options))


@every_key
def test_permutations(cuda, base, seed, offset):
    for n in [*SIZES, 2, 256, 257, 4097]:
        assert_same_bits(*both(cuda, random_permutation, base, seed=seed, offset=offset, n=n))


def test_numbers_are_drawn_where_one_asks_for_them(cuda):
    base = on_device(cuda, np.array([3], np.uint64))
    wide = cuda.xp.zeros((5, 14), np.float32)
    options = {"seed": 1, "offset": 2, "shape": (5, 7), "dtype": np.dtype(np.float32)}
    expected = random_uniform.cuda.implementation.forward(base, **options)
    for out in (cuda.xp.zeros((5, 7), np.float32), wide[:, ::2]):
        assert random_uniform.cuda.implementation.forward(base, out=out, **options) is out
        assert_same_bits(cuda.to_host(out).copy(), cuda.to_host(expected))


# --- Dropout --------------------------------------------------------------------------------------------------------


def dropped(cuda, x, p=0.3, base=5, seed=11, offset=2):
    """What the kernel makes of an array on the device, and what the rule makes of it on the host."""
    host, options = np.array([base], np.uint64), {"p": p, "seed": seed, "offset": offset}
    y = dropout.cuda.implementation.forward(x, on_device(cuda, host), **options)
    return cuda.to_host(y), dropout.rule(HOST.xp, cuda.to_host(x).copy(), host, **options)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout(cuda, dtype, p):
    for n in SIZES:
        x = np.random.default_rng(n).normal(size=n).astype(dtype)
        assert_same_bits(*dropped(cuda, on_device(cuda, x), p))
    assert_same_bits(*dropped(cuda, on_device(cuda, np.array(1.5, dtype).reshape(()))[None], p))


def test_dropout_in_16_bits_is_rounded_once(cuda):
    """The rule in float16 rounds 1 / (1 - p) first."""
    for n in SIZES:
        x = np.random.default_rng(n).normal(size=n).astype(np.float16)
        expected = dropped(cuda, on_device(cuda, x.astype(np.float32)))[1]
        assert_same_bits(dropped(cuda, on_device(cuda, x))[0], expected.astype(np.float16))


def test_dropout_in_bfloat16(cuda):
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    for n in SIZES:
        x = np.random.default_rng(n).normal(size=n).astype(bfloat16)
        expected = dropped(cuda, on_device(cuda, x.astype(np.float32)))[1]
        assert_same_bits(dropped(cuda, on_device(cuda, x))[0], expected.astype(bfloat16))


@pytest.mark.parametrize("layout", ["columns", "transposed", "misaligned"])
def test_dropout_of_any_layout(cuda, layout):
    x = on_device(cuda, np.random.default_rng(1).normal(size=(31, 66)).astype(np.float32))
    x = {"columns": x[:, ::2], "transposed": x.T, "misaligned": x.reshape(-1)[1:]}[layout]
    assert_same_bits(*dropped(cuda, x))


def test_dropout_hands_on_what_is_not_finite(cuda):
    x = np.array([np.nan, np.inf, -np.inf, 1.0] * 33, np.float32)
    with np.errstate(invalid="ignore"):
        actual, expected = dropped(cuda, on_device(cuda, x), 0.5)
    np.testing.assert_array_equal(actual, expected)
    assert np.isnan(actual).sum() > 33, "a dropped infinity is NaN, as in the rule"


def test_the_gradient_has_the_mask_of_the_forward_pass_and_may_overwrite_dy(cuda):
    (rule,) = dropout.cuda.implementation.gradients
    base = on_device(cuda, np.array([9], np.uint64))
    dy = on_device(cuda, np.random.default_rng(0).normal(size=(7, 35)).astype(np.float32))
    options = {"p": 0.4, "seed": 3, "offset": 1}
    expected = cuda.to_host(dropout.cuda.implementation.forward(dy, base, **options))
    assert rule.overwrites_dy == "out" and rule.function(dy, base, out=dy, **options) is dy
    assert_same_bits(cuda.to_host(dy), expected)


def test_a_base_that_moves_on_the_device_draws_anew(cuda):
    base = on_device(cuda, np.array([2**64 - 2], np.uint64))
    options = {"seed": 6, "offset": 4, "shape": (100,), "dtype": np.dtype(np.float64)}
    base += 3
    expected = random_uniform.rule(HOST.xp, np.array([1], np.uint64), **options)
    assert_same_bits(cuda.to_host(random_uniform.cuda.implementation.forward(base, **options)), expected)


def test_a_recorded_draw_is_anew_where_the_base_has_moved(cuda):
    base, x = on_device(cuda, np.array([0], np.uint64)), cuda.xp.ones(1000, np.float32)
    options = {"p": 0.5, "seed": 6, "offset": 4}
    dropout.cuda.implementation.forward(x, base, **options)  # compiles the kernel
    stream = cuda.xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            y = dropout.cuda.implementation.forward(x, base, **options)
        finally:
            graph = stream.end_capture()
        base += 7
        graph.launch(stream)
    stream.synchronize()
    expected = dropout.rule(HOST.xp, np.ones(1000, np.float32), np.array([7], np.uint64), **options)
    assert_same_bits(cuda.to_host(y), expected)
