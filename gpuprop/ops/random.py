"""Random numbers as functions of a key (seed, base, offset), and dropout. Users draw through `gp.rand` and its kin.

`base` is an array on the device, `seed` and `offset` are Python ints: a call on the tape can be computed again, and a
recorded step draws anew on each replay by advancing the base. The words are Philox's (`_philox.py`); a word is two
32-bit lanes, the lower half first. Words, lanes, uniforms, integers, masks and permutations have the same bits on
every device. Normals come from logarithms, sines and cosines, which NumPy computes within 4 units in the last place and
CUDA within 2: they are within 8 of their radius.
"""

from __future__ import annotations

import math

import numpy as np

from .._op import op
from .._philox import WORDS_PER_BLOCK, high_product
from ..cuda import random as kernels
from ..device import HOST
from ..errors import DtypeError, OptionError
from ..testing import SHAPES, Draw, ErrorSample, Sample

LANES_PER_BLOCK = 2 * WORDS_PER_BLOCK
FEISTEL_ROUNDS = LANES_PER_BLOCK  # a permutation takes one block, a lane per round
# Below 256 numbers eight rounds mix badly: of 5 numbers in 16, permutations differed in frequency by 10 %; in 256 they are
# as even as 60,000 draws can tell.
LEAST_HALF_BITS = 4


def blocks_of_lanes(count: int) -> int:
    """How many blocks of the stream `count` lanes take."""
    return -(-count // LANES_PER_BLOCK)


def blocks_of_words(count: int) -> int:
    """How many blocks of the stream `count` words take."""
    return -(-count // WORDS_PER_BLOCK)


def blocks_of_floats(count: int, dtype: np.dtype) -> int:
    """How many blocks of the stream `count` uniform or normal numbers take."""
    return blocks_of_words(count + count % 2) if dtype.itemsize == 8 else blocks_of_lanes(count)


def _lanes(xp, base, seed, offset, count):
    # Never on Tensors, so the method is no loss: numbers that are drawn are not differentiated.
    return xp.philox(base, seed, offset, -(-count // 2)).view(xp.uint32)[:count]


def _keys(draw: Draw):
    for base, seed, offset in [(0, 0, 0), (7, 123, 2**40), (2**63 + 5, 2**64 - 1, 9)]:
        yield np.array([base], np.uint64), {"seed": seed, "offset": offset}


def _drawn(draw: Draw, **options):
    for base, key in _keys(draw):
        for shape in SHAPES:
            yield Sample(base, order=0, shape=shape, **options, **key)


# --- Numbers --------------------------------------------------------------------------------------------------------


def _floats(draw: Draw):
    for dtype in (np.float16, np.float32, np.float64):
        yield from _drawn(draw, dtype=np.dtype(dtype))


def _not_floating(draw: Draw):
    for base, key in _keys(draw):
        yield ErrorSample(base, shape=(2,), dtype=np.dtype(np.int32), **key, error=DtypeError, match="int32")


SIGNIFICAND = {2: 11, 4: 24, 8: 53}  # bits by itemsize


def _bits(xp, base, seed, offset, count, dtype):
    """What numbers of a dtype are made of, words for float64 and lanes for narrower ones; and how many bits each has."""
    if dtype.itemsize == 8:
        return xp.philox(base, seed, offset, count), 64
    return _lanes(xp, base, seed, offset, count), 32


def _check_floating(name, dtype):
    if dtype.kind != "f":
        raise DtypeError(f"{name}: expected float16, float32 or float64, got {dtype}")


@op(samples=_floats, errors=_not_floating, smooth=False)
def random_uniform(xp, base, *, shape, dtype, seed, offset):
    """Uniform numbers in [0, 1): y = k / 2^b with as many random bits b as the dtype's significand holds.

    b is 24 in float32 and 11 in float16, k a lane's upper bits; in float64 b is 53, k a word's upper bits.
    Shapes: base (1,) uint64 -> y `shape`.
    """
    _check_floating("random_uniform", dtype)
    drawn, width = _bits(xp, base, seed, offset, math.prod(shape), dtype)
    bits = SIGNIFICAND[dtype.itemsize]
    return xp.reshape(xp.asarray(drawn >> (width - bits), dtype=dtype) * 2.0**-bits, shape)


@op(samples=_floats, errors=_not_floating, smooth=False)
def random_normal(xp, base, *, shape, dtype, seed, offset):
    """Standard normal numbers, in pairs: y = sqrt(-2 log(u)) (cos(2 pi v), sin(2 pi v)).

    u = (lane + 1) / 2^32 and v = (next lane >> 8) / 2^24 in float32 (float16 is rounded from it), so that |y| < 6.7;
    u = ((word >> 11) + 1) / 2^53 and v = (next word >> 11) / 2^53 in float64, so that |y| < 8.6.
    Shapes: base (1,) uint64 -> y `shape`.
    Source: Box and Muller 1958, Annals of Mathematical Statistics 29, eq. 1.
    """
    _check_floating("random_normal", dtype)
    count = math.prod(shape)
    drawn, width = _bits(xp, base, seed, offset, count + count % 2, dtype)
    kind = np.dtype(np.float64 if width == 64 else np.float32)
    fine, coarse = min(width, 53), SIGNIFICAND[kind.itemsize]
    u = (xp.asarray(drawn[::2] >> (width - fine), dtype=kind) + 1) * 2.0**-fine
    angle = xp.asarray(drawn[1::2] >> (width - coarse), dtype=kind) * (2 * math.pi * 2.0**-coarse)
    radius = xp.sqrt(-2 * xp.log(u))
    pairs = xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=-1)
    return xp.reshape(xp.asarray(xp.reshape(pairs, (-1,))[:count], dtype=dtype), shape)


def _ranges(draw: Draw):
    yield from _drawn(draw, low=-3, high=8, dtype=np.dtype(np.int64))
    yield from _drawn(draw, low=-(2**63), high=2**63 - 1, dtype=np.dtype(np.int64))
    yield from _drawn(draw, low=0, high=200, dtype=np.dtype(np.uint8))


def _no_range(draw: Draw):
    for base, key in _keys(draw):
        for low, high, dtype, error, match in [
            (3, 3, np.int64, OptionError, "low < high.*3 and 3"),
            (0, 300, np.uint8, OptionError, "uint8.*300"),
            (0, 3, np.float32, DtypeError, "float32"),
        ]:
            options = {"low": low, "high": high, "dtype": np.dtype(dtype), "shape": (2,), **key}
            yield ErrorSample(base, error=error, match=match, **options)


@op(samples=_ranges, errors=_no_range, smooth=False)
def random_integers(xp, base, *, low, high, shape, dtype, seed, offset):
    """Integers from low to high - 1: y = low + floor(word (high - low) / 2^64).

    No value is more likely than another by more than (high - low) / 2^64 of its probability.
    Shapes: base (1,) uint64 -> y `shape`. Raises: OptionError for an empty range, or one that the dtype does not hold.
    """
    if dtype.kind not in "iu":
        raise DtypeError(f"random_integers: expected an integer dtype, got {dtype}")
    if not low < high:
        raise OptionError(f"random_integers: expected low < high, got {low} and {high}")
    limits = np.iinfo(dtype)
    if low < limits.min or high - 1 > limits.max:
        raise OptionError(f"random_integers: expected a range within {dtype}, got {low} to {high}")
    above = high_product(xp.philox(base, seed, offset, math.prod(shape)), high - low)
    # Modulo 2^64, so that negative numbers come out right.
    return xp.reshape(xp.asarray(above + low % 2**64, dtype=dtype), shape)


random_uniform.cuda = kernels.uniform
random_normal.cuda = kernels.normal
random_integers.cuda = kernels.integers


# --- Permutations ---------------------------------------------------------------------------------------------------


def _mixed(x):
    """A bijection of uint32 in which each bit of x changes each bit of the result with probability close to 1/2.

    Source: Appleby 2011, MurmurHash3, the 32-bit finaliser.
    """
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


def _feistel(x, half_bits, keys):
    """A keyed bijection of the numbers below 4^half_bits. Shapes: x (M,) uint32, keys (8,) uint32."""
    mask = 2**half_bits - 1
    left, right = x >> half_bits, x & mask
    for i in range(FEISTEL_ROUNDS):
        left, right = right, left ^ (_mixed(right + keys[i : i + 1]) & mask)
    return (left << half_bits) | right


def _half_bits(n):
    return max(LEAST_HALF_BITS, -(-max(n - 1, 0).bit_length() // 2))


def _sizes(draw: Draw):
    for base, key in _keys(draw):
        for n in (0, 1, 2, 4, 5, 16, 17, 1000):
            yield Sample(base, order=0, n=n, **key)


def _bad_sizes(draw: Draw):
    for base, key in _keys(draw):
        yield ErrorSample(base, n=-1, **key, error=OptionError, match="from 0.*-1")


@op(samples=_sizes, errors=_bad_sizes, smooth=False)
def random_permutation(xp, base, *, n, seed, offset):
    """A permutation of 0, ..., n - 1: y_i = the first of f(i), f(f(i)), ... below n.

    f is a bijection of the numbers below the next power of four, at least 256: a Feistel network of 8 rounds, keyed by
    the lanes of one block.
    Shapes: base (1,) uint64 -> y (n,) int64. Raises: OptionError unless 0 <= n <= 2^31.
    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 4 (cycle walking).
    """
    if not 0 <= n <= 2**31:
        raise OptionError(f"random_permutation: expected n from 0 to 2^31, got {n}")
    half_bits = _half_bits(n)
    keys = _lanes(xp, base, seed, offset, FEISTEL_ROUNDS)
    domain = xp.arange(4**half_bits, dtype=xp.uint32)
    image = xp.asarray(_feistel(domain, half_bits, keys), dtype=xp.int64)
    # Everyone's next hop, those below n staying where they are. Following it twice at once again and again ends all
    # walks without looking at values, as a GPU needs it: no walk is longer than there are numbers from n on.
    hop = xp.where(domain < n, xp.asarray(domain, dtype=xp.int64), image)
    for _ in range((4**half_bits - n).bit_length()):
        hop = hop[hop]
    return hop[image[:n]]


@random_permutation.cuda
def _(base, *, n, seed, offset, out=None):
    """Every walk by itself, and to its end at once."""
    if not 0 <= n <= 2**31:
        return NotImplemented
    return kernels.permutation(base, n, _half_bits(n), seed, offset, out)


# --- Dropout --------------------------------------------------------------------------------------------------------


def _dropped(draw: Draw):
    for base, key in _keys(draw):
        for shape in SHAPES:
            yield Sample(draw.normal(*shape), base, p=0.3, **key)
        yield Sample(draw.normal(2, 5), base, p=0.0, **key)
        yield Sample(draw.normal(2, 5), base, p=1.0, **key)


def _bad_probabilities(draw: Draw):
    for base, key in _keys(draw):
        yield ErrorSample(draw.normal(2), base, p=1.5, **key, error=OptionError, match="0 to 1.*1.5")


def check_probability(name, p):
    if not 0 <= p <= 1:
        raise OptionError(f"{name}: expected p from 0 to 1, got {p}")


def threshold_of(p):
    """An element stays where its lane is below this: (1 - p) of a lane's 2^32 values, rounded."""
    return round((1 - p) * 2**32)


def _kept(xp, shape, base, p, seed, offset):
    """Which elements stay."""
    threshold = threshold_of(p)
    drawn = xp.reshape(_lanes(xp, base, seed, offset, math.prod(shape)), shape)
    return drawn <= threshold - 1 if threshold else drawn != drawn


def scale_of(p):
    """What the elements that stay are multiplied by."""
    return 1 / (1 - p) if p < 1 else 0.0


@op(samples=_dropped, errors=_bad_probabilities)
def dropout(xp, x, base, *, p, seed, offset):
    """Inverted dropout: y = x / (1 - p) with probability 1 - p, else 0.

    Shapes: x (...), base (1,) uint64 -> y (...). Equal (seed, base, offset) drop the same elements.
    The mask is not kept but drawn again where the gradient needs it.
    Raises: OptionError unless 0 <= p <= 1.
    Source: Srivastava et al. 2014, JMLR 15, section 10.
    """
    check_probability("dropout", p)
    return x * _kept(xp, x.shape, base, p, seed, offset) * scale_of(p)


@dropout.grad("x")
def _(xp, dy, base, *, p, seed, offset):
    return dropout(xp, dy, base, p=p, seed=seed, offset=offset)


@dropout.cpu(residuals=["kept"])
def _(x, base, *, keep, p, seed, offset, out=None):
    """On a CPU drawing costs more than remembering one byte per element."""
    if not 0 <= p <= 1 or not x.ndim or x.dtype.kind != "f":
        return NotImplemented
    kept = _kept(HOST.xp, x.shape, base, p, seed, offset)
    y = np.multiply(x, kept, out=out)
    y *= scale_of(p)
    return y, kept


@dropout.cpu.grad("x")
def _(dy, kept, *, p, out=None):
    dx = np.multiply(dy, kept, out=out)
    dx *= scale_of(p)
    return dx


@dropout.cuda
def _(x, base, *, p, seed, offset, out=None):
    """One pass; the mask is never written."""
    if not 0 <= p <= 1:
        return NotImplemented
    return kernels.dropout(x, base, threshold_of(p), scale_of(p), seed, offset, out)


@dropout.cuda.grad("x")
def _(dy, base, *, p, seed, offset, out=None):
    return kernels.dropout(dy, base, threshold_of(p), scale_of(p), seed, offset, out)
