"""Memory that belongs to one recording.

A replay writes to the memory of every array of the recorded run, whether or not somebody still holds the array. So what the run frees
may be handed out again within that run, and to nobody else. A `cupy.cuda.MemoryPool` of its own would do that too, but what lies free
in one is lost when the pool itself is dropped.

Where an array lies has to be known when it is made, when nobody knows yet what comes later. But a run was listened to before: its
`Survey` says how long arrays of each size live, and so where to put them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import cupy

from .._program import lay_out, most_at_once

UNIT = 512  # bytes, to which sizes are rounded up, as in CuPy's pool: no array shares a sector or a cache line with another

SMALL = 64  # what is small takes less than this part of the memory that a run needs at once


def rounded(size: int) -> int:
    return max(UNIT, -(-size // UNIT) * UNIT)


class Survey:
    """An allocator for CuPy that notes which arrays a run makes, and how long they live."""

    def __init__(self, source: Callable[[int], Any]):
        self.source = source
        self.needs: list[
            list[Any]
        ] = []  # size, and the number of arrays that were made before it ended; None: it has not
        self.holding = False
        self.held: list[list[Any]] = []  # what has ended while it did

    def allocate(self, size: int) -> Any:
        need = [rounded(size), None]
        self.needs.append(need)
        return cupy.cuda.MemoryPointer(Surveyed(self.source(size), need, self), 0)

    def hold(self, holding: bool) -> None:
        """As of an `Arena`."""
        for need in self.held:
            need[1] = len(self.needs)
        self.held.clear()
        self.holding = holding

    def ends(self, need: list[Any]) -> None:
        if self.holding:
            self.held.append(need)
        else:
            need[1] = len(self.needs)

    def plan(self) -> Plan:
        """Where to put the arrays of another run.

        Those that outlive the run are left out: many are made in the first one only. So are small ones: which of them are made may differ
        in a recording (counters, a gradient that is written where it lives), and one in the wrong place would be in a large one's way.
        """
        self.hold(False)
        lives = {i: (i, need[1] - 1, need[0]) for i, need in enumerate(self.needs) if need[1] is not None}
        small = most_at_once(lives.values()) // SMALL
        lives = {i: life for i, life in lives.items() if life[2] > small}
        offsets = dict(zip(lives, lay_out(list(lives.values()))))
        made = Plan(max((offsets[i] + self.needs[i][0] for i in lives), default=0), {})
        for i, (size, _) in enumerate(self.needs):
            made.places.setdefault(size, deque()).append(offsets.get(i))
        self.needs = []
        return made


class Surveyed(cupy.cuda.memory.BaseMemory):
    """Memory of an array that a survey knows of."""

    def __init__(self, pointer: Any, need: list[Any], survey: Survey):
        self.ptr, self.size, self.device_id = pointer.ptr, pointer.mem.size, pointer.mem.device_id
        self.pointer, self.need, self.survey = pointer, need, survey

    def __del__(self) -> None:
        self.survey.ends(self.need)


class Plan:
    """A piece of memory, and where in it arrays are to lie: offsets by size, in the order in which they are made."""

    def __init__(self, size: int, places: dict[int, deque]):
        self.size, self.places = size, places

    def next(self, size: int) -> int | None:
        """The offset of the next array of a size, if it has one."""
        places = self.places.get(size)
        return places.popleft() if places else None


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

    def take(self, start: int, stop: int) -> bool:
        """Takes a part out of the gaps, if it is free."""
        gap = next((gap for gap in self.gaps if gap[0] <= start and stop <= gap[1]), None)
        if gap is None:
            return False
        self.gaps.remove(gap)
        self.gaps += [part for part in ((gap[0], start), (stop, gap[1])) if part[0] < part[1]]
        return True


class Part(cupy.cuda.memory.BaseMemory):
    """Part of a block, for one array; goes back to the block when nobody holds the array any more."""

    def __init__(self, block: Block, start: int, size: int):
        self.ptr, self.size, self.device_id = start, size, block.memory.device_id
        self.block = block

    def __del__(self) -> None:
        self.block.returned.append((self.ptr, self.ptr + self.size))


class Arena:
    """Blocks for the arrays of a recording. `allocate` is an allocator for CuPy; it lives as long as a part of it is held."""

    def __init__(self, source: Callable[[int], Any], plan: Plan | None = None):
        self.source, self.blocks = source, list[Block]()
        self.plan = plan if plan is not None and plan.size else None
        self.peak = 0  # bytes that arrays held at once
        self.holding = False

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self.blocks)

    def allocate(self, size: int) -> Any:
        """Memory for an array: where the plan says, else the end of the smallest gap that is large enough, or a new block."""
        size = rounded(size)
        if not self.holding:
            self.settle()
        block, start = self._planned(size) or self._fitting(size)
        block.take(start, start + size)
        free = sum(stop - start for block in self.blocks for start, stop in block.gaps)
        self.peak = max(self.peak, self.size - free)
        return cupy.cuda.MemoryPointer(Part(block, start, size), 0)

    def _planned(self, size: int) -> tuple[Block, int] | None:
        """The place that was meant for an array, if it is free: this run may differ from the one that was surveyed."""
        if self.plan is None:
            return None
        if not self.blocks:
            self.blocks.append(Block(self.source(self.plan.size), self.plan.size))
        block, offset = self.blocks[0], self.plan.next(size)
        if offset is None or not any(
            a <= block.start + offset and block.start + offset + size <= b for a, b in block.gaps
        ):
            return None
        return block, block.start + offset

    def _fitting(self, size: int) -> tuple[Block, int]:
        """What is planned is kept for those that it is meant for."""
        blocks = self.blocks[1:] if self.plan is not None else self.blocks
        gaps = [(stop - start, stop, block) for block in blocks for start, stop in block.gaps if stop - start >= size]
        if gaps:
            _, stop, block = min(gaps, key=lambda gap: gap[:2])
            return block, stop - size
        block = Block(self.source(size), size)
        self.blocks.append(block)
        return block, block.start

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
