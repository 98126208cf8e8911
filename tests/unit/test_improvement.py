"""Expected hypervolume improvement in closed form, beside brute force."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.core.pareto import hypervolume
from autotune.search.improvement import (
    CELLS,
    ROUGH,
    Grid,
    best_losses,
    expected_improvement,
    volume,
)

CAP = 4.0
TWO = Grid.within((0.0, 10.0))
THREE = Grid.within((0.0, 10.0), (0.1, 5.0))


def front(rng, count, options):
    losses = rng.uniform(1.0, 3.5, count)
    return losses, rng.uniform(0.5, 12.0, (count, options)), rng.uniform(0.2, 5.5, (count, options))


def inside(memory):
    return np.where(memory <= 10.0, memory, np.inf)


def test_cells_cover_the_budget():
    assert len(TWO.memory) == CELLS
    assert (len(THREE.memory), len(THREE.time)) == (ROUGH, ROUGH)
    assert TWO.memory[-1] == 10.0
    assert THREE.time[0] == pytest.approx(0.1 * 50 ** (1 / ROUGH))


def test_volume_is_the_hypervolume_up_to_a_cell():
    rng = np.random.default_rng(0)
    losses, memory, _ = front(rng, 12, 3)
    reached = best_losses(TWO.reach(inside(memory)), losses, CAP)
    exact = hypervolume(
        [(loss, m) for loss, row in zip(losses, memory, strict=True) for m in row], (CAP, 10.0)
    )
    cell = 10.0 / CELLS
    assert volume(reached, CAP) * cell == pytest.approx(exact, abs=len(losses) * cell * CAP)


@pytest.mark.parametrize("timed", [False, True])
def test_expected_improvement_is_the_mean_over_many_draws(timed):
    rng = np.random.default_rng(1)
    grid = THREE if timed else TWO
    losses, memory, seconds = front(rng, 8, 3)
    reached = best_losses(grid.reach(inside(memory), seconds if timed else None), losses, CAP)
    _, memory, seconds = front(rng, 6, 4)
    reach = grid.reach(inside(memory), seconds if timed else None)
    mean, spread = rng.uniform(1.0, 3.0, 6), rng.uniform(0.05, 0.8, 6)
    found = expected_improvement(mean, spread, reach, reached)
    for index in range(6):
        draws = rng.normal(mean[index], spread[index], 20_000)
        gains = np.maximum(reached[reach[index]][None] - draws[:, None], 0.0).sum(1)
        error = gains.std() / np.sqrt(len(draws))
        assert found[index] == pytest.approx(gains.mean(), abs=5 * error + 1e-9)


def test_cells_that_are_reached_follow_from_memory_and_time_together():
    rng = np.random.default_rng(2)
    _, memory, seconds = front(rng, 30, 3)
    memory = inside(memory)
    reach = THREE.reach(memory, seconds).reshape(30, ROUGH, ROUGH)
    for row in range(30):
        for cell in ((0, 0), (7, 31), (20, 20), (39, 5), (39, 39)):
            fits = (memory[row] <= THREE.memory[cell[0]]) & (seconds[row] <= THREE.time[cell[1]])
            assert reach[row][cell] == fits.any()


def test_what_does_not_fit_or_cannot_be_better_promises_nothing():
    reached = best_losses(TWO.reach(np.array([[2.0]])), np.array([1.0]), CAP)
    over = TWO.reach(np.array([[np.inf], [5.0]]))
    mean, spread = np.array([0.1, 3.0]), np.array([0.1, 0.01])
    found = expected_improvement(mean, spread, over, reached)
    assert found[0] == 0.0
    assert found[1] == pytest.approx(0.0, abs=1e-12)


def test_leaner_and_surer_of_equal_means_promise_more_where_they_should():
    reached = best_losses(TWO.reach(np.array([[6.0]])), np.array([2.0]), CAP)
    mean, spread = np.full(3, 2.0), np.array([0.1, 0.1, 0.3])
    gains = expected_improvement(mean, spread, TWO.reach(np.array([[8.0], [3.0], [8.0]])), reached)
    assert gains[1] > gains[0]
    assert gains[2] > gains[0]


def test_an_empty_front_is_the_cap_everywhere():
    reached = best_losses(TWO.reach(np.empty((0, 1)).reshape(0, 1)), np.empty(0), CAP)
    np.testing.assert_array_equal(reached, np.full(CELLS, CAP))
    assert volume(reached, CAP) == 0.0
