"""Random numbers: NumPy's Philox bit for bit, distributions, generators, dropout's mask, permutations."""

from __future__ import annotations

import copy
import math
import pickle
import threading

import numpy as np
import pytest
from scipy import stats

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import _philox
from gpuprop.device import HOST, backend_for, require
from gpuprop.errors import ArgumentError, DeviceError, DtypeError, MutationError, OptionError
from gpuprop.testing import check_gradients

PLACES = [(0, 0, 0), (12345, 7, 3), (2**64 - 1, 2**63, 5), (5, 2**40, 2**63 - 1)]


@pytest.fixture(autouse=True)
def from_the_start():
    gp.manual_seed(0)


# --- Words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "base", "offset"), PLACES)
def test_words_are_those_of_numpy(seed, base, offset):
    for count in (0, 1, 4, 5, 1003):
        expected = np.random.Philox(key=seed, counter=base + offset).random_raw(count)
        at = np.array([base], np.uint64)
        np.testing.assert_array_equal(_philox.words(np, at, seed, offset, count), expected)
        np.testing.assert_array_equal(_philox.host_words(at, seed, offset, count), expected)


@pytest.mark.parametrize(("seed", "base", "offset"), PLACES)
def test_words_are_the_same_on_every_device(seed, base, offset, device):
    backend = backend_for(require(device))
    at = backend.asarray(np.array([base], np.uint64), require(device))
    expected = np.random.Philox(key=seed, counter=base + offset).random_raw(1003)
    for words in (backend.xp.philox(at, seed, offset, 1003), _philox.words(backend.xp, at, seed, offset, 1003)):
        np.testing.assert_array_equal(backend.to_host(words), expected)


def test_upper_half_of_a_product():
    a = [0, 1, 2**32 - 1, 2**32, 2**63 + 12345, 2**64 - 1]
    for b in (1, 3, 2**32 + 7, 2**64 - 1):
        np.testing.assert_array_equal(
            _philox.high_product(np.array(a, np.uint64), b), np.array([x * b >> 64 for x in a], np.uint64)
        )


# --- Numbers --------------------------------------------------------------------------------------------------------


def raw(count, seed=0, position=0):
    return np.random.Philox(key=seed, counter=position).random_raw(count)


def test_numbers_are_made_of_words_as_documented(device):
    lanes = raw(6).view(np.uint32)
    np.testing.assert_array_equal(gp.rand(3, 4).numpy(), (lanes[:12] >> 8).reshape(3, 4).astype(np.float32) / 2**24)
    words = raw(5, position=2)  # twelve lanes were two blocks
    np.testing.assert_array_equal(gp.rand(5, dtype=np.float64).numpy(), (words >> 11) / 2.0**53)
    words = raw(3, position=4)
    expected = [-5 + (int(w) * 17 >> 64) for w in words]
    np.testing.assert_array_equal(gp.randint(-5, 12, (3,)).numpy(), expected)
    lanes = raw(2, position=5).view(np.uint32).astype(np.float64)
    radius = np.sqrt(-2 * np.log((lanes[[0, 0, 2, 2]] + 1) / 2**32))
    turns = (lanes[[1, 1, 3, 3]] // 256) / 2**24 * 2 * np.pi
    expected = radius * [np.cos(turns[0]), np.sin(turns[0]), np.cos(turns[2]), np.sin(turns[2])]
    assert (np.abs(gp.randn(4).numpy() - expected) <= 8 * np.finfo(np.float32).eps * radius).all()
    assert gp.default_generator(device).get_state() == {"seed": 0, "position": 6}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_distributions(dtype):
    u = gp.rand(20_000, dtype=dtype).numpy()
    assert u.dtype == dtype and u.min() >= 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    z = gp.randn(200, 101, dtype=dtype).numpy()
    assert z.dtype == dtype and np.isfinite(z).all()
    assert stats.kstest(z.ravel().astype(float) + (dtype == np.float16) * 1e-4, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z.ravel()[::2], z.ravel()[1::2])[0, 1]) < 0.03
    shifted = gp.normal(3.0, 0.5, (20_000,), dtype=dtype).numpy()
    np.testing.assert_allclose([shifted.mean(dtype=float), shifted.std(dtype=float)], [3, 0.5], atol=0.02)


def test_integers_cover_their_range_evenly():
    counts = np.bincount(gp.randint(7, (70_000,)).numpy(), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert gp.randint(-1, 1, (100,), dtype=np.int8).numpy().tolist().count(-1) in range(25, 76)
    wide = gp.randint(-(2**63), 2**63 - 1, (1000,)).numpy()
    assert (wide < 0).sum() in range(400, 601)


def test_the_largest_lane_gives_the_smallest_radius():
    """u = 1 has logarithm 0, and u = 2^-32 the largest radius; neither overflows, in float16 either."""

    class Extremes:
        def __getattr__(self, name):
            return getattr(np, name)

        @staticmethod
        def philox(base, seed, offset, count):
            return np.array([2**64 - 1, 0] * count, np.uint64)[:count]

    options = {"shape": (4,), "seed": 0, "offset": 0}
    for dtype, largest in ((np.float16, 6.66), (np.float32, 6.6604), (np.float64, 8.5717)):
        z = gp.numpy.random_normal.rule(Extremes(), None, dtype=np.dtype(dtype), **options)
        assert np.isfinite(z).all() and z.dtype == dtype
        if dtype != np.float64:  # two lanes of a word make a pair: (1, 1), then (0, 0)
            np.testing.assert_allclose(np.abs(z), [0, 0, largest, 0], rtol=1e-3, atol=1e-6)


def test_shapes_dtypes_and_flags():
    assert gp.rand(2, 3).shape == gp.rand((2, 3)).shape == gp.rand([2, 3]).shape == (2, 3)
    assert gp.randn().shape == () and gp.rand(0, 3).shape == (0, 3) and gp.randint(0, 5, ()).shape == ()
    assert gp.randint(10, (2,)).dtype == gp.randperm(3).dtype == np.int64
    assert gp.randn(2, requires_grad=True).requires_grad and not gp.rand(2).requires_grad
    like = gp.zeros(2, 3, dtype=np.float64)
    assert gp.rand_like(like).dtype == gp.randn_like(like).dtype == np.float64 and gp.randn_like(like).shape == (2, 3)
    assert gp.randint_like(gp.zeros(4, dtype=np.int32), 3).dtype == np.int32


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match=r"rand: expected a shape.*-1"):
        gp.rand(2, -1)
    with pytest.raises(ArgumentError, match="randint: expected a shape"):
        gp.randint(0, 10)
    with pytest.raises(OptionError, match="low < high"):
        gp.randint(5, 5, (2,))
    with pytest.raises(DtypeError, match="int64"):
        gp.rand(2, dtype=np.int64)
    with pytest.raises(OptionError, match="integer seed"):
        gp.manual_seed(1.5)
    with pytest.raises(OptionError, match="std >= 0"):
        gp.normal(0.0, -1.0, (2,))
    with pytest.raises(DeviceError, match="generator on guard, got one on cpu"):
        gp.rand(2, generator=gp.Generator("cpu"), device="guard")


# --- Generators -----------------------------------------------------------------------------------------------------


def test_one_seed_one_stream(device):
    first = [gp.rand(5).tolist(), gp.randint(9, (3,)).tolist(), gp.randperm(6).tolist()]
    gp.manual_seed(0)
    assert first == [gp.rand(5).tolist(), gp.randint(9, (3,)).tolist(), gp.randperm(6).tolist()]
    gp.manual_seed(1)
    assert gp.rand(5).tolist() != first[0]
    gp.manual_seed(-1)
    assert gp.default_generator().seed == 2**64 - 1
    own = gp.Generator(device, seed=0)
    assert gp.rand(5, generator=own).tolist() == first[0]


def test_a_generator_goes_on_where_it_was(device):
    generator = gp.Generator(seed=8)
    gp.randn(13, generator=generator)
    state = generator.get_state()
    copies = [copy.deepcopy(generator), pickle.loads(pickle.dumps(generator)), gp.Generator("cpu")]
    copies[-1].set_state(state)
    expected = gp.rand(7, generator=generator).tolist()
    assert [gp.rand(7, generator=c).tolist() for c in copies] == [expected] * 3
    generator.set_state(state)
    assert gp.rand(7, generator=generator).tolist() == expected
    with pytest.raises(ArgumentError, match="seed and position"):
        generator.set_state({"seed": 1})


def test_the_base_moves_on_the_device_and_counts(device):
    generator = gp.Generator(seed=2)
    place = generator.base.data
    generator.reserve(3)
    generator.advance(10)
    assert generator.base.data is place and generator.get_state()["position"] == 13
    expected = (raw(4, seed=2, position=13) >> 11) / 2.0**53
    np.testing.assert_array_equal(gp.rand(4, dtype=np.float64, generator=generator).numpy(), expected)
    generator.set_state({"seed": 2, "position": 4})
    expected = (raw(4, seed=2, position=4) >> 11) / 2.0**53
    np.testing.assert_array_equal(gp.rand(4, dtype=np.float64, generator=generator).numpy(), expected)


def test_threads_do_not_draw_the_same_numbers():
    generator, drawn = gp.Generator(seed=4), []

    def draw():
        drawn.extend(generator.reserve(2)[1] for _ in range(2000))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(drawn) == list(range(0, 16_000, 2))


# --- Permutations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 16, 17, 64, 65, 1000, 4097])
def test_permutations_hold_every_number_once(n, device):
    p = gp.randperm(n).numpy()
    assert p.dtype == np.int64
    np.testing.assert_array_equal(np.sort(p), np.arange(n))
    on_the_host = gp.numpy.random_permutation(np.zeros(1, np.uint64), n=n, seed=0, offset=0)
    np.testing.assert_array_equal(p, on_the_host)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_permutations_are_equally_likely(n):
    draws = 400 * math.factorial(n)
    rows = np.array([gp.randperm(n).numpy() for _ in range(draws)])
    counts = np.unique(rows @ 10 ** np.arange(n), return_counts=True)[1]
    assert len(counts) * 400 == draws
    assert stats.chisquare(counts).pvalue > 1e-3


def test_permutations_look_random():
    p = gp.randperm(20_000).numpy()
    assert abs(stats.spearmanr(np.arange(20_000), p).statistic) < 0.03
    assert abs(stats.spearmanr(p[:-1], p[1:]).statistic) < 0.03
    assert (p == np.arange(20_000)).sum() < 8  # on average one stays where it was


# --- Dropout --------------------------------------------------------------------------------------------------------


def test_the_mask_is_a_comparison_of_lanes(device):
    x = gp.ones(3, 5, dtype=np.float64)
    lanes = raw(8).view(np.uint32)[:15].reshape(3, 5)
    np.testing.assert_array_equal(F.dropout(x, 0.25).numpy(), (lanes < 0.75 * 2**32) / 0.75)
    assert gp.default_generator().get_state()["position"] == 2


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p):
    y = F.dropout(gp.ones(300, 201), p).numpy()
    assert abs((y == 0).mean() - p) < 0.01
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - p)], rtol=1e-6)


def test_certain_dropout(device):
    x = gp.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert F.dropout(x, 0.0) is x and F.dropout(x, 0.5, training=False) is x
    y = F.dropout(x, 1.0)
    y.sum().backward()
    np.testing.assert_array_equal(y.numpy(), 0)
    np.testing.assert_array_equal(x.grad.numpy(), 0)
    with pytest.raises(OptionError, match=r"p from 0 to 1.*1\.5"):
        F.dropout(x, 1.5)


def test_the_gradient_has_the_same_mask(device):
    x = gp.tensor(np.arange(1.0, 31.0).reshape(5, 6), requires_grad=True)
    generator = gp.Generator(seed=3)
    y = F.dropout(x, 0.4, generator=generator)
    gp.randn(100, generator=generator)  # what is drawn later does not matter
    generator.manual_seed(9)  # nor does where the generator goes
    dy = np.random.default_rng(0).normal(size=(5, 6))
    y.backward(gp.tensor(dy))
    np.testing.assert_allclose(x.grad.numpy(), dy * y.numpy() / x.numpy(), rtol=1e-12)


def test_neither_input_nor_mask_is_kept_where_it_can_be_drawn_again():
    from gpuprop.device import device_scope

    with device_scope(require("guard")):
        x = gp.ones(50, 3, requires_grad=True)
        kept = F.dropout(x, 0.5).grad_fn.kept
    assert max(k.size for k in kept if isinstance(k, gp.Tensor)) == 1


def test_a_base_that_moved_since_is_an_error_not_another_mask():
    from gpuprop.device import device_scope

    with device_scope(require("guard")):
        x, generator = gp.ones(5, 3, requires_grad=True), gp.Generator()
        y = F.dropout(x, 0.5, generator=generator).sum()
        generator.advance(1)
        with pytest.raises(MutationError, match="dropout"):
            y.backward()


def test_dropout_inside_other_computations():
    def f(x, w):
        generator = gp.Generator(seed=6)
        return (F.dropout(gp.numpy.exp(x) * w, 0.5, generator=generator) ** 2).sum()

    check_gradients(f, np.random.default_rng(1).normal(size=(4, 5)), np.random.default_rng(2).normal(size=5))


def test_the_implementation_gives_what_the_rule_gives():
    x, base = np.random.default_rng(1).normal(size=(7, 5)), np.array([3], np.uint64)
    options = {"p": 0.3, "seed": 11, "offset": 2}
    y, _ = gp.numpy.dropout.cpu.implementation.forward(x, base, keep=True, **options)
    np.testing.assert_array_equal(y, gp.numpy.dropout.rule(HOST.xp, x, base, **options))
