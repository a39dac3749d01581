"""Batches of tensors that stay on their device: a batch is one gather by an index array, never a loop over samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._random import randperm
from .._tensor import Tensor, _copied, arange, asarray, get_default_dtype
from ..errors import ArgumentError, BoundsError, DeviceError, OptionError, ShapeError
from ..ops.indexing import gather_rows
from ..tape import call, compute


class TensorDataset:
    """Tensors of equal length, seen as samples: `dataset[i]` is the tuple of their i-th rows.

    tensors: Tensors, arrays or nested lists, all (N, ...) and on one device; they are shared, not copied.
    Raises: ArgumentError without tensors, ShapeError where lengths differ, DeviceError where devices differ.
    """

    def __init__(self, *tensors: Any):
        if not tensors:
            raise ArgumentError("TensorDataset: expected at least one tensor, got none")
        self.tensors = tuple(asarray(t) for t in tensors)
        shapes = [t.shape for t in self.tensors]
        if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
            raise ShapeError(f"TensorDataset: expected tensors of one length, got shapes {', '.join(map(str, shapes))}")
        devices = sorted({str(t.device) for t in self.tensors})
        if len(devices) != 1:
            raise DeviceError(
                f"TensorDataset: expected tensors on one device, got {' and '.join(devices)}; use .to(device)"
            )

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __repr__(self) -> str:
        return f"TensorDataset({', '.join(f'{t.dtype}{t.shape}' for t in self.tensors)})"

    def take(self, indices: Any) -> TensorDataset:
        """The samples at `indices` (an integer array on the same device) as a data set of their own; copies them."""
        index = indices.data if isinstance(indices, Tensor) else indices
        return TensorDataset(*(Tensor(compute(_taken, t.data, index)) for t in self.tensors))

    def to(self, device: Any) -> TensorDataset:
        """The data set on another device; itself where it is there already."""
        if all(t.device == device for t in self.tensors):
            return self
        return TensorDataset(*(t.to(device=device) for t in self.tensors))


def _taken(array: Any, index: Any) -> Any:
    return array.take(index, axis=0)


def as_dataset(data: Any) -> TensorDataset:
    """A TensorDataset as it is, or one made of a tuple of arrays, or of one array."""
    if isinstance(data, TensorDataset):
        return data
    if isinstance(data, (tuple, list)):
        return TensorDataset(*data)
    if isinstance(data, Tensor) or hasattr(data, "shape"):
        return TensorDataset(data)
    raise ArgumentError(f"data: expected a TensorDataset or a tuple of tensors or arrays, got {type(data).__name__}")


class DataLoader:
    """Batches of a data set, as tuples of tensors on the data's device; every `for` over it is one epoch.

    dataset: a TensorDataset, or a tuple of tensors or arrays.
    batch_size: samples in a batch. shuffle: a new order in each epoch. drop_last: leave out a smaller last batch.
    generator: a gp.Generator on the data's device that draws the order; the default one of that device if None.
    scale, shift: the inputs (the data set's first tensor) arrive as x * scale + shift in the default dtype: with scale=1 / 255, images
    may stay one byte per pixel. As they are if None.
    Raises: OptionError for a batch size below 1, or a shift without a scale.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: Any = None,
        *,
        scale: float | None = None,
        shift: float = 0.0,
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise OptionError(f"DataLoader: expected a batch_size of at least 1, got {batch_size!r}")
        if scale is None and shift != 0:
            raise OptionError(f"DataLoader: expected a scale beside shift={shift}, got none; say scale=1")
        self.dataset = as_dataset(dataset)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator
        self.scale, self.shift = scale, shift

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        if self.drop_last:
            return len(self.dataset) // self.batch_size
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        count, device = len(self.dataset), self.dataset.tensors[0].device
        if self.shuffle or self.scale is not None:
            order = (self.shuffled() if self.shuffle else arange(count, device=device)).data
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = slice(start, start + self.batch_size)
            if self.shuffle or self.scale is not None:
                yield self.gather(Tensor(order[rows]))
            else:  # copied, because a change of the batch must not reach the data set
                yield tuple(Tensor(compute(_copied, t.data[rows])) for t in self.dataset.tensors)

    def shuffled(self) -> Tensor:
        """The samples in a new order, drawn on the data's device."""
        device = self.dataset.tensors[0].device
        return randperm(len(self.dataset), generator=self.generator, device=device)

    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        """The batch of the samples at an index."""
        options: list[dict[str, Any]] = [gather_rows.defaults for _ in self.dataset.tensors]
        if self.scale is not None:
            options[0] = {"scale": self.scale, "shift": self.shift, "dtype": get_default_dtype()}
        tensors = (t.detach() for t in self.dataset.tensors)
        return tuple(call(gather_rows, (t, index), given) for t, given in zip(tensors, options))


def random_split(dataset: Any, lengths: Sequence[float], generator: Any = None) -> tuple[TensorDataset, ...]:
    """Parts of a data set in random order, without overlap.

    lengths: numbers of samples that add up to len(dataset), or fractions that add up to 1 (what rounding leaves over
    goes to the first parts, one sample each).
    Raises: ShapeError where they do not add up.
    """
    dataset = as_dataset(dataset)
    total = len(dataset)
    if any(n < 0 for n in lengths):
        raise BoundsError(f"random_split: expected lengths of at least 0, got {list(lengths)}")
    if all(isinstance(n, int) for n in lengths):
        counts = [int(n) for n in lengths]
    elif abs(sum(lengths) - 1) < 1e-6:
        counts = [int(total * fraction) for fraction in lengths]
        for i in range(total - sum(counts)):
            counts[i % len(counts)] += 1
    else:
        counts = []
    if sum(counts) != total or not counts:
        raise ShapeError(
            f"random_split: expected lengths that add up to {total}, or fractions that add up to 1, got {list(lengths)}"
        )
    order = randperm(total, generator=generator, device=dataset.tensors[0].device).data
    parts, start = [], 0
    for count in counts:
        parts.append(dataset.take(order[start : start + count]))
        start += count
    return tuple(parts)
