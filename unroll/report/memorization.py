"""Memorization scores as a page: a table, their distribution, the most memorized images, pairs.

Design: the distribution is drawn beside the one that the standard errors alone would make if
nothing were memorized. Rejected: a histogram alone; with some hundred models its width near zero is
noise, and reads as memorization of thousands of examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.evaluation.rows import append_rows
from unroll.memorization.scores import MemorizationScores, Pair
from unroll.report.files import write_atomically
from unroll.report.formatting import format_number
from unroll.report.style import COLOURS, FAINT, INK, MUTED, new_figure, plain_axes

_BIN = 0.02
_COLUMNS = 8
LOW, HIGH = 0.01, 0.5
"""Scores below the first count as not memorized, above the second as memorized, in the table."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """A row of `scores.jsonl`: what the scores of one training set come to.

    `beyond_errors` is the share of scores above two of their own standard errors, of which 0.023
    are to be expected if nothing is memorized and the errors are normal.
    """

    dataset: str
    model: str
    measure: str
    models: int
    share: float
    epochs: int
    examples: int
    mean: float
    below: float
    above: float
    beyond_errors: float
    mean_standard_error: float
    accuracy_included: float
    accuracy_excluded: float
    accuracy_test: float | None
    seconds: float
    example_gradients: int


def summarize_scores(scores: MemorizationScores, model: str) -> Summary:
    """The row of exact scores.

    Args:
      scores: of `exact_scores` or `scores_of`.
      model: name of the model, for the table.

    Raises:
      InputError: if the scores have no standard errors.
    """
    values, errors = scores.values, _errors(scores)
    names = {field.name for field in dataclasses.fields(Summary)}
    return Summary(
        **{name: value for name, value in scores.info.items() if name in names},
        model=model,
        examples=len(scores),
        mean=float(values.mean()),
        below=float((values < LOW).mean()),
        above=float((values > HIGH).mean()),
        beyond_errors=float((values > 2 * errors).mean()),
        mean_standard_error=float(errors.mean()),
    )


def _errors(scores: MemorizationScores) -> np.ndarray:
    if scores.standard_errors is None:
        raise InputError("these scores have no standard errors; compute them from models")
    return scores.standard_errors


def write_memorization(
    workdir: Path,
    title: str,
    rows: Sequence[Summary],
    scores: MemorizationScores,
    train: Dataset,
    test: Dataset,
    pairs: Sequence[Pair],
) -> Path:
    """Writes `scores.md`, `scores.jsonl` and the figures; returns the path of the page.

    Args:
      workdir: an existing directory.
      title: of the page.
      rows: summaries of one training set, one for each measure.
      scores: what is drawn.
      train: the training set.
      test: the test set.
      pairs: the largest influences, the largest first.
    """
    figures = {"distribution": score_distribution(scores)}
    if is_images(train):
        figures["most_memorized"] = most_memorized(scores, train)
        figures["influences"] = influence_pairs(pairs, train, test)
    for name, figure in figures.items():
        write_atomically(
            workdir / f"{name}.png",
            lambda file, figure=figure: figure.savefig(
                file, format="png", dpi=150, bbox_inches="tight"
            ),
        )
    (workdir / "scores.jsonl").unlink(missing_ok=True)
    append_rows(workdir / "scores.jsonl", rows)
    page = workdir / "scores.md"
    text = "\n".join(_page(title, rows, figures)) + "\n"
    write_atomically(page, lambda file: file.write(text.encode()))
    return page


_CAPTIONS = {
    "distribution": (
        "Bars: scores. Line: what the standard errors alone would show if nothing were memorized."
    ),
    "most_memorized": "The training examples with the largest scores: label, score, its error.",
    "influences": (
        "The largest influences: a test example above the training example that it owes most to."
    ),
}


def _page(title: str, rows: Sequence[Summary], names: Sequence[str]) -> list[str]:
    row = rows[0]
    accuracies = [
        f"{value:.3f} on {what}"
        for what, value in (
            ("examples of their own subset", row.accuracy_included),
            ("examples outside of it", row.accuracy_excluded),
            ("the test set", row.accuracy_test),
        )
        if value is not None
    ]
    columns = ["measure", "mean", f"below {LOW}", f"above {HIGH}", "beyond 2 errors", "mean error"]
    lines = [
        f"# {title}",
        "",
        f"{row.dataset}, {row.model}: {row.models} models, each trained for {row.epochs} epochs on "
        f"{format_number(row.share)} of the training set; {row.seconds:.0f} s of training and "
        f"prediction, {row.example_gradients} example gradients. The models are right with "
        f"probability {', '.join(accuracies)}.",
        "",
        "Mean score, shares of the examples, and the mean standard error of one score. Without any "
        "memorization 0.023 of the scores would lie more than 2 standard errors above 0.",
        "",
        "| " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * (len(columns) - 1),
    ]
    for row in rows:
        numbers = (row.mean, row.below, row.above, row.beyond_errors, row.mean_standard_error)
        cells = [row.measure, *(f"{number:.3f}" for number in numbers)]
        lines.append("| " + " | ".join(cells) + " |")
    for name in names:
        lines += ["", f"![{name.replace('_', ' ')}]({name}.png)", "", _CAPTIONS[name]]
    return lines


def expected_by_chance(errors: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of scores in each bin if all true scores were 0 and the errors normal.

    Args:
      errors: `[N]` standard errors; one of 0 leaves its score at 0.
      edges: `[B + 1]` ascending.

    Returns:
      float64 `[B]`.
    """
    scale = np.where(errors > 0, errors, 1.0)
    cumulative = np.where(
        errors > 0, norm.cdf(edges[:, None] / scale), (edges[:, None] > 0).astype(float)
    )
    return np.diff(cumulative.mean(axis=1))


def score_distribution(scores: MemorizationScores) -> Figure:
    """Histogram of the scores on a logarithmic axis, with what chance alone would make.

    Raises:
      InputError: if the scores have no standard errors.
    """
    errors = _errors(scores)
    # Half a bin off, so that scores of exactly 0 lie within one.
    bins = math.ceil(max(0.5, -scores.values.min(), 3 * errors.mean()) / _BIN)
    edges = (np.arange(-bins, round(1 / _BIN) + 2) - 0.5) * _BIN
    shares = np.histogram(scores.values, edges)[0] / len(scores)
    chance = expected_by_chance(errors, edges)
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    centres = (edges[1:] + edges[:-1]) / 2
    axes.bar(centres, shares, _BIN * 0.9, color=COLOURS[0], label="scores", gid="scores")
    axes.step(
        centres, chance, where="mid", color=INK, lw=1.3, label="nothing memorized", gid="chance"
    )
    axes.set_yscale("log")
    axes.set_ylim(0.5 / len(scores), 1)
    shown = centres[(shares > 0) | (chance > 0.5 / len(scores))]
    axes.set_xlim(shown.min() - 2 * _BIN, shown.max() + 2 * _BIN)
    axes.set_xlabel("Memorization score")
    axes.set_ylabel("Share of the training set")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    plain_axes(axes)
    axes.tick_params(which="minor", colors=MUTED)
    figure.set_layout_engine("constrained")
    return figure


def is_images(dataset: Dataset) -> bool:
    """Whether the inputs can be drawn: `[N, height, width, 1 or 3]`."""
    return dataset.inputs.ndim == 4 and dataset.inputs.shape[-1] in (1, 3)


def most_memorized(scores: MemorizationScores, dataset: Dataset, count: int = 24) -> Figure:
    """The training images with the largest scores, each with its label and score.

    Raises:
      InputError: if the examples are no images, or others than those of the scores.
    """
    if len(scores) != len(dataset) or not np.array_equal(scores.labels, dataset.labels):
        raise InputError(f"the scores are not those of {dataset.name}: its labels are others")
    chosen = np.argsort(-scores.values, kind="stable")[:count]
    errors = scores.standard_errors
    panels = _panels(-(-len(chosen) // _COLUMNS), min(_COLUMNS, len(chosen)))
    for axes, example in zip(panels.flat, chosen, strict=False):
        text = f"{scores.values[example]:.2f}"
        if errors is not None:
            text += f" ± {errors[example]:.2f}"
        _draw(axes, dataset, example, text)
    return panels.flat[0].figure


def influence_pairs(
    pairs: Sequence[Pair], train: Dataset, test: Dataset, count: int = _COLUMNS
) -> Figure:
    """Pairs as columns: the test image, and below it the training image with its influence.

    Args:
      pairs: the largest first.
      train: the training set, images.
      test: the test set, images.
      count: how many to draw.

    Raises:
      InputError: if the examples are no images, or there is no pair.
    """
    pairs = list(pairs)[:count]
    if not pairs:
        raise InputError("there are no pairs to draw")
    panels = _panels(2, len(pairs))
    for column, pair in zip(panels.T, pairs, strict=True):
        _draw(column[0], test, pair.test, "test")
        _draw(column[1], train, pair.train, f"infl. {pair.influence:.2f}")
    return panels.flat[0].figure


def _panels(lines: int, columns: int) -> np.ndarray:
    figure = new_figure(1.15 * columns, 1.5 * lines)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    return panels


def _draw(axes: Axes, dataset: Dataset, example: int, text: str) -> None:
    if not is_images(dataset):
        raise InputError(f"{dataset.name} has inputs of shape {dataset.example_shape}: no images")
    image = dataset.inputs[example]
    if image.dtype != np.uint8:
        low, high = dataset.inputs.min(), dataset.inputs.max()
        image = (image - low) / max(high - low, np.finfo(np.float32).tiny)
    image = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(image, cmap="gray_r", interpolation="nearest")
    # The edge of an image that is white there.
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(FAINT)
    label = int(dataset.labels[example])
    name = dataset.class_names[label] if dataset.class_names else str(label)
    axes.set_title(f"{name}\n{text}", fontsize=7.5, color=INK)
