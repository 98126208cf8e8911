"""Which devices of a cluster a trial can have, and how slots are spread, without any cluster."""

from __future__ import annotations

import pytest

from autotune.core.context import Device
from autotune.runners.ray_room import Node, Place, Post, rooms, seats_of, slots_of, spread
from autotune.trial.spec import TrialSpec
from tests.studies import make_facts

GIB = 2**30


def make_post(*gib: float, kind: str = "cuda", cores: int = 8) -> Post:
    """A node with devices of so many GiB."""
    node = Node(id=str(gib), host="10.0.0.1", cpus=cores, gpus=len(gib), memory=64 * GIB)
    post = Post(node=node, actor=None, greeting=None)
    post.places = [
        Place(
            post=post,
            device=Device(kind=kind, index=index, total_bytes=round(size * GIB), cores=cores),
        )
        for index, size in enumerate(gib)
    ]
    return post


def make_trial(gib: float, ranks: int = 1) -> TrialSpec:
    post = make_post(gib)
    return TrialSpec(
        number=0,
        config={"layout.ranks": ranks} if ranks > 1 else {},
        facts=make_facts(),
        device=post.places[0].device,
        threads=1,
        limit_bytes=round(gib * GIB),
        limit_seconds=60.0,
        cache="",
        log="",
    )


def indices(spec: TrialSpec, post: Post) -> list[list[int]]:
    return [[place.device.index for place in room.places] for room in rooms(spec, post.places)]


def test_several_small_trials_share_one_large_device() -> None:
    post = make_post(80, 24)
    (large, small) = post.places
    spec = make_trial(20)
    assert indices(spec, post) == [[0], [1]]
    for ticket in range(4):
        assert rooms(spec, [large])[0].free
        large.taken[ticket] = spec.limit_bytes
    assert not rooms(spec, [large])[0].free
    assert rooms(spec, [small])[0].free


def test_ranks_need_accelerators_side_by_side_on_one_node() -> None:
    post = make_post(24, 24, 24)
    assert indices(make_trial(20, ranks=2), post) == [[0, 1], [1, 2]]
    assert indices(make_trial(20, ranks=3), post) == [[0, 1, 2]]
    assert indices(make_trial(20, ranks=4), post) == []
    post.places[1].taken[0] = 20 * GIB
    assert not any(room.free for room in rooms(make_trial(20, ranks=2), post.places))


def test_ranks_on_a_cpu_take_its_memory_once_each() -> None:
    post = make_post(16, kind="cpu")
    assert rooms(make_trial(4, ranks=4), post.places)[0].bytes == (16 * GIB,)
    assert not rooms(make_trial(5, ranks=4), post.places)


def test_ranks_are_spread_over_nodes_where_one_has_no_room() -> None:
    cards, more, small = make_post(24, 24, 24), make_post(24, 24), make_post(16)
    places = [place for post in (small, more, cards) for place in post.places]
    room = spread(make_trial(20, ranks=5), places)
    assert room is not None
    assert [(place.post, ranks) for place, ranks in room.nodes] == [(cards, 3), (more, 2)]
    assert room.free
    cards.places[1].taken[0] = 20 * GIB  # what is left of it is not side by side
    assert spread(make_trial(20, ranks=5), places) is None
    assert spread(make_trial(20, ranks=5), places, empty=True) is not None
    room = spread(make_trial(20, ranks=3), places)
    assert room is not None
    assert [(place.post, ranks) for place, ranks in room.nodes] == [(more, 2), (cards, 1)]
    assert spread(make_trial(10), places) is None


def test_ranks_on_several_cpus_take_what_each_has() -> None:
    one, other = (make_post(size, kind="cpu") for size in (9, 5))
    room = spread(make_trial(4, ranks=3), [*other.places, *one.places])
    assert room is not None
    assert room.ranks == (2, 1)
    assert room.bytes == (8 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("kind", "gib", "cores", "seats"),
    [("cpu", 16, 8, 4), ("cpu", 64, 8, 8), ("cpu", 3, 8, 0), ("cuda", 80, 8, 1), ("cuda", 3, 8, 0)],
)
def test_seats_are_as_many_as_memory_and_cores_allow(
    kind: str, gib: float, cores: int, seats: int
) -> None:
    (place,) = make_post(gib, kind=kind, cores=cores).places
    assert seats_of(place.device, 4 * GIB) == seats


def test_slots_are_spread_as_evenly_as_seats_allow() -> None:
    small, large, unfit = (make_post(size, kind="cpu").places[0] for size in (4, 16, 1))
    for place in (small, large, unfit):
        place.seats = seats_of(place.device, 4 * GIB)
    places = [small, large, unfit]
    assert slots_of(places, None) == [small] + [large] * 4
    assert slots_of(places, 3) == [large] * 3
    assert slots_of(places, 10) == [small] * 2 + [large] * 8
    assert slots_of([unfit], None) == []
