"""Judging one model: its logits once, then every metric from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from unroll.data.dataset import Dataset
from unroll.data.forget import retain_ids
from unroll.errors import DivergenceError
from unroll.metrics.divergence import activation_distance, js_divergence
from unroll.metrics.membership import ConfidenceAttack, confidence_attack, loss_attack_auc
from unroll.metrics.outputs import accuracy, loss, output_entropy, true_class_probability
from unroll.metrics.tow import SPLITS, tow, tow_mia
from unroll.metrics.verification import relative_verification_error, verification_error
from unroll.training.predict import predict
from unroll.training.spec import TrainSpec
from unroll.types import Params, PyTree

QUANTILES = tuple(np.round(np.linspace(0, 1, 21), 2))
"""Where the distributions of outputs on the forget set are recorded."""
MOST_ATTACKED = 2000
"""Most members that the confidence attack is shown; its time grows with their square."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model with its logits on each split, `{split: [N, C]}`.

    Attributes:
      params: its parameters.
      logits: on forget, retain and test set.
      labels: int `[N]` of each.
      attacked: rows of the retain and of the test set that the confidence attack is shown.
    """

    params: Params
    logits: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    attacked: dict[str, np.ndarray]

    @functools.cached_property
    def accuracies(self) -> dict[str, float]:
        """Accuracy on each split."""
        return {split: accuracy(self.logits[split], self.labels[split]) for split in SPLITS}

    @functools.cached_property
    def losses(self) -> dict[str, float]:
        """Mean loss on each split."""
        return {split: loss(self.logits[split], self.labels[split]) for split in SPLITS}

    @functools.cached_property
    def attack(self) -> ConfidenceAttack:
        """What the confidence attack makes of the forget set."""
        members, outsiders = (
            (self.logits[split][rows], self.labels[split][rows])
            for split, rows in self.attacked.items()
        )
        return confidence_attack(members, outsiders, (self.logits["forget"], self.labels["forget"]))


class Judge:
    """Computes all metrics of models of one deletion request.

    Args:
      spec: how the models were trained.
      train: the training set.
      test: the test set.
      forget: ids to forget.
    """

    def __init__(self, spec: TrainSpec, train: Dataset, test: Dataset, forget: np.ndarray):
        self._spec, self._train, self._test = spec, train, test
        self._ids = {"forget": forget, "retain": retain_ids(forget, len(train))}
        self._labels = {split: train.labels[ids] for split, ids in self._ids.items()}
        self._labels["test"] = test.labels
        # The same for all models, so that their values differ by the models alone.
        sizes = {split: len(self._labels[split]) for split in ("retain", "test")}
        count, random = min(*sizes.values(), MOST_ATTACKED), np.random.default_rng(0)
        self._attacked = {split: random.permutation(size)[:count] for split, size in sizes.items()}

    def model(self, params: Params, model_state: PyTree, spec: TrainSpec | None = None) -> Model:
        """Computes the logits of a model on forget, retain and test set.

        Args:
          params: its parameters.
          model_state: its other variables.
          spec: how it predicts, if it is not one of the request's models.

        Raises:
          DivergenceError: if a logit is not finite: the model is broken, whatever its parameters.
        """
        spec = spec or self._spec
        on_train = predict(spec, params, model_state, self._train)
        logits = {split: on_train[ids] for split, ids in self._ids.items()}
        logits["test"] = predict(spec, params, model_state, self._test)
        for split, values in logits.items():
            if not np.isfinite(values).all():
                raise DivergenceError(f"the model diverged: logits on the {split} set not finite")
        return Model(params, logits, self._labels, self._attacked)

    def compare(
        self,
        model: Model,
        original: Model,
        twin: Model,
        independents: list[Model],
        own_kind: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields `{metric, split, value, oracle, at}` (and `note`) for every metric of a model.

        Args:
          model: the model to judge.
          original: the model before unlearning.
          twin: the coupled oracle.
          independents: the independent oracles; the model itself must not be among them.
          own_kind: what model, original and twin are, in words, if not what the independents are.
            Then each comparison says what was compared, and distances in absolute units, which
            mean nothing beside those of other methods, have a reason instead of a value.
        """
        found = [*self._distances(model, original, twin), *self._own(model)]
        for name, oracles in ("twin", [twin]), ("independent", independents):
            found += self._gaps(model, name, oracles)
        yield from found if own_kind is None else (_of_own_kind(row, own_kind) for row in found)

    def _distances(self, model, original, twin) -> Iterator[dict[str, Any]]:
        row = {"split": None, "oracle": "twin", "at": None}
        error = verification_error(model.params, twin.params)
        scale = verification_error(original.params, twin.params)
        yield {"metric": "verification_error", "value": error, **row}
        yield {"metric": "no_unlearning_distance", "value": scale, **row}
        if scale == 0:
            note = "not defined: forgetting changes nothing, original and twin are equal"
            yield {"metric": "relative_verification_error", "value": None, "note": note, **row}
        else:
            relative = relative_verification_error(model.params, twin.params, original.params)
            yield {"metric": "relative_verification_error", "value": relative, **row}

    def _own(self, model: Model) -> Iterator[dict[str, Any]]:
        row = {"oracle": None, "at": None}
        for split in SPLITS:
            yield {"metric": "accuracy", "split": split, "value": model.accuracies[split], **row}
            yield {"metric": "loss", "split": split, "value": model.losses[split], **row}
        labels = self._labels
        auc = loss_attack_auc(
            model.logits["forget"], labels["forget"], model.logits["test"], labels["test"]
        )
        yield {"metric": "mia", "split": "forget", "value": auc, **row}
        attack = model.attack
        yield {"metric": "attack_efficacy", "split": "forget", "value": attack.efficacy, **row}
        yield {"metric": "attack_accuracy", "split": None, "value": attack.accuracy, **row}
        logits = model.logits["forget"]
        probabilities = true_class_probability(logits, labels["forget"])
        yield from self._quantiles("true_class_probability", probabilities)
        yield from self._quantiles("output_entropy", output_entropy(logits))

    @staticmethod
    def _quantiles(metric: str, values: np.ndarray) -> Iterator[dict[str, Any]]:
        row = {"metric": metric, "split": "forget", "oracle": None}
        for at, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
            yield {"value": float(value), "at": float(at), **row}

    def _gaps(self, model: Model, name: str, oracles: list[Model]) -> Iterator[dict[str, Any]]:
        row = {"oracle": name, "at": None}
        for split in SPLITS:
            for metric, own, of in (
                ("accuracy_gap", model.accuracies, lambda oracle: oracle.accuracies),
                ("loss_gap", model.losses, lambda oracle: oracle.losses),
            ):
                target = float(np.mean([of(oracle)[split] for oracle in oracles]))
                yield {"metric": metric, "split": split, "value": own[split] - target, **row}
            for metric, distance in (
                ("js_divergence", js_divergence),
                ("activation_distance_l2", activation_distance),
            ):
                found = [distance(model.logits[split], each.logits[split]) for each in oracles]
                yield {"metric": metric, "split": split, "value": float(np.mean(found)), **row}
        value = float(np.mean([tow(model.accuracies, oracle.accuracies) for oracle in oracles]))
        yield {"metric": "tow", "split": None, "value": value, **row}
        own = model.accuracies, model.attack.efficacy
        values = [tow_mia(*own, oracle.accuracies, oracle.attack.efficacy) for oracle in oracles]
        yield {"metric": "tow_mia", "split": None, "value": float(np.mean(values)), **row}


def _of_own_kind(row: dict[str, Any], words: str) -> dict[str, Any]:
    """A value of a model that is not of the study's kind, with what it was compared with."""
    if row["metric"] in ("verification_error", "no_unlearning_distance"):
        note = (
            f"not applicable: {words} has other parameters than the study's models, so a distance "
            "in their units cannot be compared; see the relative verification error"
        )
        return {**row, "value": None, "note": note}
    if row.get("note") or row["oracle"] is None:
        return row
    if row["oracle"] == "twin":
        note = (
            f"compared with {words} trained from scratch without the forget set, not with `retrain`"
        )
    else:
        note = f"the gap of {words} to independent single models, and not of forgetting alone"
    return {**row, "note": note}
