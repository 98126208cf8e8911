"""The Gaussian process: gradients, interpolation, and what its kernel can follow."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.search.learner import Learner
from autotune.search.surrogate import (
    MOST_FITTED,
    Alone,
    Prior,
    Surrogate,
    fitted,
    fitted_count,
    winsorised,
)

GROUPS = np.array([0, 1, 1, 1, 2])
"""A number, a choice among three names, a number."""

kinds = pytest.mark.parametrize("kind", Alone)


def points(count, seed=0):
    rng = np.random.default_rng(seed)
    names = np.eye(3)[rng.integers(3, size=count)] / np.sqrt(2)
    return np.c_[rng.random(count), names, rng.random(count)]


def smooth(x):
    return np.sin(3 * x[:, 0]) + x[:, 1] + 0.5 * x[:, 0] * x[:, 4]


@kinds
def test_gradient_is_that_of_the_objective(kind):
    surrogate = Surrogate(GROUPS, Prior(kind=kind))
    x = points(20)
    at = surrogate.expected + np.linspace(-0.7, 0.9, len(surrogate.expected))
    _, gradient = surrogate.objective(at, x, smooth(x))
    step = 1e-5
    for index in range(len(at)):
        sides = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            sides.append(surrogate.objective(moved, x, smooth(x))[0])
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-5)


@kinds
def test_without_noise_it_interpolates_and_is_sure_of_what_it_saw(kind):
    surrogate = Surrogate(GROUPS, Prior(kind=kind))
    x = points(25)
    hyper = surrogate.expected.copy()
    hyper[-1] = -20.0
    posterior = surrogate.given(x, smooth(x), hyper)
    mean, spread = posterior.at(x)
    far = posterior.at(points(200, seed=1))[1]
    np.testing.assert_allclose(mean, smooth(x), atol=1e-3)
    assert spread.max() < far.min()
    np.testing.assert_allclose(posterior.mean_at(x), mean)
    np.testing.assert_allclose(posterior.rough_mean_at(x), mean, atol=1e-2)


@kinds
def test_the_kernel_is_a_covariance(kind):
    surrogate = Surrogate(GROUPS, Prior(kind=kind))
    x = points(40)
    kernel = surrogate.covariance(x, x, surrogate.expected)
    np.testing.assert_allclose(kernel, kernel.T)
    np.testing.assert_allclose(np.diag(kernel), surrogate.variance(x, surrogate.expected))
    assert np.linalg.eigvalsh(kernel).min() > -1e-10


def test_fitted_hyperparameters_predict_better_than_the_expected_ones():
    surrogate = Surrogate(GROUPS)
    x, unseen = points(30), points(300, seed=2)
    fitted = surrogate.hyperparameters(x, smooth(x))

    def error(hyper):
        predicted = surrogate.given(x, smooth(x), hyper).mean_at(unseen)
        return float(np.abs(predicted - smooth(unseen)).mean())

    assert error(fitted) < error(surrogate.expected)
    assert error(fitted) < 0.2 * float(smooth(unseen).std())


def test_noise_is_found_and_not_believed():
    x = np.repeat(points(12), 6, axis=0)
    noise = np.random.default_rng(3).normal(0, 0.2, len(x))
    surrogate = Surrogate(GROUPS)
    hyper = surrogate.hyperparameters(x, smooth(x) + noise)
    posterior = surrogate.given(x, smooth(x) + noise, hyper)
    assert posterior.noise == pytest.approx(0.2, rel=0.4)
    assert np.abs(posterior.mean_at(x) - smooth(x)).mean() < np.abs(noise).mean()


def test_targets_may_all_be_equal():
    surrogate = Surrogate(GROUPS)
    x = points(5)
    targets = np.full(5, 2.5)
    posterior = surrogate.given(x, targets, surrogate.hyperparameters(x, targets))
    np.testing.assert_allclose(posterior.at(points(9, seed=1))[0], 2.5, atol=1e-6)


def test_winsorised_losses_keep_their_order_and_lose_their_weight():
    losses = np.array([1.0, 1.2, 1.4, 1.6, 50.0, 90.0])
    pulled, cap = winsorised(losses)
    assert cap == pytest.approx(2.0)
    np.testing.assert_array_equal(pulled[:4], losses[:4])
    assert 2.0 < pulled[4] <= pulled[5] <= cap + 0.25 * 4 * (cap - 1.0)


def test_hyperparameters_are_fitted_ever_less_often():
    counts = [fitted_count(count) for count in range(1, 2000)]
    assert counts[:31] == list(range(1, 32))
    assert counts == sorted(counts)
    assert all(count - fitted <= max(0, count // 16) for count, fitted in enumerate(counts, 1))
    assert len({count for count in counts if count > 1000}) <= 32


def test_a_learner_depends_on_its_points_and_not_on_what_it_saw_before():
    x = points(3 * MOST_FITTED)
    y = smooth(x)
    fresh, used = Learner(GROUPS), Learner(GROUPS)
    for count in (10, 40, 41, 200):
        chosen = fitted(y[:count])
        used.hyperparameters(x[chosen], y[chosen])
    chosen = fitted(y)
    assert MOST_FITTED // 2 <= len(chosen) <= MOST_FITTED
    last = used.hyperparameters(x[chosen], y[chosen])
    np.testing.assert_array_equal(fresh.hyperparameters(x[chosen], y[chosen]), last)
    assert used.hyperparameters(x[chosen], y[chosen]) is last


def test_the_points_that_are_fitted_stay_for_some_trials():
    y = smooth(points(500))
    assert len({fitted(y[:count]).tobytes() for count in range(480, 496)}) == 1
    assert set(np.argsort(y[:480])[:50]) <= set(fitted(y[:490]))
