"""Memorization and influence from models on random subsets (Feldman and Zhang, arXiv 2008.03703).

    mem(i)     = Pr[h(x_i) = y_i | i in S] - Pr[h(x_i) = y_i | i not in S]        (their equation 1)
    infl(i, j) = Pr[h(x'_j) = y'_j | i in S] - Pr[h(x'_j) = y'_j | i not in S]    (their equation 2)

over models h trained on random subsets S of a fixed share (their section 3: the estimates are those
of a training set of that share, and K models give all of them at once). With the measure
`probability` the indicator is replaced by the probability of the true class.

Both are differences of two independent means over models, so each has a standard error: the root of
the sum of the two unbiased sample variances, each divided by its number of models. Where all models
of a side agree its variance is estimated as 0, whatever the truth is: for probabilities near 0 or 1
the standard error is too small more often than not.

Design: a score carries its error, its counts and the recipe of its models, in memory and on disk.
Rejected: bare arrays in a file, to be aligned by trust; with the labels beside them a score of
another order of the examples is found out.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.errors import InputError
from unroll.memorization.subsets import (
    SubsetModels,
    SubsetRecipe,
    check_counts,
    check_measure,
    train_on_subsets,
)
from unroll.training.run import Progress
from unroll.training.spec import TrainSpec

_ROWS_AT_ONCE = 256
_KNOWN_SCORES = ("tr_mem", "memorization")
_KNOWN_LABELS = ("tr_labels", "labels")


@dataclasses.dataclass(frozen=True, eq=False)
class MemorizationScores:
    """Scores of the N examples of a training set; larger is more memorized.

    Attributes:
      values: float64 `[N]`.
      standard_errors: float64 `[N]`; `None` for released scores, whose files have none.
      included: int64 `[N]`, models trained with each example; `None` for released scores.
      excluded: int64 `[N]`, models trained without it; `None` for released scores.
      labels: int32 `[N]`, labels of the training set, which identify its order.
      info: where they come from, JSON-able: `source`, and for exact scores the recipe, the mean
        correctness of included and of excluded examples, and what the models cost in `seconds` and
        `example_gradients`.

    Raises:
      InputError: if the shapes differ or a score is not finite.
    """

    values: np.ndarray
    standard_errors: np.ndarray | None
    included: np.ndarray | None
    excluded: np.ndarray | None
    labels: np.ndarray
    info: dict[str, Any]

    def __post_init__(self):
        kinds = dict(
            values=np.float64,
            standard_errors=np.float64,
            included=np.int64,
            excluded=np.int64,
            labels=np.int32,
        )
        for name, kind in kinds.items():
            array = getattr(self, name)
            if array is None and name not in ("values", "labels"):
                continue
            array = np.asarray(array, kind)
            if array.shape != np.shape(self.labels) or array.ndim != 1:
                raise InputError(
                    f"{name} has shape {array.shape} for labels of shape {np.shape(self.labels)}; "
                    "give one number for each example"
                )
            if not np.isfinite(array).all():
                raise InputError(f"{name}: example {np.argmin(np.isfinite(array))} is not finite")
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.values)


class Estimate(NamedTuple):
    """`[N]` each: values and standard errors (float64), models with and without (int64)."""

    values: np.ndarray
    standard_errors: np.ndarray
    included: np.ndarray
    excluded: np.ndarray


def memorization(correct: np.ndarray, included: np.ndarray) -> Estimate:
    """Memorization of each training example (equation 1), with its standard error.

    Args:
      correct: `[K, N]`, bool or float in [0, 1]: whether model k is right about example n, or how
        probable it finds the label.
      included: bool `[K, N]`, whether it was trained with it.

    Raises:
      InputError: if the shapes differ, a number is not finite, or an example has fewer than 2
        models with it or without it.
    """
    correct, included = _checked(correct, included)
    if correct.shape != included.shape:
        raise InputError(
            f"outputs of shape {correct.shape} for subsets of shape {included.shape}; give both "
            "for the same models and examples"
        )
    inside, outside = check_counts(included)
    values, errors = np.zeros(len(inside)), np.zeros(len(inside))
    for begin in range(0, len(inside), 4096):
        part = slice(begin, begin + 4096)
        outputs, subset = correct[:, part].astype(np.float64), included[:, part]
        mean_in, variance_in = _mean_and_variance(outputs, subset, inside[part])
        mean_out, variance_out = _mean_and_variance(outputs, ~subset, outside[part])
        values[part] = mean_in - mean_out
        errors[part] = np.sqrt(variance_in + variance_out)
    return Estimate(values, errors, inside, outside)


def _mean_and_variance(outputs, chosen, count) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the chosen models of each column, and the unbiased variance of that mean."""
    mean = (outputs * chosen).sum(axis=0) / count
    squares = ((outputs - mean) ** 2 * chosen).sum(axis=0)
    return mean, squares / (count - 1) / count


def influence(correct: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Influence of each training example on each test example (equation 2).

    Rows are taken in parts: beside the result there are the subsets as float32 and one part.

    Args:
      correct: `[K, M]`, as in `memorization`, for test examples.
      included: bool `[K, N]`.

    Returns:
      float32 `[M, N]`; positive where the training example helps.

    Raises:
      InputError: as `memorization`, but for different M and N.
    """
    return _in_rows(correct, included, _influence_rows)


def influence_standard_errors(correct: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Standard errors float32 `[M, N]` of `influence`; arguments and errors are the same."""
    return _in_rows(correct, included, _influence_error_rows)


def _in_rows(correct, included, rows_of) -> np.ndarray:
    correct, included = _checked(correct, included)
    inside, outside = (count.astype(np.float32) for count in check_counts(included))
    subsets = included.astype(np.float32)
    result = np.empty((correct.shape[1], included.shape[1]), np.float32)
    for begin in range(0, len(result), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        outputs = correct[:, part].astype(np.float64)
        # Centred, the sum over the models without an example is minus that over those with it.
        centred = (outputs - outputs.mean(axis=0)).astype(np.float32).T
        result[part] = rows_of(centred, subsets, inside, outside)
    return result


def _influence_rows(centred, subsets, inside, outside) -> np.ndarray:
    return (centred @ subsets) * (1 / inside + 1 / outside)


def _influence_error_rows(centred, subsets, inside, outside) -> np.ndarray:
    total = centred @ subsets
    squares = centred**2
    squares_in = squares @ subsets
    squares_out = squares.sum(axis=1, keepdims=True) - squares_in
    variance = np.zeros_like(total)
    for sums, count in ((squares_in, inside), (squares_out, outside)):
        # Rounding can leave less than nothing where all models agree.
        variance += np.maximum(sums - total**2 / count, 0) / (count - 1) / count
    return np.sqrt(variance)


def _checked(correct, included) -> tuple[np.ndarray, np.ndarray]:
    correct, included = np.asarray(correct), np.asarray(included)
    if correct.ndim != 2 or included.ndim != 2 or len(correct) != len(included):
        raise InputError(
            f"outputs of shape {correct.shape} for subsets of shape {included.shape}; give a row "
            "for each model in both"
        )
    if not np.isfinite(correct).all():
        raise InputError("an output is not finite; the model has diverged")
    return correct, included.astype(bool)


class Pair(NamedTuple):
    """A test example, the training example, and its influence."""

    test: int
    train: int
    influence: float


def top_influences(influences: np.ndarray, test: int, count: int) -> list[Pair]:
    """The training examples with the largest influence on a test example, the largest first.

    Args:
      influences: `[M, N]`, of `influence`.
      test: row of the test example.
      count: how many, at most N; of equal ones the lower id comes first.
    """
    row = np.asarray(influences[test])
    order = np.argsort(-row, kind="stable")[:count]
    return [Pair(int(test), int(train), float(row[train])) for train in order]


def top_pairs(influences: np.ndarray, count: int) -> list[Pair]:
    """The largest influence on each test example, the largest of those first.

    A training example that has the largest influence on several is paired with the first only.
    """
    pairs = [top_influences(influences, test, 1)[0] for test in range(len(influences))]
    chosen: dict[int, Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (-pair.influence, pair.test)):
        chosen.setdefault(pair.train, pair)
    return list(chosen.values())[:count]


def exact_scores(
    spec: TrainSpec,
    dataset: Dataset,
    *,
    models: int,
    share: float = 0.7,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    test: Dataset | None = None,
    store: Store | None = None,
    mesh: Mesh | None = None,
    group_size: int = 64,
    progress: Progress | None = None,
    measure: str = "accuracy",
) -> MemorizationScores:
    """Trains models on random subsets and scores each training example.

    A killed call goes on from what the store holds, and a second one reads everything back.

    Args:
      spec: how each model is trained.
      dataset: the training set, N examples.
      models: number K of models.
      share: part of the training set in a subset.
      epochs: passes of a model over its subset.
      batch_size: slots per step.
      seed: of subsets, initialisations and schedules.
      test: examples whose predictions are stored too, for influences.
      store: where logits are kept.
      mesh: devices to train on, by default all of the job.
      group_size: models that are trained together and stored as a unit.
      progress: called with (steps done, steps in all) summed over the models.
      measure: `accuracy` as in the paper, or `probability` of the true class.

    Raises:
      InputError: before any training if something does not fit together, or K is so small that an
        example has fewer than 2 models with or without it.
      DivergenceError: if a model diverges; the message names it.
      StoreError: if the store cannot be written.
    """
    recipe = SubsetRecipe(spec, dataset, models, epochs, batch_size, share, seed, group_size)
    check_measure(measure)
    found = train_on_subsets(recipe, test, store=store, mesh=mesh, progress=progress)
    return scores_of(found, measure)


def scores_of(models: SubsetModels, measure: str = "accuracy") -> MemorizationScores:
    """Scores of the training examples from models that were trained on subsets.

    Args:
      models: the result of `train_on_subsets`.
      measure: `accuracy` or `probability`.
    """
    recipe, included = models.recipe, models.recipe.included
    estimate = memorization(models.train.measured(measure), included)
    info = {
        "source": "exact",
        "measure": measure,
        "dataset": recipe.dataset.name,
        "fingerprint": recipe.dataset.fingerprint,
        "spec": recipe.spec.describe(),
        "models": recipe.models,
        "share": recipe.share,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "accuracy_included": float(models.train.correct[included].mean()),
        "accuracy_excluded": float(models.train.correct[~included].mean()),
        "accuracy_test": None if models.test is None else float(models.test.correct.mean()),
        "seconds": models.seconds,
        "example_gradients": recipe.example_gradients,
    }
    return MemorizationScores(*estimate, recipe.dataset.labels, info)


def save_scores(path: str | os.PathLike, scores: MemorizationScores) -> None:
    """Writes scores to an npz file, whole or not at all.

    Its keys are memorization, standard_error, included, excluded, labels, and info as JSON; what
    the scores have not (released ones) is left out.
    """
    arrays = {
        "memorization": scores.values,
        "standard_error": scores.standard_errors,
        "included": scores.included,
        "excluded": scores.excluded,
        "labels": scores.labels,
        "info": np.array(json.dumps(scores.info)),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{k: v for k, v in arrays.items() if v is not None})
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def load_scores(path: str | os.PathLike, labels: np.ndarray) -> MemorizationScores:
    """Reads what `save_scores` wrote.

    Args:
      path: the file.
      labels: `[N]` labels of the training set that the scores are to be used with.

    Raises:
      InputError: if it is no such file, or its labels are others.
    """
    with _opened(path) as file:
        missing = [key for key in ("memorization", "labels", "info") if key not in file]
        if missing:
            raise InputError(f"{path} has no {missing[0]!r}; use released_scores for other files")
        _check_labels(path, file["labels"], labels)
        rest = [
            file[key] if key in file else None for key in ("standard_error", "included", "excluded")
        ]
        return MemorizationScores(
            file["memorization"], *rest, file["labels"], json.loads(str(file["info"]))
        )


def released_scores(
    path: str | os.PathLike,
    labels: np.ndarray,
    ids: IdsLike | None = None,
    *,
    key: str | None = None,
    labels_key: str | None = None,
    unchecked: bool = False,
) -> MemorizationScores:
    """Reads scores that others have published.

    Known are the file of Feldman and Zhang for CIFAR-100 (`cifar100_infl_matrix.npz`: `tr_mem`,
    with `tr_labels`) and that of arXiv 2406.01257 for CIFAR-10 (`estimates_results_woShuffle.npz`:
    `memorization`, without labels).

    Args:
      path: an npz file with one score for each example of a training set.
      labels: `[N]` labels of the training set that the scores are to be used with.
      ids: which example of the file each of them is; by default they are all of it, in its order.
      key: name of the scores in the file; by default one that is known.
      labels_key: name of the labels; by default one that is known, if there is one.
      unchecked: take the order of a file without labels on trust.

    Raises:
      InputError: if the file does not have what is asked for, the number of scores does not fit, a
        label differs, or the file has no labels and `unchecked` is not set.
    """
    with _opened(path) as file:
        values = np.asarray(file[_chosen_key(path, file, key, _KNOWN_SCORES, "scores")])
        if labels_key is None and not set(_KNOWN_LABELS) & set(file.files):
            theirs = None
        else:
            theirs = file[_chosen_key(path, file, labels_key, _KNOWN_LABELS, "labels")]
    ids = np.arange(len(values)) if ids is None else as_ids(ids, len(values))
    labels = np.asarray(labels)
    if values.ndim != 1 or len(ids) != len(labels):
        raise InputError(
            f"{path} has scores of shape {values.shape}, of which {len(ids)} are for "
            f"{len(labels)} examples; give ids, the row of the file for each example"
        )
    if theirs is not None:
        _check_labels(path, np.asarray(theirs)[ids], labels)
    elif not unchecked:
        raise InputError(
            f"{path} has no labels to check the order of its scores by; say unchecked=True if you "
            "know that it is the order of your examples"
        )
    info = {
        "source": "released",
        "file": Path(path).name,
        "checked": theirs is not None,
        "ids": ids.tolist(),
    }
    return MemorizationScores(values[ids], None, None, None, labels, info)


def _opened(path):
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an npz file ({error})") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise InputError(f"{path} is not an npz file but a single array; save it under a name")
    return file


def _chosen_key(path, file, key: str | None, known: tuple[str, ...], what: str) -> str:
    found = [name for name in ((key,) if key else known) if name in file.files]
    if len(found) != 1:
        raise InputError(
            f"{path}: name the array of {what}; expected {key or ' or '.join(known)}, there are "
            f"{', '.join(file.files)}"
        )
    return found[0]


def _check_labels(path, theirs: np.ndarray, ours: np.ndarray) -> None:
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    if theirs.shape != ours.shape:
        raise InputError(f"{path} is of {len(theirs)} examples, the labels of {len(ours)}")
    different = np.flatnonzero(theirs != ours)
    if len(different):
        first = different[0]
        raise InputError(
            f"{path}: example {first} has label {theirs[first]} there and {ours[first]} here "
            f"({len(different)} differ); the scores are of another order or data set"
        )
