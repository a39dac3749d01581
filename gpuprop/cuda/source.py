"""Kernel sources: found, completed, compiled once and cached.

A kernel is `extern "C"`, made from a template of a `.cu` file for one functor and one dtype, so that first use compiles what is used and
nothing else. Headers are pasted into the source: CuPy's cache on disk is keyed by the source, and does not see what it includes.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError

# In C++, and the macro that says that the format's header is there.
FORMATS = {
    "float32": ("float", ""),
    "float64": ("double", ""),
    "float16": ("__half", "#include <cuda_fp16.h>\n#define GPUPROP_HALF\n"),
    "bfloat16": ("__nv_bfloat16", "#include <cuda_bf16.h>\n#define GPUPROP_BFLOAT16\n"),
}
OPTIONS = ("-std=c++17",)


@functools.cache
def folder() -> Path:
    """Where the sources are: in the wheel beside the package's modules, in a checkout beside the package."""
    package = Path(__file__).parent.parent
    for place in (package / "kernels", package.parent / "kernels"):
        if (place / "common.cuh").is_file():
            return place
    raise DeviceError(f"kernels: expected the .cu files in {package / 'kernels'} or {package.parent / 'kernels'}, found neither")


@functools.cache
def text(file: str) -> str:
    """A source with its own headers pasted in, each once. A path outside `kernels/` or source text itself is taken as it is."""
    return _pasted(file, set())


def _pasted(file: str, seen: set[str]) -> str:
    if "\n" in file:  # source text of a user
        return _with_headers(file, seen)
    place = Path(file) if Path(file).is_absolute() else folder() / file
    try:
        return _with_headers(place.read_text(encoding="utf-8"), seen)
    except OSError as error:
        raise DeviceError(f"kernels: expected a source file, got {file!r}: {error.strerror}") from error


def _with_headers(source: str, seen: set[str]) -> str:
    def paste(match: re.Match) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return _pasted(name, seen)

    return re.sub(r'^#include "([\w./]+)"\n', paste, source.replace("#pragma once\n", ""), flags=re.M)


def format_of(dtype: Any) -> str:
    """The C++ type of a dtype."""
    return FORMATS[np.dtype(dtype).name][0]


def complete(file: str, signature: str, body: str, dtypes: tuple[str, ...]) -> str:
    """The whole source of one kernel: formats, the file, and an `extern "C"` function around one call of its templates."""
    formats = "".join(sorted({FORMATS[d][1] for d in dtypes if d in FORMATS}))
    return f'{formats}{text(file)}\nextern "C" __global__ void {signature} {{\n  {body}\n}}\n'


@functools.cache
def kernel(file: str, name: str, parameters: str, body: str, dtypes: tuple[str, ...], bounds: int = 0) -> Any:
    """A compiled kernel. bounds: the number of threads per block that it is launched with, where it never changes."""
    import cupy

    limit = f"__launch_bounds__({bounds}) " if bounds else ""
    return cupy.RawKernel(complete(file, f"{limit}{name}({parameters})", body, dtypes), name, options=OPTIONS)
