"""Layers and containers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from .. import numpy as gnp
from .._random import Generator
from .._tensor import Tensor, Unfinished, empty, get_default_dtype, ones, zeros
from ..device import BACKENDS, Device, default_device, require
from ..errors import ArgumentError, BoundsError, OptionError
from ..ops.fused import linear_activation, linear_activation_dropout
from ..tape import call, is_grad_enabled
from . import functional as F
from . import functions, init
from .functions import fusion_with
from .module import Module
from .parameter import Parameter, one_chunk


class Linear(Module):
    """y = x W^T + b, with W (out_features, in_features) and b (out_features,), both uniform in +-1 / sqrt(in_features) at first.

    Shapes: x (..., in_features) -> y (..., out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device | str | None = None,
        dtype: Any = None,
        *,
        generator: Generator | None = None,
    ):
        if in_features < 0 or out_features < 0:
            raise OptionError(f"Linear: expected sizes that are not negative, got {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = Parameter(empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draws the parameters anew."""
        bound = 1 / sqrt(self.in_features) if self.in_features else 0.0
        init.uniform_(self.weight, -bound, bound, generator)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound, generator)

    def forward(self, input: Any) -> Any:
        bias = self.bias
        if bias is not None and BACKENDS[type(bias._data)].leaves_biases and bias.requires_grad and is_grad_enabled():
            return Unfinished(F.linear(input, self.weight), bias)
        return F.linear(input, self.weight, bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Identity(Module):
    """y = x, whatever it is made with."""

    def __init__(self, *args: Any, **options: Any):
        pass

    def forward(self, input: Any) -> Any:
        return input


class Flatten(Module):
    """Joins the axes from `start_dim` to `end_dim` into one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Any) -> Any:
        shape = input.shape
        start, end = self.start_dim % len(shape), self.end_dim % len(shape)
        if start > end:
            raise BoundsError(
                f"Flatten: expected start_dim before end_dim, got {self.start_dim} and {self.end_dim} for {shape}"
            )
        length = int(np.prod(shape[start : end + 1]))  # said, as -1 would be unknown for an empty batch
        return gnp.reshape(input, (*shape[:start], length, *shape[end + 1 :]))

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Embedding(Module):
    """y = W[x]: a row of W (num_embeddings, embedding_dim), standard normal at first, per integer.

    Shapes: x (...) int -> y (..., embedding_dim).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: Any = None,
        *,
        generator: Generator | None = None,
    ):
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter(empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        init.normal_(self.weight, generator=generator)

    def forward(self, input: Any) -> Any:
        return gnp.take(self.weight, input, axis=0)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Dropout(Module):
    """In training each element is 0 with probability p, else divided by 1 - p; in use y = x.

    generator: draws the masks; the default one of the input's device if None.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, generator: Generator | None = None):
        if not 0 <= p <= 1:
            raise OptionError(f"Dropout: expected p from 0 to 1, got {p}")
        self.p, self.inplace, self.generator = p, inplace, generator

    def forward(self, input: Any) -> Any:
        return F.dropout(input, self.p, self.training, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


# --- Normalisation --------------------------------------------------------------------------------------------------


class LayerNorm(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over the last axes, of shape `normalized_shape`.

    Source: Ba et al. 2016, arXiv:1607.06450, eq. 4.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device | str | None = None,
        dtype: Any = None,
    ):
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        shape, place = self.normalized_shape, {"device": device, "dtype": dtype}
        self.weight = Parameter(ones(shape, **place)) if elementwise_affine else None
        self.bias = Parameter(zeros(shape, **place)) if elementwise_affine and bias else None

    def forward(self, input: Any) -> Any:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axes, of shape `normalized_shape`; eps is the dtype's epsilon if None.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device | str | None = None,
        dtype: Any = None,
    ):
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        shape = self.normalized_shape
        self.weight = Parameter(ones(shape, device=device, dtype=dtype)) if elementwise_affine else None

    def forward(self, input: Any) -> Any:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class BatchNorm1d(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, per feature (axis 1), over the batch.

    In training mean and variance are the batch's, and the running ones move towards them by `momentum` (None: they are the plain mean
    of all batches, and each step then reads a count on the host); in use they are the running ones.
    Shapes: x (N, num_features) or (N, num_features, L).
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Any  # a Tensor (), or None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device | str | None = None,
        dtype: Any = None,
    ):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        place = {"device": device, "dtype": dtype}
        self.weight = Parameter(ones(num_features, **place)) if affine else None
        self.bias = Parameter(zeros(num_features, **place)) if affine else None
        self.register_buffer("running_mean", zeros(num_features, **place) if track_running_stats else None)
        self.register_buffer("running_var", ones(num_features, **place) if track_running_stats else None)
        count = zeros((), device=device, dtype=np.int64) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)

    def forward(self, input: Any) -> Any:
        if len(input.shape) not in (2, 3):
            raise ArgumentError(f"BatchNorm1d: expected x (N, C) or (N, C, L), got {tuple(input.shape)}")
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked.item() if momentum is None else momentum
        use_batch = self.training or not self.track_running_stats
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(input, *statistics, self.weight, self.bias, use_batch, momentum or 0.0, self.eps)

    def extra_repr(self) -> str:
        stats = f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, {stats}"


# --- Containers -----------------------------------------------------------------------------------------------------


class _Numbered(Module):
    """Modules under the names "0", "1", ..., in order."""

    def _list(self) -> list[Module]:
        return [value for value in self.__dict__.values() if isinstance(value, Module)]

    def __len__(self) -> int:
        return len(self._list())

    def __iter__(self) -> Iterator[Module]:
        return iter(self._list())

    def __getitem__(self, index: int | slice) -> Any:
        found = self._list()
        if isinstance(index, slice):
            return self._of(found[index])
        try:
            return found[index]
        except IndexError:
            raise BoundsError(f"{type(self).__name__}: expected an index below {len(found)}, got {index}") from None

    def _of(self, modules: list[Module]) -> Module:
        raise NotImplementedError

    def append(self, module: Module) -> Module:
        """Adds a module at the end."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Module:
        """Adds modules at the end."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Numbered):
    """Modules one after another: y = f_n(... f_1(x)). Takes them in order, or in one mapping by name.

    A `Linear` and the activation after it are computed as one op, `gp.nn.functional.linear_activation`, and with the `Dropout`
    after that as `linear_activation_dropout`.
    """

    def __init__(self, *modules: Any):
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self.extend(modules)

    def _of(self, modules: list[Module]) -> Module:
        return Sequential(*modules)

    def forward(self, input: Any) -> Any:
        linear: Linear | None = None  # waits for what comes after it
        fused: tuple | None = None  # its activation, which then waits with it: what `fusion_with` says
        for module in self.__dict__.values():
            if not isinstance(module, Module):
                continue
            if linear is not None:
                if fused is None:
                    fused = fusion_with(module)
                    if fused is not None:
                        continue
                    input = linear(input)
                elif type(module) is Dropout and module.training and module.p:
                    input = _dropped(input, linear, module, *fused)
                    linear = fused = None
                    continue
                else:
                    input = _activated(input, linear, *fused)
                    fused = None
            linear = module if type(module) is Linear else None
            if linear is None:
                input = module(input)
        if linear is None:
            return input
        if fused is None:
            return linear(input)
        return _activated(input, linear, *fused)


def _activated(input: Any, linear: Linear, activation: dict[str, Any], learnt: Parameter | None) -> Any:
    """What a layer and an activation, as `fusion_with` says, make of the input."""
    return call(linear_activation, (input, linear.weight, linear.bias, learnt), activation)


def _dropped(input: Any, linear: Linear, dropout: Dropout, activation: dict[str, Any], learnt: Parameter | None) -> Any:
    """The same, and dropout."""
    count = prod(gnp.shape(input)[:-1]) * linear.out_features
    base, key = F.reserve_mask(count, linear.weight.device, dropout.generator)
    options = {**activation, "p": dropout.p, **key}
    return call(linear_activation_dropout, (input, linear.weight, linear.bias, base, learnt), options)


class ModuleList(_Numbered):
    """Modules in a list; what is computed with them is up to their owner."""

    def __init__(self, modules: Iterable[Module] = ()):
        self.extend(modules)

    def _of(self, modules: list[Module]) -> Module:
        return ModuleList(modules)


NORMS: dict[str, type[Module]] = {"layer": LayerNorm, "batch": BatchNorm1d, "rms": RMSNorm}


class MLP(Sequential):
    """A multilayer perceptron: Linear, norm, activation and dropout per hidden layer, then Linear and the output's activation.

    sizes: features of the input, of each hidden layer, and of the output. activation, output_activation: a function's name
    ("relu", "gelu", "log_softmax"; None for none) or a Module class. dropout: probability after each hidden layer. norm: None,
    "layer", "batch" or "rms". seed: of the initial weights; the default generator draws them if None.
    All parameters lie in one piece of memory. Raises: OptionError for what it does not know.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Callable[[], Module] | None = "relu",
        output_activation: str | Callable[[], Module] | None = None,
        dropout: float = 0.0,
        norm: str | None = None,
        seed: int | None = None,
        *,
        device: Device | str | None = None,
        dtype: Any = None,
    ):
        sizes = [int(size) for size in sizes]
        if len(sizes) < 2:
            raise OptionError(f"MLP: expected two sizes at least, of input and output, got {sizes}")
        if norm is not None and norm not in NORMS:
            raise OptionError(f"MLP: expected norm None, {', '.join(map(repr, NORMS))}, got {norm!r}")
        self.sizes = sizes
        place = default_device() if device is None else require(device)
        kind = get_default_dtype() if dtype is None else np.dtype(dtype)
        generator = None if seed is None else Generator(place, seed)
        shapes = [shape for n, m in zip(sizes, sizes[1:]) for shape in [(m, n), (m,)]]
        if norm is not None:
            affine = 1 if norm == "rms" else 2
            shapes += [(m,) for m in sizes[1:-1] for _ in range(affine)]
        *hidden, last = [*(_activation(activation) for _ in sizes[1:-1]), _activation(output_activation)]
        shapes += [p.shape for modules in (*hidden, last) for module in modules for p in module.parameters()]
        with one_chunk(shapes, kind, place):
            for n, m, modules in zip(sizes, sizes[1:-1], hidden):
                self.append(Linear(n, m, device=place, dtype=kind, generator=generator))
                if norm is not None:
                    self.append(NORMS[norm](m, device=place, dtype=kind))  # type: ignore[call-arg]
                self.extend(_moved(modules, place, kind))
                if dropout:
                    self.append(Dropout(dropout))
            self.append(Linear(sizes[-2], sizes[-1], device=place, dtype=kind, generator=generator))
            self.extend(_moved(last, place, kind))


def _activation(given: str | Callable[[], Module] | None) -> list[Module]:
    if given is None:
        return []
    if not isinstance(given, str):
        return [given()]
    known = functions.activations()
    if given not in known:
        raise OptionError(f"MLP: expected an activation among {', '.join(sorted(known))}, got {given!r}")
    return [known[given]()]


def _moved(modules: list[Module], place: Device, kind: Any) -> list[Module]:
    """The modules, their parameters beside those that were made before, wherever they were and of whatever dtype."""
    for module in modules:
        for p in module.parameters():
            p.settle(p.data, place, kind)
    return modules
