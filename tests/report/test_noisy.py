"""The page and figure of noisy fine-tuning, from made-up rows."""

import dataclasses

import pytest

from unroll.errors import InputError
from unroll.report.noisy import NOISY, NoisyRow, noisy_figure, write_noisy


def row(seed, method="original", **fields):
    known = dict(accuracy=0.9, forget_accuracy=1.0, error=1.0, cost=0.0) | fields
    return NoisyRow("digits[9/9]", "linear", seed, method, 0.9, 0.1, **known)


def noisy(seed, epsilon, accuracy, **fields):
    place = dict(clipping="gradient", radius=1.0, quiet_epochs=0, sigma=0.5, noise_norm=12.0)
    place |= dict(distance=2.0, share_clipped=0.25, epsilon=epsilon)
    return row(seed, NOISY, **place, accuracy=accuracy, **fields)


def rows():
    both = [row(seed) for seed in (0, 1)]
    return both + [noisy(seed, 1.0, 0.2) for seed in (0, 1)] + [noisy(s, 8.0, 0.7) for s in (0, 1)]


def test_the_page_says_where_the_noise_destroys_the_model(tmp_path):
    page = write_noisy(rows(), tmp_path, "a title", 1e-5).read_text()
    assert "In 1 of 2 settings the noise destroys the model" in page
    lines = [line for line in page.splitlines() if line.startswith("| noisy")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    # (0.2 - 0.1) / (0.9 - 0.1) and (0.7 - 0.1) / 0.8 of what the original knows.
    assert [line[9] for line in cells] == ["0.125", "0.75"]
    assert [line[4] for line in cells] == ["1", "8"] and "certif" not in lines[0]
    assert (tmp_path / "noisy.png").stat().st_size > 5000


def test_a_diverged_model_is_no_number(tmp_path):
    broken = noisy(0, 1.0, None, note="not finite")
    broken = dataclasses.replace(broken, forget_accuracy=None, error=None, cost=None)
    page = write_noisy([*rows()[:2], broken, noisy(1, 1.0, 0.3)], tmp_path, "t", 1e-5).read_text()
    assert "| n/a | n/a | n/a |" in page and "seed 0: not finite" in page
    assert "In 1 of 1 settings" in page


def bars(figure):
    """Ends of the error bars of the first panel, by the heights of their points."""
    (axes,) = figure.axes
    found = {}
    for line in axes.containers:
        points, _, (segments,) = line.lines
        ends = [[float(y) for _, y in ends] for ends in segments.get_segments()]
        found |= dict(zip(points.get_ydata().tolist(), ends, strict=True))
    return found


def test_whiskers_end_where_accuracies_do():
    near = [noisy(0, 1.0, 0.02), noisy(1, 1.0, 0.1), noisy(0, 8.0, 0.9), noisy(1, 8.0, 0.98)]
    found = bars(noisy_figure([*rows()[:2], *near]))
    # Student's interval of two seeds is 12.7 half differences wide to either side.
    (low, high), (other_low, other_high) = found.values()
    assert low == 0.0 and high == pytest.approx(0.06 + 12.706 * 0.04, rel=1e-4)
    assert other_low == pytest.approx(0.94 - 12.706 * 0.04, rel=1e-4) and other_high == 1.0


def test_what_diverged_for_some_seeds_has_no_point_and_no_empty_cell(tmp_path):
    broken = noisy(0, 1.0, None, note="not finite", error=None, cost=None, forget_accuracy=None)
    broken = dataclasses.replace(broken, sigma=None, noise_norm=None, share_clipped=None)
    both = [*rows()[:2], broken, noisy(1, 1.0, 0.3), *rows()[4:]]
    assert set(bars(noisy_figure(both))) == {0.7}
    page = write_noisy(both, tmp_path, "t", 1e-5).read_text()
    line = next(text for text in page.splitlines() if text.startswith("| noisy"))
    assert "|  |" not in line and broken.kept is None
    assert "not drawn" in page


def test_there_must_be_something_to_draw():
    with pytest.raises(InputError, match="to draw"):
        noisy_figure(rows()[:2])
    chance = dataclasses.replace(rows()[0], original_accuracy=0.1)
    assert chance.kept is None
