"""Declaring ops: what the contract refuses, when it is declared and not when it is called."""

import copy
import pickle

import numpy as np
import pytest

import gpuprop as gp
from gpuprop._op import REGISTRY
from gpuprop.errors import ArgumentError, DeclarationError, DeviceError, DtypeError, ShapeError
from gpuprop.testing import real_line, real_pairs


@pytest.fixture(autouse=True)
def forget_new_ops():
    before = set(REGISTRY)
    yield
    for name in set(REGISTRY) - before:
        del REGISTRY[name]


def declare_scaled(**options):
    @gp.op(samples=real_pairs, name="scaled", **options)
    def scaled(xp, x, weight=None, *, factor=2.0, axis=None):
        """y = factor * x * weight"""
        return x * factor if weight is None else x * factor * weight

    @scaled.grad("x")
    def _(xp, dy, weight, *, factor):
        return dy * factor if weight is None else dy * factor * weight

    return scaled


def test_an_op_is_called_by_users_in_rules_and_by_its_name():
    scaled = declare_scaled()
    x = gp.tensor([1.0, 2.0], requires_grad=True, device="cpu")
    for y in (scaled(x), gp.numpy.scaled(x, None), scaled(gp.numpy, x), scaled(x, factor=2.0), scaled(x, None, 2.0)):
        np.testing.assert_array_equal(y.numpy(), [2.0, 4.0])
        y.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), [2.0, 2.0])
        x.grad = None
    assert isinstance(scaled(np.ones(2)), np.ndarray)
    np.testing.assert_array_equal(scaled(np, np.ones(2), np.full(2, 3.0)), [6.0, 6.0])
    assert repr(scaled) == "<op scaled>" and "factor" in scaled.__doc__


@pytest.mark.parametrize(
    "arguments, options, error, match",
    [
        ((), {}, ArgumentError, "'x' is missing"),
        ((1.0,), {"scale": 3}, ArgumentError, "unknown argument 'scale'"),
        ((1.0, 2.0, 3.0, 4, 5), {}, ArgumentError, "at most"),
        ((1.0,), {"x": 2.0}, ArgumentError, "twice"),
        (("text",), {}, DtypeError, "str"),
        ((np.array(["a"]),), {}, DtypeError, "numbers"),
        ((np.ones(2), np.ones(3)), {}, ShapeError, r"scaled: .*broadcast.*float64 \(2,\), float64 \(3,\)"),
    ],
)
def test_wrong_calls_name_the_op(arguments, options, error, match):
    scaled = declare_scaled()
    with pytest.raises(error, match=match) as raised:
        scaled(*arguments, **options)
    assert str(raised.value).startswith("scaled: ")


def test_no_samples_no_op():
    with pytest.raises(DeclarationError, match="op: expected a function"):
        gp.op(3, samples=real_line)
    with pytest.raises(DeclarationError, match="no samples"):
        gp.op(lambda xp, x: x, samples=[np.ones(3)], name="unsampled")
    with pytest.raises(DeclarationError, match="no samples"):

        @gp.op
        def unsampled(xp, x):
            return x


def test_names_are_taken_once():
    declare_scaled()
    with pytest.raises(DeclarationError, match="exists already"):
        declare_scaled()


@pytest.mark.parametrize(
    "rule, match",
    [
        (lambda x: x, "`xp`"),
        (lambda xp: xp, "at least one array"),
        (lambda xp, x, mode="fast": x, "keyword-only"),
        (lambda xp, x, **rest: x, "options by name"),
    ],
)
def test_forward_rules_that_break_the_contract(rule, match):
    with pytest.raises(DeclarationError, match=match):
        gp.op(rule, samples=real_line, name="broken")


def test_gradient_rules_may_name_only_what_there_is():
    scaled = declare_scaled()
    with pytest.raises(DeclarationError, match="'z'"):

        @scaled.grad("weight")
        def _(xp, dy, z):
            return dy

    with pytest.raises(DeclarationError, match="no option"):

        @scaled.grad("weight")
        def _(xp, dy, x, *, speed):
            return dy

    with pytest.raises(DeclarationError, match="inputs x, weight"):
        scaled.grad("bias")(lambda xp, dy: dy)
    with pytest.raises(DeclarationError, match="already"):
        scaled.grad("x")(lambda xp, dy: dy)


def test_what_a_rule_names_is_what_is_kept():
    scaled = declare_scaled()
    x = gp.tensor([1.0, 2.0], requires_grad=True, device="cpu")
    assert scaled(x)._node.plan.kept_inputs == (1,)
    square = REGISTRY["square"]
    assert gp.numpy.exp(x)._node.plan.keeps_output and not gp.numpy.exp(x)._node.plan.kept_inputs
    assert gp.numpy.add(x, x)._node.kept == ()
    assert square(x)._node.plan.kept_inputs == (0,)


def test_an_implementation_replaces_the_rule_and_may_decline():
    scaled = declare_scaled()
    calls = []

    @scaled.cpu
    def _(x, weight, *, factor, axis, out=None):
        calls.append(x.dtype.name)
        return np.multiply(x, factor, out=out) if weight is None else NotImplemented

    x = gp.tensor([1.0, 2.0], requires_grad=True, device="cpu")
    np.testing.assert_array_equal(scaled(x, factor=3.0).numpy(), [3.0, 6.0])
    y = scaled(x, gp.tensor([1.0, 10.0], device="cpu"), factor=3.0)
    np.testing.assert_array_equal(y.numpy(), [3.0, 60.0])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 30.0])
    assert calls == ["float32", "float32"]


def test_residuals_serve_the_implementation_and_the_generic_rule_serves_second_derivatives():
    @gp.op(samples=real_line, name="cube_with_residual")
    def cube(xp, x):
        """y = x^3"""
        return x * x * x

    @cube.grad("x")
    def _(xp, dy, x):
        return 3 * dy * x * x

    kept = []

    @cube.cpu(residuals=["slope"])
    def _(x, *, keep, out=None):
        kept.append(keep)
        return (x * x * x, 3 * x * x) if keep else (x * x * x,)

    @cube.cpu.grad("x")
    def _(dy, slope, *, out=None):
        return np.multiply(dy, slope, out=out)

    x = gp.tensor([1.0, 2.0], dtype=gp.float64, requires_grad=True, device="cpu")
    cube(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 12.0])
    with gp.no_grad():
        cube(x)
    assert kept == [True, False]
    gp.testing.check_gradients(cube, x.numpy())


def test_residuals_beside_several_outputs():
    @gp.op(samples=real_line, name="square_and_double")
    def both(xp, x):
        """y = x^2, z = 2 x"""
        return x * x, 2 * x

    @both.grad("x")
    def _(xp, dy, x):
        return 2 * dy[0] * x + 2 * dy[1]

    @both.cpu(residuals=["slope"])
    def _(x, *, keep):
        return ((x * x, 2 * x), 2 * x) if keep else ((x * x, 2 * x),)

    @both.cpu.grad("x")
    def _(dy, slope):
        return dy[0] * slope + 2 * dy[1]

    x = gp.tensor([1.0, 3.0], dtype=gp.float64, requires_grad=True, device="cpu")
    y, z = both(x)
    (y + z).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 8.0])
    gp.testing.check_gradients(both, x.numpy())


def test_numpys_and_pytorchs_names_of_arguments_are_understood():
    x = np.array([-1.0, 0.5, 3.0])
    np.testing.assert_array_equal(gp.numpy.clip(x, a_min=0, a_max=1), np.clip(x, 0, 1))
    assert gp.numpy.sum(a=x) == gp.numpy.sum(x, dim=0, out=None) == 2.5
    with pytest.raises(ArgumentError, match="sum: unknown argument 'out'"):
        gp.numpy.sum(x, out=x)


def test_numbers_that_the_dtype_cannot_hold_and_nothing_at_all_are_refused():
    for wrong in (lambda: gp.arange(2) + 2**70, lambda: gp.ones(2) * 10**400, lambda: gp.numpy.split(gp.ones(2), 0)):
        with pytest.raises(ShapeError, match=r"(add|multiply|split): .*; got (int64|float32) \(2,\)"):
            wrong()
    with pytest.raises(ArgumentError, match="sum: expected tensors, arrays or numbers, got None"):
        gp.numpy.sum(None)
    with pytest.raises(ArgumentError, match="take: missing .*'indices'"):
        gp.numpy.take(gp.ones(2))


@pytest.mark.parametrize(
    "rule, gradient, match",
    [
        (lambda xp, x: None, None, r"sloppy: expected the rule to return an array .* got NoneType"),
        (lambda xp, x: [x, x], None, r"sloppy: expected the rule to return an array .* got list"),
        (lambda xp, x: x * 2, lambda xp, dy: None, r"sloppy: expected a gradient of shape \(3,\) for 'x', got None"),
        (lambda xp, x: x * 2, lambda xp, dy: xp.ones((7,)), r"sloppy: .*\(3,\) for 'x', got float64 \(7,\)"),
    ],
)
def test_rules_that_return_what_cannot_be_used_are_named(rule, gradient, match):
    sloppy = gp.op(rule, samples=real_line, name="sloppy")
    if gradient:
        sloppy.grad("x")(gradient)
    with pytest.raises((DtypeError, ShapeError), match=match):
        sloppy(gp.ones(3, requires_grad=True, device="cpu")).sum().backward()


def test_ops_are_pickled_and_copied_as_themselves():
    exp = gp.numpy.exp
    assert pickle.loads(pickle.dumps(exp)) is copy.deepcopy(exp) is exp


def test_arrays_of_different_devices_are_refused():
    with pytest.raises(DeviceError, match=r"add: expected arrays on one device.* on guard.*\.to\(device\)"):
        gp.ones(2, device="cpu") + gp.ones(2, device="guard")
