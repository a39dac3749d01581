"""Matrix products by cuBLASLt, the same eagerly and in a CUDA graph.

cuBLASLt is handed all that it uses: the stream, the workspace, an algorithm chosen beforehand. cuBLAS, which CuPy's `matmul` calls, keeps
these itself; that is why CuPy refuses to capture it. What a product looks like (shapes, strides, dtype, epilogue, device) is worked
out once and kept as a `Plan`; a product that looks the same then costs a look-up and the library's call.

The library thinks in columns. A row-major y = a @ b is, read column by column, y.T = b.T @ a.T: so it is handed b first, and
nothing is moved. A transposed operand is a flag.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cupy
import numpy as np

from .. import _matmul
from ..tape import tape
from .launch import PACK
from .stacks import Problem, Shape, Stack, problem

# cudaDataType_t of the arrays, cublasComputeType_t, cudaDataType_t of alpha and beta. 16-bit numbers are added in float32.
FORMATS = {
    "float32": (0, 68, 0),
    "float64": (1, 70, 1),
    "float16": (2, 68, 0),
    "bfloat16": (14, 68, 0),
}
TF32 = 77
REFUSALS = (7, 15)  # cublasStatus_t: an invalid value, not supported
PROPOSALS = 8  # algorithms that are looked at
# In host memory, where the library reads alpha and beta when it is called.
_ZERO_AND_ONE: dict[int, np.ndarray] = {0: np.array([0, 1], np.float32), 1: np.array([0, 1], np.float64)}
NEEDS = "nvmath-python is not installed (it comes with gpuprop's extras cuda13 and cuda12)"


@functools.cache
def load() -> tuple[Any, str]:
    """The library's bindings, or None and why it cannot be had."""
    try:
        from nvmath.bindings import cublasLt

        cublasLt.get_version()  # loads the library
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        return None, NEEDS if missing == "nvmath" else f"nvmath-python cannot be imported: {missing} is not installed"
    except Exception as error:  # of several kinds: a library that is not there, is too old, or does not load
        return None, f"cuBLASLt cannot be loaded: {str(error).strip().splitlines()[0]}"
    return cublasLt, ""


def report() -> tuple[str | None, str]:
    """The library's version, or None and why it cannot be had."""
    library, reason = load()
    if library is None:
        return None, reason
    version = library.get_version()  # 13.2.1 is 130201
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}", ""


# --- Workspaces -----------------------------------------------------------------------------------------------------


class Workspaces(dict):
    """Scratch memory for products: a buffer for each (device, stream), made when an algorithm first asks for one.

    Products of one stream follow each other and can share a buffer, products of two cannot.
    """

    def __missing__(self, place: tuple[int, int]) -> Any:
        buffer = self[place] = cupy.empty(workspace_size(place[0]), np.uint8)
        return buffer


@functools.cache
def capability(device: int) -> int:
    """The compute capability of a device: 90 is 9.0."""
    return int(cupy.cuda.Device(device).compute_capability)


def workspace_size(device: int) -> int:
    """What NVIDIA recommends: 32 MiB from Hopper on, 4 MiB before."""
    return (32 if capability(device) >= 90 else 4) << 20


class _Here(threading.local):
    def __init__(self) -> None:
        self.workspaces = Workspaces()  # of this thread: "the thread's default stream" has one number in all threads


_here = _Here()


@contextlib.contextmanager
def workspaces(owned: Workspaces) -> Iterator[Workspaces]:
    """Products of this thread take their scratch memory from `owned` while the context lasts.

    A graph needs that: replays write to the buffers that it was captured with, whatever stream they run on, so it must keep
    its own, alive as long as itself.
    """
    before, _here.workspaces = _here.workspaces, owned
    try:
        yield owned
    finally:
        _here.workspaces = before


# --- Plans ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Plan:
    """What products of one look have in common. `descriptor` is 0 where there is nothing to multiply."""

    shape: Shape
    pack_a: Shape | None = None
    pack_b: Shape | None = None
    library: Any = None
    device: int = 0
    handle: int = 0
    descriptor: int = 0
    layouts: tuple[int, int, int] = (0, 0, 0)  # of a, b, y
    algorithm: Any = None  # the library's struct, in an array of one
    algorithm_at: int = 0
    workspace: int = 0  # bytes
    zero: int = 0  # addresses
    one: int = 0
    epilogue: Epilogue | None = None

    def take(self, algorithms: Any, place: int) -> None:
        """Takes one of the proposed algorithms."""
        self.algorithm = algorithms[place : place + 1]
        self.algorithm_at = self.algorithm.ctypes.data
        self.workspace = int(self.algorithm["workspace_size"][0])

    def multiply(self, a: Any, b: Any, y: Any, accumulate: bool) -> None:
        """y = a @ b, or y += a @ b, on the current stream."""
        if self.pack_a is not None or self.pack_b is not None:
            a, b = _packed(a, self.pack_a), _packed(b, self.pack_b)
        stream, at = cupy.cuda.get_current_stream().ptr, y.data.ptr
        of_a, of_b, of_y = self.layouts
        scratch = _here.workspaces[self.device, stream].data.ptr if self.workspace else 0
        self.library.matmul(
            self.handle,
            self.descriptor,
            self.one,
            b.data.ptr,
            of_b,
            a.data.ptr,
            of_a,
            self.one if accumulate else self.zero,
            at,
            of_y,
            at,
            of_y,
            self.algorithm_at,
            scratch,
            self.workspace,
            stream,
        )


def _packed(array: Any, shape: Shape | None) -> Any:
    if shape is None:
        return array
    if array.ndim < 2:  # a vector is a matrix of one row or column
        array = array.reshape(shape[-2:])
    return cupy.ascontiguousarray(cupy.broadcast_to(array, shape))


_plans: dict[tuple, Plan | None] = {}
_ALIGNMENT = tuple(PACK if low == 0 else low & -low for low in range(PACK))


def plan_for(a: Any, b: Any, out: Any = None, epilogue: str = "DEFAULT") -> Plan | None:
    """The plan of a product; None where the library has none: other dtypes, no algorithm, no library."""
    at = a.data
    alignment = _ALIGNMENT[(at.ptr | b.data.ptr | (0 if out is None else out.data.ptr)) % PACK]
    look = (a.shape, a.strides, b.shape, b.strides, a.dtype, b.dtype, at.device_id, alignment, epilogue)
    key = (look, _matmul.settings)
    try:
        return _plans[key]
    except KeyError:
        plan = _plans[key] = make_plan(*look)
        return plan


def make_plan(
    a_shape: Shape,
    a_strides: Shape,
    b_shape: Shape,
    b_strides: Shape,
    dtype: Any,
    b_dtype: Any,
    device: int,
    alignment: int,
    epilogue: str,
) -> Plan | None:
    """Strides and alignment in bytes. The library's objects live as long as the process: there are as many as products look different."""
    library, _ = load()
    size = dtype.itemsize
    if library is None or dtype != b_dtype or dtype.name not in FORMATS or any(s % size for s in a_strides + b_strides):
        return None
    p = problem(a_shape, tuple(s // size for s in a_strides), b_shape, tuple(s // size for s in b_strides))
    if p.empty:
        return Plan(p.shape)
    if epilogue != "DEFAULT" and p.count > 1:
        return None

    kind, compute, scalar_kind = FORMATS[dtype.name]
    if dtype.name == "float32" and _matmul.settings.precision == "high" and capability(device) >= 80:
        compute = TF32
    descriptor = library.matmul_desc_create(compute, scalar_kind)
    attribute = library.MatmulDescAttribute
    _set("matmul_desc", descriptor, attribute.TRANSA, p.b.transposed)
    _set("matmul_desc", descriptor, attribute.TRANSB, p.a.transposed)
    scalars = _ZERO_AND_ONE[scalar_kind]
    plan = Plan(
        p.shape,
        p.pack_a,
        p.pack_b,
        library,
        device,
        _handle(device),
        descriptor,
        (_layout(kind, p.a, p.count), _layout(kind, p.b, p.count), _layout(kind, p.y, p.count)),
        zero=scalars.ctypes.data,
        one=scalars.ctypes.data + scalars.itemsize,
        epilogue=None if epilogue == "DEFAULT" else Epilogue(library, descriptor, epilogue, p.y.columns),
    )
    algorithms = proposals(plan, alignment)
    if not len(algorithms):
        return None
    plan.take(algorithms, choose(plan, p, size, algorithms, f"{dtype} {compute} {epilogue} {alignment}"))
    return plan


@functools.cache
def _handle(device: int) -> int:
    with cupy.cuda.Device(device):
        return load()[0].create()


def _set(kind: str, target: int, attribute: int, value: int) -> None:
    """Sets an attribute of one of the library's objects; `kind` is "matmul_desc", "matrix_layout" or "matmul_preference"."""
    library, _ = load()
    buffer = np.array(value, getattr(library, f"get_{kind}_attribute_dtype")(attribute))
    getattr(library, f"{kind}_set_attribute")(target, attribute, buffer.ctypes.data, buffer.nbytes)


def _layout(kind: int, stack: Stack, count: int) -> int:
    """The library reads columns: the matrix that it sees has as columns what lies together here."""
    library, _ = load()
    sides = (stack.rows, stack.columns) if stack.transposed else (stack.columns, stack.rows)
    layout = library.matrix_layout_create(kind, *sides, stack.leading)
    if count > 1:
        _set("matrix_layout", layout, library.MatrixLayoutAttribute.BATCH_COUNT, count)
        _set("matrix_layout", layout, library.MatrixLayoutAttribute.STRIDED_BATCH_OFFSET, stack.step)
    return layout


def proposals(plan: Plan, alignment: int) -> Any:
    """The algorithms that the library's heuristic proposes, those first that it takes for the fastest; an array of its structs.

    Sums over parts (split-K) are allowed where the parts are kept in the compute type and added by a second kernel: in one order, and
    in float32 for 16-bit types too. So the list follows from the product's look, the device and the library's version alone.
    """
    library = plan.library
    preference = library.matmul_preference_create()
    attribute = library.MatmulPreferenceAttribute
    _set("matmul_preference", preference, attribute.MAX_WORKSPACE_BYTES, workspace_size(plan.device))
    schemes = int(library.ReductionScheme.COMPUTE_TYPE)
    _set("matmul_preference", preference, attribute.REDUCTION_SCHEME_MASK, schemes)
    for operand in "ABCD":
        _set("matmul_preference", preference, attribute[f"MIN_ALIGNMENT_{operand}_BYTES"], alignment)
    results, count = np.zeros(PROPOSALS, library.matmul_heuristic_result_dtype), np.zeros(1, np.int32)
    a, b, y = plan.layouts
    try:
        library.matmul_algo_get_heuristic(
            plan.handle,
            plan.descriptor,
            *(b, a, y, y),
            preference,
            PROPOSALS,
            results.ctypes.data,
            count.ctypes.data,
        )
    except library.cuBLASLtError as error:
        if error.status not in REFUSALS:
            raise
    finally:
        library.matmul_preference_destroy(preference)
    return results[: count[0]][results["state"][: count[0]] == 0]


def choose(plan: Plan, p: Problem, itemsize: int, algorithms: Any, look: str) -> int:
    """Which of the algorithms is taken: the first one, or what autotuning found, now or when its choices were stored."""
    tunes = _matmul.settings.autotuning and not cupy.cuda.get_current_stream().is_capturing()
    if not tunes and not _matmul.choices:
        return 0
    name = cupy.cuda.runtime.getDeviceProperties(plan.device)["name"].decode()
    stacks = [f"{s.rows}x{s.columns}/{s.leading}{'T' if s.transposed else ''}+{s.step}" for s in (p.a, p.b)]
    key = f"{name}, cuBLASLt {report()[0]}: {p.count} x {' @ '.join(stacks)}, {look}"
    if tunes and key not in _matmul.choices:
        _matmul.choices[key] = _fastest(plan, p, itemsize, algorithms)
    place = _matmul.choices.get(key, 0)
    return place if place < len(algorithms) else 0


def _fastest(plan: Plan, p: Problem, itemsize: int, algorithms: Any) -> int:
    """The place of the algorithm that takes the least time on memory of its own."""
    if len(algorithms) == 1:
        return 0
    a, b, y = (_scratch(stack.extent(p.count) * itemsize) for stack in (p.a, p.b, p.y))
    bias, aux = _scratch((p.y.rows + p.y.columns) * itemsize), _scratch(p.y.rows * (p.y.columns + 128) * itemsize)
    if plan.epilogue is not None:
        plan.epilogue.point(bias.data.ptr, aux.data.ptr)
    trial = replace(plan, pack_a=None, pack_b=None)
    times = []
    for place in range(len(algorithms)):
        trial.take(algorithms, place)
        try:
            times.append(milliseconds(lambda: trial.multiply(a, b, y, False)))
        except plan.library.cuBLASLtError:  # proposed, and refused all the same
            times.append(math.inf)
    return times.index(min(times))


def _scratch(size: int) -> Any:
    """Bytes that are ordinary numbers in every format: what is slow about denormals or NaN is not to be measured."""
    return cupy.full(size, 0x3C, np.uint8)


def milliseconds(work: Callable[[], object], calls: int = 10, rounds: int = 3) -> float:
    """What some calls take on the GPU at best, once warm."""
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    times = []
    for _ in range(rounds + 1):
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end))
    return min(times[1:])


# --- Products -------------------------------------------------------------------------------------------------------


def product(a: Any, b: Any, *, out: Any = None, accumulate: bool = False) -> Any:
    """a @ b, written to `out` or, with `accumulate`, added to it.

    Shapes: as in `matmul`: a (..., m, k), b (..., k, n) -> (..., m, n); leading axes broadcast, vectors are a row on the left, a column on
    the right. Nothing is copied where the matrices lie in rows or in columns. Raises: ValueError for shapes that do not fit.
    """
    plan = plan_for(a, b, out)
    if plan is None:
        if a.dtype == b.dtype:
            return _settled(cupy.matmul(a, b), out, accumulate)
        dtype = np.result_type(a.dtype, b.dtype)
        return product(a.astype(dtype, copy=False), b.astype(dtype, copy=False), out=out, accumulate=accumulate)
    direct = out is not None and out.dtype == a.dtype and out.shape == plan.shape and out.flags.c_contiguous
    y = out if direct else cupy.empty(plan.shape, a.dtype)
    adds = accumulate and direct
    if plan.descriptor:
        plan.multiply(a, b, y, adds)
    elif not adds:
        y.fill(0)
    return y if direct else _settled(y, out, accumulate)


def _settled(y: Any, out: Any, accumulate: bool) -> Any:
    """The product where it was asked for, by a kernel of its own."""
    if out is None:
        return y
    if accumulate:
        out += y
    else:
        out[...] = y
    return out


# --- Epilogues ------------------------------------------------------------------------------------------------------


class Epilogue:
    """What the library does with a product before it stores it. Names are the library's.

    y = a @ b (rows m, columns n), and then
    BIAS, RELU_BIAS, GELU_BIAS: adds a bias (n,), and applies the function; GELU is the tanh form;
    RELU_AUX_BIAS, GELU_AUX_BIAS: writes to `aux` as well what the gradient needs: the signs as bits, or the values before the function;
    DRELU, DGELU: y times the function's slope at what `aux` holds;
    DRELU_BGRAD, DGELU_BGRAD: the same, and writes y's sums over m to `bias` (n,);
    BGRADB: writes a's sums over k to `bias` (m,): with a = dz.T, b = x that is the bias gradient beside the weight's.
    """

    def __init__(self, library: Any, descriptor: int, name: str, columns: int):
        attribute = library.MatmulDescAttribute
        _set("matmul_desc", descriptor, attribute.EPILOGUE, int(library.Epilogue[name]))
        if "AUX" in name or name.startswith(("DRELU", "DGELU")):
            _set("matmul_desc", descriptor, attribute.EPILOGUE_AUX_LD, aux_width(name, columns))
        self.library, self.descriptor = library, descriptor
        self.attributes = int(attribute.BIAS_POINTER), int(attribute.EPILOGUE_AUX_POINTER)
        self.pointers = np.zeros(2, np.int64)  # of bias and aux
        self.lock = threading.Lock()  # the descriptor is shared, and the pointers are a part of it
        self.point(PACK, PACK)  # the heuristic looks at how they are aligned

    def point(self, *pointers: int) -> None:
        self.pointers[:] = pointers
        at = self.pointers.ctypes.data
        for attribute, place in zip(self.attributes, (at, at + 8)):
            self.library.matmul_desc_set_attribute(self.descriptor, attribute, place, 8)


def aux_width(epilogue: str, columns: int) -> int:
    """Elements in a row of `aux`: bits, in multiples of 128, or values, in multiples of 8."""
    multiple = 128 if "RELU" in epilogue else 8
    return -(-columns // multiple) * multiple


def new_aux(epilogue: str, rows: int, columns: int, dtype: Any) -> Any:
    """Memory for what an epilogue `..._AUX` writes and its gradient's reads."""
    width = aux_width(epilogue, columns)
    if "RELU" in epilogue:
        return cupy.empty((rows, width // 8), np.uint8)
    return cupy.empty((rows, width), dtype)


def offers(epilogue: str, a: Any, b: Any) -> bool:
    """Whether a product like this one is made with the epilogue: the library has an algorithm, and users have not said no.

    float64, which is for checking, keeps to our own kernels.
    """
    if not _matmul.settings.epilogues or a.dtype == np.float64:
        return False
    plan = plan_for(a, b, None, epilogue)
    return plan is not None and plan.descriptor != 0


def fused_product(epilogue: str, a: Any, b: Any, *, bias: Any = None, aux: Any = None, out: Any = None) -> Any:
    """a @ b with an epilogue that the library `offers` for it. Everything is overwritten, nothing is added to.

    Shapes: a (..., m, k), b (k, n), bias as in `Epilogue`, aux from `new_aux`, C order, aligned to 16 bytes; out (..., m, n) likewise.
    """
    plan = plan_for(a, b, out, epilogue)
    if tape.recorder is not None:
        tape.recorder.epilogues[epilogue] += 1
    assert plan is not None and plan.epilogue is not None, "`offers` says whether there is an algorithm"
    y = cupy.empty(plan.shape, a.dtype) if out is None else out
    with plan.epilogue.lock:
        plan.epilogue.point(*(0 if place is None else place.data.ptr for place in (bias, aux)))
        plan.multiply(a, b, y, False)
    return y
