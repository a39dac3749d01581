"""Memory that belongs to one recording.

A replay writes to the memory of every array of the recorded run, whether or not somebody still holds the array. So what the run frees
may be handed out again within that run, and to nobody else. A `cupy.cuda.MemoryPool` of its own would do that too, but what lies free
in one is lost when the pool itself is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

UNIT = 512  # bytes, to which sizes are rounded up, as in CuPy's pool: no array shares a sector or a cache line with another


class Block:
    """Memory from CuPy's pool, and which parts of it no array holds."""

    def __init__(self, memory: Any, size: int):
        self.memory, self.start, self.size = memory, memory.ptr, size
        self.gaps = [(self.start, self.start + size)]
        self.returned: list[
            tuple[int, int]
        ] = []  # the collector may return memory at any moment: it goes to the gaps when they are needed

    def settle(self) -> None:
        """Makes gaps of what was returned, joined where they touch."""
        while self.returned:
            self.gaps.append(self.returned.pop())
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(self.gaps):
            if joined and joined[-1][1] == start:
                joined[-1] = joined[-1][0], stop
            else:
                joined.append((start, stop))
        self.gaps = joined


class Part(cupy.cuda.memory.BaseMemory):
    """Part of a block, for one array; goes back to the block when nobody holds the array any more."""

    def __init__(self, block: Block, start: int, size: int):
        self.ptr, self.size, self.device_id = start, size, block.memory.device_id
        self.block = block

    def __del__(self) -> None:
        self.block.returned.append((self.ptr, self.ptr + self.size))


class Arena:
    """Blocks for the arrays of a recording. `allocate` is an allocator for CuPy; it lives as long as a part of it is held."""

    def __init__(self, source: Callable[[int], Any]):
        self.source, self.blocks = source, list[Block]()
        self.holding = False
        self.peak = 0  # bytes that arrays held at once

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self.blocks)

    def allocate(self, size: int) -> Any:
        """Memory for an array: the end of the smallest gap that is large enough, or a new block."""
        size = max(UNIT, -(-size // UNIT) * UNIT)
        if not self.holding:
            self.settle()
        gaps = [(stop - start, start, block) for block in self.blocks for start, stop in block.gaps]
        fitting = [gap for gap in gaps if gap[0] >= size]
        if fitting:
            length, start, block = min(fitting, key=lambda gap: gap[:2])
        else:
            block = Block(self.source(size), size)
            self.blocks.append(block)
            length, start = size, block.start
        block.gaps.remove((start, start + length))
        if length > size:
            block.gaps.append((start, start + length - size))
        free = sum(stop - start for block in self.blocks for start, stop in block.gaps)
        self.peak = max(self.peak, self.size - free)
        return cupy.cuda.MemoryPointer(Part(block, start + length - size, size), 0)

    def settle(self) -> None:
        """What was returned may be handed out again."""
        for block in self.blocks:
            block.settle()

    def hold(self, holding: bool) -> None:
        """Sets whether what is returned from now on stays untouched: work on another stream may not be done with it."""
        self.settle()
        self.holding = holding

    def holds(self, array: Any) -> bool:
        """Whether an array has its memory from here."""
        memory = array.data.mem
        return isinstance(memory, Part) and memory.block in self.blocks
