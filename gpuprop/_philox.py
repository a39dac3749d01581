"""Philox4x64-10: random words that are a function of a counter and a key, the same bits on every device.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; as in `numpy.random.Philox`.

A block of four words belongs to each counter, so that any part of the stream can be computed by itself: nothing but
(seed, base, offset) has to be kept to draw the same numbers again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._trace import primitive

WORDS_PER_BLOCK = 4
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10
LOW_HALF = 0xFFFFFFFF
PERIOD = 2**64  # of seeds and of counters


def high_product(a: Any, b: int) -> Any:
    """The upper 64 bits of the 128-bit products a * b. Shapes: a (...) uint64, b a Python int below 2^64."""
    low, high, b_low, b_high = a & LOW_HALF, a >> 32, b & LOW_HALF, b >> 32
    middle, other = high * b_low, low * b_high
    carry = ((low * b_low) >> 32) + (middle & LOW_HALF) + (other & LOW_HALF)
    return high * b_high + (middle >> 32) + (other >> 32) + (carry >> 32)


def words(xp: Any, base: Any, seed: int, offset: int, count: int) -> Any:
    """The first `count` words of the blocks after base + offset, in the arithmetic of any array library.

    Shapes: base (1,) uint64 -> (count,) uint64. Block i has the counter base + offset + 1 + i, and the key (seed, 0).
    """
    blocks = -(-count // WORDS_PER_BLOCK)
    a = xp.arange(blocks, dtype=xp.uint64) + base + (offset + 1) % PERIOD
    b = c = d = xp.zeros_like(a)
    key, other_key = seed, 0
    for _ in range(ROUNDS):
        a, b, c, d = (
            high_product(c, MULTIPLIERS[1]) ^ b ^ key,
            c * MULTIPLIERS[1],
            high_product(a, MULTIPLIERS[0]) ^ d ^ other_key,
            a * MULTIPLIERS[0],
        )
        key, other_key = (key + KEY_STEPS[0]) % PERIOD, (other_key + KEY_STEPS[1]) % PERIOD
    return xp.reshape(xp.stack([a, b, c, d], axis=-1), (-1,))[:count]


@primitive
def host_words(base: np.ndarray, seed: int, offset: int, count: int) -> np.ndarray:
    """`words` by NumPy's own generator, which takes 3 ns per word where array arithmetic takes 50."""
    return np.random.Philox(key=seed, counter=(int(base[0]) + offset) % PERIOD).random_raw(count)
