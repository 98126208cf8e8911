"""What the CUDA caching allocator would reserve for a stream of allocations: a simulation.

Live tensors are not what a card must hold. The allocator rounds requests, cuts blocks out of
segments that it asks the driver for, keeps freed blocks for later, and gives back only segments
that are wholly free, and only when the driver says no. So a training that never holds more than
9 GiB of tensors may reserve 11, and may still run under a limit of 10, where the allocator returns
what it caches. `replay` answers the question that counts: does the stream run under the limit?

Sizes and rules are those of `c10/cuda/CUDACachingAllocator.cpp` and `AllocatorConfig.h`.

References:
    PyTorch documentation, "CUDA memory management"; the sources named above, torch 2.11 to 2.13.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

MIB = 2**20
LEAST_BLOCK = 512
SMALL_REQUEST = 1 * MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LEAST_OWN_SEGMENT = 10 * MIB
SEGMENT_MULTIPLE = 2 * MIB
LIMIT_PRECISION = 0.005
"""How closely the least limit of a stream is found, as a share of it."""


class SimulatedOutOfMemory(Exception):
    """A request does not fit under the limit, even after everything cached was given back.

    Attributes:
        requested: Bytes asked for.
        reserved: Bytes that segments in use hold.
    """

    def __init__(self, requested: int, reserved: int) -> None:
        super().__init__(f"{requested} bytes do not fit beside {reserved} reserved ones")
        self.requested = requested
        self.reserved = reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `PYTORCH_ALLOC_CONF` can say.

    Attributes:
        expandable: One segment per pool that grows, in place of many.
        most_split_bytes: Larger blocks are never split; None for no limit.
        collect_share: Unused segments are returned once this share of the limit is reserved.
    """

    expandable: bool = False
    most_split_bytes: int | None = None
    collect_share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Settings:
        """Read `PYTORCH_ALLOC_CONF`; settings that this simulation does not follow are ignored."""
        found = dict(part.split(":", 1) for part in text.split(",") if ":" in part)
        split, collect = found.get("max_split_size_mb"), found.get("garbage_collection_threshold")
        return cls(
            expandable=found.get("expandable_segments", "") == "True",
            most_split_bytes=int(split) * MIB if split else None,
            collect_share=float(collect) if collect else None,
        )


@dataclass(slots=True, eq=False)
class _Block:
    """A piece of a segment; `earlier` and `later` are its neighbours there."""

    segment: int
    start: int
    bytes: int
    small: bool
    free: bool = True
    earlier: _Block | None = None
    later: _Block | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        return (self.bytes, self.segment, self.start)

    @property
    def whole(self) -> bool:
        return self.earlier is None and self.later is None


@dataclass(slots=True)
class _Pool:
    """Free blocks by size, then by address: best fit is the first that is large enough."""

    keys: list[tuple[int, int, int]] = field(default_factory=list)
    blocks: dict[tuple[int, int, int], _Block] = field(default_factory=dict)

    def add(self, block: _Block) -> None:
        insort(self.keys, block.key)
        self.blocks[block.key] = block

    def remove(self, block: _Block) -> None:
        del self.keys[bisect_left(self.keys, block.key)]
        del self.blocks[block.key]

    def best(self, size: int) -> _Block | None:
        at = bisect_left(self.keys, (size, -1, -1))
        return self.blocks[self.keys[at]] if at < len(self.keys) else None


class CachingAllocator:
    """The allocator of one device and one stream.

    Args:
        limit_bytes: Most that may be reserved; None for no limit.
        settings: As in `PYTORCH_ALLOC_CONF`.

    Attributes:
        allocated_bytes: Bytes of blocks in use.
        reserved_bytes: Bytes of segments.
        peak_allocated: The greatest `allocated_bytes`.
        peak_reserved: The greatest `reserved_bytes`.
    """

    def __init__(self, limit_bytes: int | None = None, settings: Settings | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.settings = settings or Settings()
        self.allocated_bytes = self.reserved_bytes = 0
        self.peak_allocated = self.peak_reserved = 0
        self._pools = {True: _Pool(), False: _Pool()}
        self._segments = 0
        self._growing: dict[bool, _Block] = {}

    def allocate(self, size: int) -> _Block:
        """Return a block for a request of `size` bytes.

        Raises:
            SimulatedOutOfMemory: If it does not fit under the limit.
        """
        rounded = max(LEAST_BLOCK, -(-size // LEAST_BLOCK) * LEAST_BLOCK)
        small = rounded <= SMALL_REQUEST
        block = self._fitting(rounded, small)
        if block is None:
            self._collect(rounded)
            block = self._new(rounded, small)
        self._split(block, rounded)
        block.free = False
        self.allocated_bytes += block.bytes
        self.peak_allocated = max(self.peak_allocated, self.allocated_bytes)
        return block

    def free(self, block: _Block) -> None:
        """Give a block back to the allocator, which keeps it for later."""
        self.allocated_bytes -= block.bytes
        block.free = True
        pool = self._pools[block.small]
        for neighbour in (block.earlier, block.later):
            if neighbour is not None and neighbour.free:
                pool.remove(neighbour)
                self._merge(block, neighbour)
        pool.add(block)

    def release(self) -> None:
        """Give every segment that is wholly free back to the driver, as `empty_cache` does."""
        for small, pool in self._pools.items():
            for block in list(pool.blocks.values()):
                if block is self._growing.get(small) or self._is_part_of_growing(block):
                    self._unmap(block, small)
                elif block.whole:
                    pool.remove(block)
                    self.reserved_bytes -= block.bytes

    def _fitting(self, size: int, small: bool) -> _Block | None:  # noqa: FBT001  (a pool's name)
        block = self._pools[small].best(size)
        most = self.settings.most_split_bytes
        if block is None:
            return None
        if most is not None and not self.settings.expandable:
            if size < most <= block.bytes:
                return None
            if size >= most and block.bytes >= size + LARGE_SEGMENT:
                return None
        self._pools[small].remove(block)
        return block

    def _new(self, size: int, small: bool) -> _Block:  # noqa: FBT001  (a pool's name)
        if self.settings.expandable:
            return self._grow(size, small)
        amount = _segment_bytes(size)
        if not self._fits(amount):
            self.release()
        if not self._fits(amount):
            raise SimulatedOutOfMemory(size, self.reserved_bytes)
        self._reserve(amount)
        self._segments += 1
        return _Block(self._segments, 0, amount, small)

    def _grow(self, size: int, small: bool) -> _Block:  # noqa: FBT001  (a pool's name)
        """Map as many pages behind the end of the pool's segment as a request needs."""
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        last = self._growing.get(small)
        reusable = last.bytes if last is not None and last.free else 0
        amount = -(-(size - reusable) // page) * page
        if not self._fits(amount):
            self.release()
            last = self._growing.get(small)
            reusable = last.bytes if last is not None and last.free else 0
            amount = -(-(size - reusable) // page) * page
        if not self._fits(amount):
            raise SimulatedOutOfMemory(size, self.reserved_bytes)
        self._reserve(amount)
        if last is not None and reusable:
            self._pools[small].remove(last)
            last.bytes += amount
            return last
        start = last.start + last.bytes if last is not None else 0
        block = _Block(-1, start, amount, small, earlier=last)
        if last is not None:
            last.later = block
        self._growing[small] = block
        return block

    def _split(self, block: _Block, size: int) -> None:
        rest = block.bytes - size
        most = self.settings.most_split_bytes
        if block.small or self.settings.expandable:
            split = rest >= LEAST_BLOCK
        else:
            split = rest > SMALL_REQUEST and (most is None or size < most)
        if not split:
            return
        other = _Block(
            block.segment, block.start + size, rest, block.small, earlier=block, later=block.later
        )
        if block.later is not None:
            block.later.earlier = other
        block.later, block.bytes = other, size
        if self._growing.get(block.small) is block:
            self._growing[block.small] = other
        self._pools[block.small].add(other)

    def _merge(self, block: _Block, neighbour: _Block) -> None:
        if neighbour is block.earlier:
            block.start, block.earlier = neighbour.start, neighbour.earlier
            if block.earlier is not None:
                block.earlier.later = block
        else:
            block.later = neighbour.later
            if block.later is not None:
                block.later.earlier = block
            if self._growing.get(block.small) is neighbour:
                self._growing[block.small] = block
        block.bytes += neighbour.bytes

    def _collect(self, size: int) -> None:
        """Return cached segments before asking for more, if a threshold is set and passed."""
        share, limit = self.settings.collect_share, self.limit_bytes
        if share is not None and limit is not None and self.reserved_bytes + size > share * limit:
            self.release()

    def _is_part_of_growing(self, block: _Block) -> bool:
        return self.settings.expandable and block.segment == -1

    def _unmap(self, block: _Block, small: bool) -> None:  # noqa: FBT001  (a pool's name)
        """Give back the whole pages at the end of a growing segment."""
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        if block is not self._growing.get(small):
            return
        kept = -(-block.start // page) * page - block.start
        freed = (block.bytes - kept) // page * page
        if freed <= 0:
            return
        pool = self._pools[small]
        pool.remove(block)
        self.reserved_bytes -= freed
        block.bytes -= freed
        if block.bytes:
            pool.add(block)
            return
        if block.earlier is None:
            del self._growing[small]
        else:
            block.earlier.later = None
            self._growing[small] = block.earlier

    def _fits(self, amount: int) -> bool:
        return self.limit_bytes is None or self.reserved_bytes + amount <= self.limit_bytes

    def _reserve(self, amount: int) -> None:
        self.reserved_bytes += amount
        self.peak_reserved = max(self.peak_reserved, self.reserved_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a stream ran.

    Attributes:
        allocated_bytes: Peak of blocks in use, up to where it ended.
        reserved_bytes: Peak of segments, up to where it ended.
        fits: Whether it ran to its end.
        needed_bytes: Where it did not: reserved bytes plus the request that failed, or the least
            limit under which it does, if that was looked for.
    """

    allocated_bytes: int
    reserved_bytes: int
    fits: bool = True
    needed_bytes: int = 0


def replay(
    stream: Iterable[tuple[int, int]],
    *,
    limit_bytes: int | None = None,
    settings: Settings | None = None,
) -> Replay:
    """Run a stream of allocations through the simulated allocator.

    Args:
        stream: `(number, bytes)` allocates block `number`; `(number, 0)` frees it.
        limit_bytes: Most that may be reserved; None for no limit.
        settings: As in `PYTORCH_ALLOC_CONF`.

    Returns:
        The peaks, and whether the stream ran to its end.
    """
    allocator = CachingAllocator(limit_bytes, settings)
    blocks: dict[int, _Block] = {}
    try:
        for number, size in stream:
            if size > 0:
                blocks[number] = allocator.allocate(size)
            else:
                allocator.free(blocks.pop(number))
    except SimulatedOutOfMemory as error:
        return Replay(
            allocated_bytes=allocator.peak_allocated,
            reserved_bytes=allocator.peak_reserved,
            fits=False,
            needed_bytes=error.reserved + error.requested,
        )
    return Replay(allocated_bytes=allocator.peak_allocated, reserved_bytes=allocator.peak_reserved)


def least_limit(
    stream: Sequence[tuple[int, int]], *, above: int, settings: Settings | None = None
) -> Replay:
    """Find the least limit under which a stream runs, by halves, to `LIMIT_PRECISION`.

    Args:
        stream: As in `replay`.
        above: A limit under which it does not run.
        settings: As in `PYTORCH_ALLOC_CONF`.

    Returns:
        The peaks under that limit, which is what is reserved; `fits` is false, and `needed_bytes`
        is the limit.
    """
    ran = replay(stream, settings=settings)
    too_little, enough = max(above, ran.allocated_bytes - 1), ran.reserved_bytes
    while enough - too_little > LIMIT_PRECISION * enough:
        middle = (too_little + enough) // 2
        if replay(stream, limit_bytes=middle, settings=settings).fits:
            enough = middle
        else:
            too_little = middle
    return replace(ran, reserved_bytes=enough, fits=False, needed_bytes=enough)


def _segment_bytes(size: int) -> int:
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < LEAST_OWN_SEGMENT:
        return LARGE_SEGMENT
    return -(-size // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE
