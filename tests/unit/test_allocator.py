"""The simulated caching allocator: sizes, splitting, merging, limits, and what always holds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.memory.allocator import (
    LARGE_SEGMENT,
    LIMIT_PRECISION,
    MIB,
    SMALL_SEGMENT,
    CachingAllocator,
    Settings,
    SimulatedOutOfMemory,
    least_limit,
    replay,
)


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, SMALL_SEGMENT),
        (513, 1024, SMALL_SEGMENT),
        (1 * MIB, 1 * MIB, SMALL_SEGMENT),
        (1 * MIB + 1, 1 * MIB + 512, LARGE_SEGMENT),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (11 * MIB + 1, 12 * MIB, 12 * MIB),  # a rest below 1 MiB stays with the block
        (33 * MIB, 34 * MIB, 34 * MIB),
    ],
)
def test_sizes_of_blocks_and_segments(size: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_a_freed_block_is_used_again_by_best_fit() -> None:
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(12 * MIB)
    allocator.free(large)
    allocator.free(small)
    assert allocator.allocate(12 * MIB) is small
    assert allocator.reserved_bytes == 52 * MIB


def test_neighbours_merge_and_segments_go_back_only_when_whole() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    assert allocator.reserved_bytes == LARGE_SEGMENT
    for block in blocks[:3]:
        allocator.free(block)
    allocator.release()
    assert allocator.reserved_bytes == LARGE_SEGMENT
    allocator.free(blocks[3])
    allocator.release()
    assert allocator.reserved_bytes == 0


def test_under_a_limit_cached_segments_are_returned_before_giving_up() -> None:
    stream = [(1, 30 * MIB), (1, 0), (2, 40 * MIB)]
    free, tight = replay(stream), replay(stream, limit_bytes=40 * MIB)
    assert free.reserved_bytes == 70 * MIB
    assert tight.fits
    assert tight.reserved_bytes == 40 * MIB
    over = replay(stream, limit_bytes=39 * MIB)
    assert not over.fits
    assert over.needed_bytes == 40 * MIB


def test_expandable_segments_leave_no_holes() -> None:
    stream = [(1, 30 * MIB), (2, 30 * MIB), (1, 0), (2, 0), (3, 60 * MIB)]
    assert replay(stream).reserved_bytes == 120 * MIB
    assert replay(stream, settings=Settings(expandable=True)).reserved_bytes == 60 * MIB


def test_large_blocks_stay_whole_above_the_split_limit() -> None:
    stream = [(1, 300 * MIB), (1, 0), (2, 20 * MIB)]
    assert replay(stream).reserved_bytes == 300 * MIB
    limited = replay(stream, settings=Settings.parse("max_split_size_mb:128"))
    assert limited.reserved_bytes == 320 * MIB


def test_collecting_returns_segments_early() -> None:
    stream = [(1, 50 * MIB), (1, 0), (2, 60 * MIB)]
    settings = Settings.parse("garbage_collection_threshold:0.5")
    assert replay(stream, limit_bytes=200 * MIB).reserved_bytes == 110 * MIB
    collected = replay(stream, limit_bytes=200 * MIB, settings=settings)
    assert collected.reserved_bytes == 60 * MIB


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[int, int]]:
    stream: list[tuple[int, int]] = []
    live: list[int] = []
    for number in range(draw(st.integers(1, 60))):
        if live and draw(st.booleans()):
            stream.append((live.pop(draw(st.integers(0, len(live) - 1))), 0))
        stream.append((number, draw(st.integers(1, 64 * MIB))))
        live.append(number)
    return stream


SETTINGS = [Settings(), Settings(expandable=True), Settings(most_split_bytes=32 * MIB)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@given(stream=streams())
def test_what_always_holds(settings: Settings, stream: list[tuple[int, int]]) -> None:
    allocator = CachingAllocator(settings=settings)
    blocks, sizes = {}, {}
    for number, size in stream:
        if size:
            blocks[number], sizes[number] = allocator.allocate(size), size
        else:
            allocator.free(blocks.pop(number))
            del sizes[number]
        taken = sorted((b.small, b.segment, b.start, b.start + b.bytes) for b in blocks.values())
        for (*a, _, end), (*b, start, _) in itertools.pairwise(taken):
            assert a != b or end <= start, "blocks in use never overlap"
        assert all(block.bytes >= sizes[n] for n, block in blocks.items())
        assert allocator.allocated_bytes == sum(block.bytes for block in blocks.values())
        assert allocator.reserved_bytes >= allocator.allocated_bytes
    for block in blocks.values():
        allocator.free(block)
    allocator.release()
    assert allocator.allocated_bytes == allocator.reserved_bytes == 0


@given(stream=streams())
def test_a_limit_is_never_passed(stream: list[tuple[int, int]]) -> None:
    limit = 200 * MIB
    found = replay(stream, limit_bytes=limit)
    assert found.reserved_bytes <= limit
    assert found.fits or found.needed_bytes > limit


def test_an_impossible_request_says_what_it_wanted() -> None:
    with pytest.raises(SimulatedOutOfMemory) as caught:
        CachingAllocator(limit_bytes=10 * MIB).allocate(11 * MIB)
    assert caught.value.requested == 11 * MIB


@given(stream=streams())
def test_the_least_limit_is_between_what_is_allocated_and_what_is_reserved(
    stream: list[tuple[int, int]],
) -> None:
    free = replay(stream)
    above = max(1, free.allocated_bytes // 2)
    found = least_limit(stream, above=above)
    assert not found.fits
    assert free.allocated_bytes <= found.needed_bytes <= free.reserved_bytes
    assert replay(stream, limit_bytes=found.needed_bytes).fits


def test_the_least_limit_is_the_least() -> None:
    # Without a limit the 60 MiB stay cached beside 70; what must be there at once are 70 and 20.
    stream = [(1, 60 * MIB), (1, 0), (2, 70 * MIB), (3, 20 * MIB), (2, 0), (3, 0)]
    assert replay(stream).reserved_bytes == 130 * MIB
    found = least_limit(stream, above=40 * MIB)
    assert found.needed_bytes == pytest.approx(90 * MIB, rel=2 * LIMIT_PRECISION)
    assert not replay(stream, limit_bytes=90 * MIB - 1).fits
