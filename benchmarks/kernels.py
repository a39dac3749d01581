"""Every kernel through NVIDIA's own compiler and disassembler: `python -m benchmarks.kernels`. Neither a GPU nor a driver is needed.

NVRTC, its headers and nvdisasm come from PyPI (the extra `kernels`). Options are those that CuPy compiles with.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import gpuprop  # noqa: F401  (its ops bind their kernels)
from gpuprop.cuda.source import OPTIONS, Kernel, all_kernels, complete

ARCHITECTURES = (75, 80, 90, 100, 120)
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
TOGETHER = 48  # kernels in one translation unit: compiler and disassembler take longer to start than to do one


class Unavailable(Exception):
    """A tool that this machine does not have."""


def find(pattern: str) -> Path:
    """A file of NVIDIA's packages on PyPI, which share the folder `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(f"*/{pattern}"), reverse=True):
            return path
    raise Unavailable(f"{Path(pattern).name} is not installed (pip install 'gpuprop[kernels]')")


@dataclass(frozen=True)
class Compiled:
    """What became of a kernel on one architecture."""

    registers: int
    shared: int  # bytes, static
    stack: int  # bytes per thread, in local memory
    spills: int  # bytes
    instructions: tuple[str, ...]  # SASS, with modifiers

    @property
    def float64(self) -> list[str]:
        """Instructions that compute in float64, or convert from or to it."""
        return [i for i in self.instructions if re.match(r"D(ADD|MUL|FMA|SETP|MNMX)\b", i) or "F64" in i or "64H" in i]

    @property
    def local(self) -> list[str]:
        """Accesses of local memory."""
        return [i for i in self.instructions if re.match(r"(LDL|STL)\b", i)]

    def moves_packs(self) -> bool:
        """Whether there are 16-byte loads from and stores to global memory."""
        return all(any(re.match(rf"{op}\b.*\.(128|256)\b", i) for i in self.instructions) for op in ("LDG", "STG"))


def occupancy(compiled: Compiled, threads: int) -> float:
    """Resident warps over the 64 that an sm_90 multiprocessor has room for: 65,536 registers in units of 256 per warp, 227 KiB
    of shared memory, 32 blocks. Source: CUDA C++ Programming Guide, compute capabilities 9.0."""
    warps = -(-threads // 32)
    by_registers = 65536 // (-(-compiled.registers * 32 // 256) * 256) // warps
    by_shared = 233472 // (compiled.shared + 1024)  # the system takes 1 KiB per block
    return min(by_registers, by_shared, 64 // warps, 32) * warps / 64


# --- Compiler and disassembler --------------------------------------------------------------------------------------


class Compiler:
    """NVRTC, through its C interface. Raises: Unavailable."""

    def __init__(self) -> None:
        self.headers = find("include/cuda_fp16.h").parent
        self.nvdisasm = find("bin/nvdisasm")
        self.nvrtc = ctypes.CDLL(str(find("lib/libnvrtc.so.*[0-9]")))

    def compile(self, source: str, architecture: int) -> tuple[str, bytes]:
        """The compiler's log, with what ptxas says about each kernel, and the cubin (empty where it does not compile)."""
        options = [*OPTIONS, *CUPY_OPTIONS, f"-arch=sm_{architecture}", f"-I{self.headers}", "--ptxas-options=-v"]
        program = ctypes.c_void_p()
        self.nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        try:
            encoded = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
            failed = self.nvrtc.nvrtcCompileProgram(program, len(options), encoded)
            return self._read(program, "ProgramLog").decode().rstrip("\0"), b"" if failed else self._read(
                program, "CUBIN"
            )
        finally:
            self.nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        room = ctypes.create_string_buffer(size.value)
        getattr(self.nvrtc, f"nvrtcGet{what}")(program, room)
        return room.raw

    def disassemble(self, cubin: bytes) -> dict[str, tuple[str, ...]]:
        """The instructions of each kernel."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            listing = subprocess.run(
                [self.nvdisasm, "-c", "-ndf", file.name], check=True, capture_output=True, text=True
            ).stdout
        kernels = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", listing, flags=re.M)[1:]
        instruction = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
        return {name: tuple(instruction.findall(body)) for name, body in zip(kernels[::2], kernels[1::2], strict=True)}


# What ptxas says of one kernel; what is left of a log when this is taken out is a warning.
PROPERTIES = re.compile(
    r"ptxas info\s*: Compiling entry function '(?P<name>\w+)' for .*\n"
    r"ptxas info\s*: Function properties for .*\n"
    r"ptxas\s+\.\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"ptxas info\s*: Used (?P<registers>\d+) registers(?P<more>.*)\n"
    r"ptxas info\s*: Compile time.*\n"
)
COUNTS = re.compile(r"ptxas info\s*: \d+ bytes gmem.*\n")


def inspect(compiler: Compiler, kernels: list[Kernel], architecture: int) -> tuple[dict[Kernel, Compiled], str]:
    """Compiles kernels of one file together: what became of each, and what the compiler complained of."""
    log, cubin = compiler.compile(complete(kernels), architecture)
    complaints = COUNTS.sub("", PROPERTIES.sub("", log)).strip()
    if not cubin:
        return {}, complaints or "does not compile"
    instructions = compiler.disassemble(cubin)
    properties = {match["name"]: match for match in PROPERTIES.finditer(log)}
    found = {}
    for kernel in kernels:
        match = properties[kernel.name]
        shared = re.search(r"(\d+) bytes smem", match["more"])
        found[kernel] = Compiled(
            registers=int(match["registers"]),
            shared=int(shared[1]) if shared else 0,
            stack=int(match["stack"]),
            spills=int(match["stores"]) + int(match["loads"]),
            instructions=instructions[kernel.name],
        )
    return found, complaints


@dataclass(frozen=True)
class Found:
    """What became of kernels on one architecture, what each does that it must not, and what the compiler complained of."""

    compiled: dict[Kernel, Compiled]
    faults: dict[Kernel, list[str]]
    complaints: list[str]


def inspect_all(kernels: dict[Kernel, bool], architecture: int, compiler: Compiler) -> Found:
    """All kernels (and whether each streams) on one architecture.

    Many are compiled together. Neighbours change a few instructions of a kernel, so one with a fault is compiled again alone, as it is
    for a launch.
    """
    by_file: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_file.setdefault(kernel.file, []).append(kernel)
    units = [same[i : i + TOGETHER] for same in by_file.values() for i in range(0, len(same), TOGETHER)]

    def look_at(unit: list[Kernel]) -> Found:
        compiled, complaints = inspect(compiler, unit, architecture)
        wrong = {k: f for k, c in compiled.items() if (f := faults(k, c, kernels[k], architecture))}
        if len(unit) > 1:
            for kernel in wrong:
                alone = look_at([kernel])
                compiled.update(alone.compiled)
                wrong[kernel] = alone.faults.get(kernel, [])
        return Found(compiled, {k: f for k, f in wrong.items() if f}, [complaints] if complaints else [])

    everything = Found({}, {}, [])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(look_at, units):
            everything.compiled.update(found.compiled)
            everything.faults.update(found.faults)
            everything.complaints.extend(found.complaints)
    return everything


def faults(kernel: Kernel, compiled: Compiled, streaming: bool, architecture: int) -> list[str]:
    """What a kernel must not do, and does."""
    found = []
    if compiled.spills:
        found.append(f"{compiled.spills} bytes spilled")
    if compiled.stack or compiled.local:
        found.append("local memory")
    if compiled.float64 and "float64" not in kernel.dtypes:
        found.append(f"float64: {compiled.float64[0]}")
    if streaming and not compiled.moves_packs():
        found.append("no 128-bit loads and stores")
    if architecture == 90 and occupancy(compiled, kernel.threads) < 0.5:
        found.append(f"occupancy {occupancy(compiled, kernel.threads):.0%}")
    return found


# --- The table ------------------------------------------------------------------------------------------------------


def main(
    only: Annotated[str, typer.Option(help="Kernels whose names match this regular expression.")] = "",
    architectures: Annotated[str, typer.Option(help="Compute capabilities, without the dot.")] = ",".join(
        map(str, ARCHITECTURES)
    ),
) -> None:
    """Compiles every kernel and prints its registers on each architecture, its occupancy on sm_90, and its faults."""
    from rich.console import Console
    from rich.table import Table

    kernels = {k: streaming for k, streaming in all_kernels().items() if re.search(only, k.name)}
    console = Console(width=None if sys.stdout.isatty() else 160)
    wanted = [int(a) for a in architectures.split(",")]
    start = time.perf_counter()
    try:
        compiler = Compiler()
    except Unavailable as reason:
        console.print(f"nothing compiled: {reason}", markup=False)
        raise typer.Exit(2) from None
    found = {a: inspect_all(kernels, a, compiler) for a in wanted}
    seconds = time.perf_counter() - start
    table = Table("kernel", "in", *(f"sm_{a}" for a in wanted), "shared", "occupancy", "faults")
    for kernel in kernels:
        made = {a: f.compiled[kernel] for a, f in found.items() if kernel in f.compiled}
        ninety = made.get(90)
        table.add_row(
            kernel.name,
            kernel.file,
            *(str(made[a].registers) if a in made else "fails" for a in wanted),
            str(ninety.shared) if ninety else "",
            f"{occupancy(ninety, kernel.threads):.0%}" if ninety else "",
            "; ".join(f"{', '.join(f.faults[kernel])} (sm_{a})" for a, f in found.items() if kernel in f.faults)
            or "none",
        )
    console.print(table)
    complaints = [f"sm_{a}: {complaint}" for a, f in found.items() for complaint in f.complaints]
    for complaint in complaints:
        console.print(complaint, markup=False)
    wrong = len({k for f in found.values() for k in f.faults})
    console.print("sm_*: registers per thread; shared: bytes per block; occupancy: of sm_90")
    console.print(
        f"{len(kernels)} kernels for {len(wanted)} architectures in {seconds:.0f} s; {wrong} with faults, "
        f"{len(complaints)} translation units with warnings or errors"
    )
    raise typer.Exit(1 if wrong or complaints else 0)


if __name__ == "__main__":
    typer.run(main)
