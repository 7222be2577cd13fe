"""Conjugate gradients: known solutions, counted products, and what is said when they fail."""

import numpy as np
import pytest

from unroll.errors import DivergenceError, InputError
from unroll.unrolling.conjugate_gradients import conjugate_gradients, relative_residual


def test_as_many_iterations_as_distinct_eigenvalues_solve_exactly():
    values, vector = np.array([1.0, 1.0, 4.0, 4.0, 9.0]), np.arange(1.0, 6.0)
    seen, reports = [], []

    def multiply(direction):
        seen.append(direction)
        return values * direction

    found = conjugate_gradients(
        multiply, vector, tolerance=1e-12, progress=lambda *at: reports.append(at)
    )
    # Float64, a condition number of 9.
    np.testing.assert_allclose(found.vector, vector / values, rtol=1e-12)
    assert found.info["iterations"] == 3 and found.products == len(seen) == 4
    assert "warning" not in found.info
    assert reports == [(1, 50), (2, 50), (3, 50), (50, 50)]


def test_failures_are_said():
    vector = np.ones(3)
    short = conjugate_gradients(lambda v: np.array([1.0, 50.0, 99.0]) * v, vector, iterations=1)
    assert "stopped at a residual of" in short.info["warning"]
    assert "negative" in conjugate_gradients(lambda v: -v, vector).info["warning"]
    with pytest.raises(DivergenceError, match="raise the damping"):
        relative_residual(np.array([np.nan]), np.ones(1), np.ones(1))
    assert relative_residual(np.ones(1), np.full(1, 1e308), np.full(1, 1e-200)) == np.inf
    assert conjugate_gradients(lambda v: v, np.zeros(3)).info["relative_residual"] == 0
    for options, message in ((dict(iterations=0), "iterations"), (dict(tolerance=0), "tolerance")):
        with pytest.raises(InputError, match=message):
            conjugate_gradients(lambda v: v, vector, **options)
