"""Kernel sources: found, completed, compiled once and cached.

A kernel is `extern "C"`, made from a template of a `.cu` file for one functor and one dtype, so that first use compiles what is used and
nothing else. Headers are pasted into the source: CuPy's cache on disk is keyed by the source, and does not see what it includes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
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
INTEGERS = {
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
}
OPTIONS = ("-std=c++17",)
THREADS = 256  # per block, where a kernel does not say otherwise
RESIDENT = 1024  # threads side by side on a multiprocessor: half of what most have room for, all of what sm_75 has


@functools.cache
def folder() -> Path:
    """Where the sources are: in the wheel beside the package's modules, in a checkout beside the package."""
    package = Path(__file__).parent.parent
    for place in (package / "kernels", package.parent / "kernels"):
        if (place / "common.cuh").is_file():
            return place
    raise DeviceError(
        f"kernels: expected the .cu files in {package / 'kernels'} or {package.parent / 'kernels'}, found neither"
    )


@functools.cache
def text(file: str) -> str:
    """A source with its own headers pasted in, each once. A path outside `kernels/` or source text itself is taken as it is."""
    return _pasted(file, set())


def _is_text(file: str) -> bool:
    return "\n" in file


def _pasted(file: str, seen: set[str]) -> str:
    if _is_text(file):
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

    return re.sub(r'^[ \t]*#include "([\w./]+)"\n', paste, source.replace("#pragma once\n", ""), flags=re.M)


def format_of(dtype: Any) -> str:
    """The C++ type of a dtype, or of its name."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    return INTEGERS.get(name) or FORMATS[name][0]


class Kernel:
    """One `extern "C"` function: what it is made of; compiled on its first launch, by `kernel(...)(grid, block, arguments)`.

    types: typedefs that parameters and body use. bounds: threads per block, where their number never changes: then the compiler sees
    to it that a multiprocessor has registers for `RESIDENT` of them; for half as many from sm_100 on, where its code takes some more
    registers for the same source: rather fewer warps there than spills.
    """

    def __init__(
        self,
        file: str,
        name: str,
        parameters: str,
        body: str,
        dtypes: tuple[str, ...],
        bounds: int = 0,
        types: str = "",
    ):
        self.file, self.name, self.dtypes, self.bounds = file, name, dtypes, bounds
        resident = f"(__CUDA_ARCH__ >= 1000 ? {RESIDENT // 2} : {RESIDENT}) / {bounds}"
        limit = f"__launch_bounds__({bounds}, {resident}) " if bounds else ""
        self.definition = f'{types}\nextern "C" __global__ void {limit}{name}({parameters}) {{\n  {body}\n}}\n'

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"

    def __call__(self, grid: tuple, block: tuple, arguments: tuple, **more: Any) -> None:
        self.compiled(grid, block, arguments, **more)

    @property
    def threads(self) -> int:
        """Threads per block that it is launched with."""
        return self.bounds or THREADS

    @functools.cached_property
    def compiled(self) -> Any:
        """CuPy's RawKernel."""
        import cupy

        return cupy.RawKernel(complete([self]), self.name, options=OPTIONS)


kernel = functools.cache(Kernel)


def complete(kernels: Sequence[Kernel]) -> str:
    """The whole source of some kernels of one file: formats, the file, and around each call of its templates a function."""
    formats = "".join(sorted({FORMATS[d][1] for k in kernels for d in k.dtypes if d in FORMATS}))
    definitions = [k.definition for k in kernels]
    if len(kernels) > 1:  # their types have the same names
        definitions = [f"namespace {k.name}_alone {{\n{k.definition}}}\n" for k in kernels]
    return f"{formats}{text(kernels[0].file)}\n{''.join(definitions)}"


# --- Every kernel ---------------------------------------------------------------------------------------------------
# All that can be launched is compiled and looked at without a GPU (`python -m benchmarks.kernels`). So every binder says which kernels
# it can make, by the functions that its launches use:
#
#     @every_kernel  # or @every_kernel(streaming=False), where threads do not read and write in packs of 16 bytes
#     def _():
#         for dtype in FORMATS:
#             yield _row_kernel("softmax", dtype)

_makers: list[tuple[Callable[[], Iterable[Kernel]], bool]] = []


def every_kernel(make: Callable[[], Iterable[Kernel]] | None = None, *, streaming: bool = True) -> Any:
    """Adds a function that yields all kernels which a binder can make."""
    if make is None:
        return functools.partial(every_kernel, streaming=streaming)
    _makers.append((make, streaming))
    return make


def all_kernels() -> dict[Kernel, bool]:
    """The kernels made from files in `kernels/`, and for each whether it streams: memory in, memory out, in packs of 16 bytes."""
    return {
        k: streaming
        for make, streaming in _makers
        for k in make()
        if not _is_text(k.file) and (folder() / k.file).is_file()
    }
