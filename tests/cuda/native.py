"""An op by its CUDA implementation, called directly: a generic rule in its place would be seen."""

from __future__ import annotations

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.device import HOST, backend_for, require
from gpuprop.tape import is_floating

try:
    import ml_dtypes  # with it, NumPy knows bfloat16 by its name
except ImportError:
    ml_dtypes = None

SIZES = [1, 3, 31, 33, 1000, 1025]
EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
without_bfloat16 = pytest.mark.skipif(ml_dtypes is None, reason="ml_dtypes is not installed")
DTYPES = [pytest.param("bfloat16", marks=without_bfloat16), "float16", "float32", "float64"]


def on_device(array, apart=False):
    """apart: the same values as a part of a larger array, in Fortran order."""
    if isinstance(array, tuple):
        return tuple(on_device(a, apart) for a in array)
    if apart:
        wide = np.zeros([2 * n for n in reversed(array.shape)], array.dtype)
        every_second = (..., *[slice(None, None, 2)] * array.ndim)
        wide[every_second] = array.T
        return on_device(wide)[every_second].T
    return backend_for(require("cuda")).asarray(array, require("cuda"))


def on_host(array):
    if isinstance(array, tuple):
        return tuple(map(on_host, array))
    return None if array is None else np.array(backend_for(require("cuda")).to_host(array))


def native(op, *inputs, dy=None, wanted=None, apart=False, **options):
    """(y, gradients by input name) by the op's implementation; dy: the cotangent, or ONE."""
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    made, options = op.cuda.implementation, {**op.defaults, **options}
    given = [on_device(v, apart) if isinstance(v, np.ndarray) else v for v in inputs]
    given += [None] * (len(op.inputs) - len(given))
    y = made.forward(*given, **options, **({"keep": dy is not None} if made.residuals else {}))
    assert y is not NotImplemented
    y, *residuals = y if made.residuals else (y,)
    if dy is None:
        assert not residuals, "nobody will differentiate"
        return on_host(y), {}
    known = dict(zip([*op.inputs, "y", *made.residuals], [*given, y, *residuals], strict=True))
    known |= {f"{name}_shape": getattr(known[name], "shape", None) for name in op.inputs}
    gradients = {}
    for rule in made.gradients:
        kept = {name: options[name] for name in rule.options}
        if rule.takes_wanted:
            kept["wanted"] = tuple(known[t] is not None and (wanted is None or t in wanted) for t in rule.targets)
        cotangent = on_device(dy, apart) if isinstance(dy, (np.ndarray, tuple)) else dy
        found = rule.function(cotangent, *[known[name] for name in rule.keeps], **kept)
        gradients |= zip(rule.targets, found if len(rule.targets) > 1 else (found,), strict=True)
    return on_host(y), {name: on_host(g) for name, g in gradients.items()}


def by_rule(op, *inputs, dy=None, **options):
    """The same by the generic rules, as they stand, on the host; broadcasting is undone."""
    options = {**op.defaults, **options}
    given = [*inputs, *[None] * (len(op.inputs) - len(inputs))]
    with np.errstate(all="ignore"):
        y = op.rule(HOST.xp, *given, **options)
        y = y if isinstance(y, tuple) else np.asarray(y)
        known = dict(zip([*op.inputs, "y"], [*given, y], strict=True))
        known |= {f"{name}_shape": getattr(known[name], "shape", None) for name in op.inputs}
        gradients = {}
        for rule in op.gradients if dy is not None else []:
            if not any(is_real(known[name]) for name in rule.targets):
                continue
            kept = {name: options[name] for name in rule.options}
            found = rule.function(HOST.xp, dy, *[known[name] for name in rule.keeps], **kept)
            for name, gradient in zip(rule.targets, found if len(rule.targets) > 1 else (found,), strict=True):
                if gradient is not None and is_real(known[name]):
                    gradient = np.broadcast_to(gradient, np.broadcast_shapes(gradient.shape, known[name].shape))
                    lead = gradient.ndim - known[name].ndim
                    axes = [
                        i for i in range(gradient.ndim) if i < lead or known[name].shape[i - lead] != gradient.shape[i]
                    ]
                    gradients[name] = gradient.sum(axis=tuple(axes)).reshape(known[name].shape)
    return y, gradients


def is_real(value):
    return isinstance(value, np.ndarray) and is_floating(value.dtype)


def double(values):
    return tuple(v.astype(np.float64) if is_real(v) else v for v in values)


def assert_close(actual, expected, dtype, length, terms=0.0):
    """Within 4 eps, times the root of the length of the sums, of the largest value, or of the terms whose difference it is."""
    tolerance = 4 * EPSILON[np.dtype(dtype).name] * max(1, length) ** 0.5
    largest = np.max(np.abs(expected[np.isfinite(expected)]), initial=terms)
    assert actual.dtype == dtype and actual.shape == expected.shape
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=tolerance, atol=tolerance * largest)


def assert_agrees(op, *inputs, dy=None, length=1, terms=0.0, apart=False, **options):
    """Values and gradients of the implementation are those of the rules in float64."""
    dtype = inputs[0].dtype
    y, gradients = native(op, *inputs, dy=dy, apart=apart, **options)
    wide = dy if dy is None else double(dy) if isinstance(dy, tuple) else double([dy])[0]
    expected, slopes = by_rule(op, *double(inputs), dy=wide, **options)
    for result, right in zip(y, expected, strict=True) if isinstance(y, tuple) else [(y, expected)]:
        assert_close(result, right, dtype, length, terms)
    for name, gradient in gradients.items():
        if gradient is not None:
            assert_close(gradient, slopes[name], dtype, length, terms)
