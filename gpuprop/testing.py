"""The gradient checker, and the samples that ops are tested with: for gpuprop's own ops and for users'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ._tensor import Tensor
from .errors import DtypeError, Error
from .tape import is_floating, walk


class GradientCheckError(Error, AssertionError):
    """A gradient that disagrees with finite differences."""


class Sample:
    """Arguments of one call of an op: arrays (in float64 where they are real), numbers or None, then options.

    order: up to which order gradients are checked here (0: values only; 1 where the second derivative does not exist).
    """

    def __init__(self, *inputs: Any, order: int = 2, **options: Any):
        # What NumPy's operators make of 0-d arrays are scalars, which would be taken for options.
        self.inputs = tuple(np.asarray(v) if isinstance(v, np.generic) else v for v in inputs)
        self.options = options
        self.order = order

    def __repr__(self) -> str:
        shapes = ", ".join(f"{a.dtype.char}{a.shape}" if hasattr(a, "shape") else repr(a) for a in self.inputs)
        return f"Sample({shapes}{''.join(f', {k}={v!r}' for k, v in self.options.items())})"


class ErrorSample(Sample):
    """Arguments that an op has to refuse, with the error's kind and a pattern for its message."""

    def __init__(self, *inputs: Any, error: type[Exception], match: str, **options: Any):
        super().__init__(*inputs, **options)
        self.error, self.match = error, match


class Draw:
    """Random arguments for samples, the same for the same seed. Arrays are float64; tests cast them."""

    def __init__(self, seed: int = 0):
        self.generator = np.random.default_rng(seed)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal."""
        return np.asarray(self.generator.standard_normal(shape))

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Uniform between low and high."""
        return np.asarray(self.generator.uniform(low, high, shape))

    def positive(self, *shape: int) -> np.ndarray:
        """Between 0.2 and 3: the domain of logarithms and roots, away from its edge."""
        return self.uniform(0.2, 3.0, *shape)

    def apart(self, *shape: int, gap: float = 0.1) -> np.ndarray:
        """Distinct values of both signs, `gap` from each other and gap / 2 from 0: for sorting, maxima and kinks."""
        count = int(np.prod(shape))
        steps = np.concatenate([np.arange(1, count // 2 + 1), -np.arange(1, count - count // 2 + 1)]) - 0.25
        return np.asarray(gap * self.generator.permutation(steps).reshape(shape) + 0.0)

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """int64 from low to high, the latter not included."""
        return np.asarray(self.generator.integers(low, high, shape), dtype=np.int64)

    def booleans(self, *shape: int) -> np.ndarray:
        return np.asarray(self.generator.integers(0, 2, shape), dtype=bool)

    def probabilities(self, *shape: int) -> np.ndarray:
        """Positive rows that sum to 1 along the last axis."""
        drawn = self.uniform(0.1, 1.0, *shape)
        return drawn / drawn.sum(-1, keepdims=True)


# Never square, and always a 0-d one and an empty one.
SHAPES = [(), (3,), (2, 5), (3, 1, 4), (0, 3)]
PAIRS = [((), ()), ((3,), ()), ((2, 5), (2, 5)), ((2, 5), (5,)), ((3, 1), (1, 4)), ((2, 1, 3), (4, 1)), ((0, 3), (3,))]


def _unary(draw_name: str, *bounds: float) -> Callable[[Draw], Iterator[Sample]]:
    def samples(draw: Draw) -> Iterator[Sample]:
        for shape in SHAPES:
            yield Sample(getattr(draw, draw_name)(*bounds, *shape))

    return samples


def _binary(draw_name: str, *bounds: float) -> Callable[[Draw], Iterator[Sample]]:
    def samples(draw: Draw) -> Iterator[Sample]:
        for left, right in PAIRS:
            yield Sample(getattr(draw, draw_name)(*bounds, *left), getattr(draw, draw_name)(*bounds, *right))

    return samples


real_line = _unary("normal")
positive = _unary("positive")
apart = _unary("apart")  # for functions with a kink at 0
real_pairs = _binary("normal")
positive_pairs = _binary("positive")


def between(low: float, high: float) -> Callable[[Draw], Iterator[Sample]]:
    """Samples of one input between two bounds."""
    return _unary("uniform", low, high)


def apart_pairs(draw: Draw) -> Iterator[Sample]:
    """Two inputs that are nowhere equal: for maximum and its kind."""
    for left, right in PAIRS:
        yield Sample(draw.apart(*left), draw.apart(*right) + 0.05)


# --- The checker ----------------------------------------------------------------------------------------------------


def check_gradients(
    f: Callable, *args: Any, order: int = 2, eps: float = 1e-6, rtol: float = 2e-5, atol: float = 1e-7, seed: int = 0
) -> None:
    """Compares gradients of f with central differences in float64, along random directions.

    For each real input x, with random u and v: <v, vjp(u)> against <u, (f(x + eps v) - f(x - eps v)) / (2 eps)>; for
    order 2 the gradient itself, computed with `create_graph`, is checked in the same way.

    f: takes Tensors, returns a Tensor or a tuple of them. args: its arguments; real ones are cast to float64.
    rtol: of the sizes of the terms, far below the 5e-4 that a slightly wrong gradient would show.

    Raises: GradientCheckError naming the argument, the order and both numbers.
    """
    rng = np.random.default_rng(seed)
    arrays = [_as_float64(a) for a in args]
    real = [i for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and is_floating(a.dtype)]
    if not real:
        raise DtypeError("check_gradients: expected at least one real argument, got none")
    _check(f, arrays, real, order, eps, rtol, atol, rng, f"{getattr(f, '__name__', f)}")


def _as_float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, (float, list)):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and is_floating(value.dtype):
        return value.astype(np.float64)
    return value


def _outputs(f: Callable, arrays: list, real: list[int], requires_grad: bool) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [Tensor(a) if isinstance(a, np.ndarray) else a for a in arrays]
    if requires_grad:
        for i in real:
            inputs[i].requires_grad_()
    y = f(*inputs)
    ys = list(y) if isinstance(y, (tuple, list)) else [y]
    return [inputs[i] for i in real], [t for t in ys if isinstance(t, Tensor) and is_floating(t.dtype)]


def _direction(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers of both signs, none of them near 0: then a mistake in a single element shows."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape))


def _check(f, arrays, real, order, eps, rtol, atol, rng, name) -> None:
    xs, ys = _outputs(f, arrays, real, True)
    cotangents = [_direction(rng, y.shape) for y in ys]
    roots = [(y, u) for y, u in zip(ys, cotangents, strict=True) if y.requires_grad]
    found = walk(roots, wanted=[x._node for x in xs])
    for x, i in zip(xs, real, strict=True):
        gradient = found.get(x._node)
        analytic_gradient = np.zeros(x.shape) if gradient is None else np.asarray(gradient)
        for _ in range(2):
            v = _direction(rng, x.shape)
            moved = []
            for sign in (1, -1):
                shifted = list(arrays)
                shifted[i] = np.asarray(arrays[i] + sign * eps * v)  # of 0-d arrays, the sum is a scalar
                moved.append([y.numpy() for y in _outputs(f, shifted, real, False)[1]])
            terms = [u * (a - b) / (2 * eps) for u, a, b in zip(cotangents, *moved, strict=True)]
            numeric = sum(float(np.sum(t)) for t in terms)
            analytic = float(np.sum(v * analytic_gradient))
            # Cancellation in the sums is forgiven in proportion to their terms, not more.
            size = max(float(np.sqrt(np.sum((v * analytic_gradient) ** 2))), abs(numeric))
            if not abs(analytic - numeric) <= atol + rtol * size:
                raise GradientCheckError(
                    f"{name}: the gradient with respect to argument {i} is {analytic:.9g} along a random direction, "
                    f"finite differences give {numeric:.9g} (tolerance {atol + rtol * size:.2g})"
                )
    if order < 2 or not roots:
        return

    def gradient_of(*inputs: Any) -> tuple:
        values, us = inputs[: len(arrays)], inputs[len(arrays) :]
        taped = list(values)
        for i in real:  # numeric passes hand in tensors that require nothing
            if not taped[i].requires_grad:
                taped[i] = taped[i].detach().requires_grad_()
        y = f(*taped)
        outs = [
            t for t in (y if isinstance(y, (tuple, list)) else [y]) if isinstance(t, Tensor) and is_floating(t.dtype)
        ]
        pairs = [(t, u) for t, u in zip(outs, us, strict=True) if t.requires_grad]
        result = walk(pairs, wanted=[taped[i]._node for i in real], create_graph=True)
        return tuple(result.get(taped[i]._node, Tensor(np.zeros(taped[i].shape))) for i in real)

    extended = [*arrays, *cotangents]
    both = [*real, *range(len(arrays), len(extended))]
    _check(gradient_of, extended, both, order - 1, eps, rtol, atol, rng, f"gradient of {name}")
