"""Saving and loading state: nested dicts and lists of tensors and plain values, as safetensors files.

The arrays are the tensors of the file, under dotted names that any reader of safetensors shows; what holds them together is
JSON under one key of its metadata. No code is stored and none is run by loading.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ._tensor import Tensor
from .device import Device, backend_of, copy_to, is_array
from .errors import ArgumentError, CheckpointError, DtypeError

KEY = "gpuprop"  # one key only: several would be written in another order by every process
FORMAT = 1


def save(path: str | os.PathLike, object: Any) -> None:
    """Writes tensors, arrays, numbers, strings, booleans, None and dicts, lists and tuples of these to a file.

    What has a `state_dict` (a Module, an Optimizer, a schedule) is saved as that. Dicts have strings or integers as keys and are
    saved in sorted order. Equal state gives equal bytes, in every process. A crash at any moment leaves the old file or the new one:
    the state is written to a file beside it, flushed to disk, and renamed.
    Raises: ArgumentError and DtypeError naming what cannot be saved, CheckpointError where the file cannot be written.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"save: expected a path and what to save, in this order, got {type(path).__name__} first")
    target = Path(path)
    arrays: dict[str, np.ndarray] = {}
    layout = {"format": FORMAT, "state": _pack(object, "", arrays)}
    text = json.dumps(layout, sort_keys=True, separators=(",", ":"), allow_nan=False)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        beside.touch()
        mode = beside.stat().st_mode  # as the user's umask has it; the library makes files that nobody else can read
        save_file(arrays, beside, metadata={KEY: text})
        beside.chmod(mode)
        _flush(beside)
        os.replace(beside, target)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"save: expected a file that can be written, got {target}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def load(path: str | os.PathLike, *, device: Device | str = "cpu") -> Any:
    """Reads what `save` wrote, its tensors on `device`. A safetensors file of another program gives a flat dict of tensors.

    Raises: CheckpointError for a file that is missing, damaged or of a later format.
    """
    source = Path(path)
    if not source.is_file():
        raise CheckpointError(
            f"load: expected a file, got {source}, which {'is a folder' if source.is_dir() else 'does not exist'}"
        )
    try:
        with safe_open(source, framework="np") as file:
            text = (file.metadata() or {}).get(KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"load: expected a safetensors file, got {source}: {error}; it is damaged, or of another kind"
        ) from error
    if text is None:
        return {name: Tensor(copy_to(array, device)) for name, array in arrays.items()}
    try:
        layout = json.loads(text)
        found = layout["format"]
        state = _unpack(layout["state"], arrays, device) if found == FORMAT else None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"load: expected a layout under {KEY!r} in {source}, got a damaged one: {error!r}"
        ) from error
    if found != FORMAT:
        raise CheckpointError(f"load: expected format {FORMAT}, got {found} in {source}; a later gpuprop wrote it")
    return state


def _pack(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays go to `arrays`, and their names take their places."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), path, arrays)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{path}.{i}" if path else str(i), arrays) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise ArgumentError(f"save: expected strings or integers as keys, got {key!r} at {path!r}")
        ordered = sorted(value.items(), key=lambda item: (isinstance(item[0], str), item[0]))
        return {"dict": [[key, _pack(item, f"{path}.{key}" if path else str(key), arrays)] for key, item in ordered]}
    if isinstance(value, Tensor):
        return {"tensor": _add(value.numpy(), path, arrays)}
    if is_array(value):
        return {"array": _add(backend_of(value).to_host(value), path, arrays)}
    if callable(getattr(value, "state_dict", None)):
        return _pack(value.state_dict(), path, arrays)
    raise ArgumentError(
        f"save: expected tensors, arrays, numbers, strings, dicts, lists or what has a state_dict, got {type(value).__name__} at {path!r}"
    )


def _add(array: np.ndarray, path: str, arrays: dict[str, np.ndarray]) -> str:
    if array.dtype.kind not in "fiub":
        raise DtypeError(f"save: expected real numbers or booleans, got dtype {array.dtype} at {path!r}")
    name = path or "value"
    while name in arrays or name == "__metadata__":  # {"a.b": x, "a": {"b": y}} has one name for two
        name += "'"
    arrays[name] = np.asarray(array, order="C")  # safetensors would scramble any other order
    return name


def _unpack(packed: Any, arrays: dict[str, np.ndarray], device: Device | str) -> Any:
    if isinstance(packed, list):
        return [_unpack(item, arrays, device) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, value),) = packed.items()
    if kind == "dict":
        return {key: _unpack(item, arrays, device) for key, item in value}
    if kind == "tuple":
        return tuple(_unpack(item, arrays, device) for item in value)
    if kind == "float":
        return float(value)
    if kind == "tensor":
        return Tensor(copy_to(arrays[value], device))
    if kind == "array":
        return arrays[value]
    raise ValueError(f"unknown kind {kind!r}")


def _flush(path: Path) -> None:
    """Makes sure that a file, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows has no handles for folders, and writes renames through
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
