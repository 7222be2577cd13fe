"""Records like those of the digits problem, made up from a fixed seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record

SEEDS = range(5)
SPLITS = ("forget", "retain", "test")


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """Means around which the records of a method are drawn."""

    name: str
    error: float | None
    cost: float
    accuracies: tuple[float, float, float]
    hyperparameters: dict = dataclasses.field(default_factory=dict)
    spread: float = 0.08


RETRAINED = (0.931, 0.998, 0.962)
BEHAVIOURS = (
    Behaviour(ORIGINAL, 1.0, 0.0, (1.0, 0.999, 0.964), spread=0.0),
    Behaviour(RETRAIN, 0.0, 1.0, RETRAINED),
    Behaviour(NULL, None, 1.0, (0.933, 0.998, 0.961)),
    Behaviour("replay", 0.0, 0.62, RETRAINED),
    Behaviour("single_gradient", 4.0, 0.0004, (0.97, 0.98, 0.95)),
    Behaviour("gradient_ascent", 1.1, 0.0011, (0.61, 0.93, 0.90)),
    Behaviour("finetune", 0.9, 0.11, (0.992, 0.999, 0.963)),
    Behaviour("taylor", 0.066, 2.0, (0.936, 0.998, 0.962), {"order": 1}),
    Behaviour("taylor", 0.008, 4.1, (0.932, 0.998, 0.962), {"order": 2}),
    Behaviour("taylor", 0.0017, 6.3, (0.931, 0.998, 0.962), {"order": 3}),
)


def many_behaviours() -> tuple[Behaviour, ...]:
    """Thirty methods, some with long settings."""
    random = np.random.default_rng(7)
    extra = [
        Behaviour(
            f"{name}_{kind}",
            float(10 ** random.uniform(-1.3, 0.4)),
            float(10 ** random.uniform(-3, 0.3)),
            (0.93 + random.normal() * 0.04, 0.99, 0.955),
            {"learning_rate": 0.01, "steps": 100 + i, "weight_decay": 5e-4},
        )
        for i, name in enumerate(("scrub", "salun", "fisher", "ssd", "bad_teacher", "neggrad"))
        for kind in ("plain", "masked", "sparse", "noisy")
    ]
    return (*BEHAVIOURS, *extra)


def synthetic_records(behaviours=BEHAVIOURS, seeds=SEEDS, curves=True, **changes) -> list[Record]:
    """Makes records of one section; `changes` replace fields of every record."""
    records = []
    for number, behaviour in enumerate(behaviours):
        for seed in seeds:
            random = np.random.default_rng((number, seed))
            records += _scalars(behaviour, seed, random)
            records += _quantiles(behaviour, seed, random) if curves else []
    if curves:
        records += [row for seed in seeds for row in _losses(seed)]
    return [dataclasses.replace(record, **changes) for record in records]


def _record(behaviour: Behaviour, seed: int, metric: str, value, split=None, **fields) -> Record:
    return Record(
        experiment="digits_scoreboard",
        dataset="digits(1437)",
        model="mlp(64-128-128-10, gelu)",
        forget="random(fraction=0.01)",
        forget_size=14,
        method=behaviour.name,
        hyperparameters=behaviour.hyperparameters,
        train_seed=seed,
        method_seed=0,
        metric=metric,
        split=split,
        value=value,
        cost_ratio_gradients=behaviour.cost,
        cost_ratio_seconds=behaviour.cost * (1.3 + 0.05 * seed),
        seconds=behaviour.cost * (2.6 + 0.1 * seed),
        **fields,
    )


def _scalars(behaviour: Behaviour, seed: int, random) -> list[Record]:
    def record(metric, value, split=None, **fields):
        return _record(behaviour, seed, metric, value, split, **fields)

    distance = 0.61 + 0.02 * seed
    error = behaviour.error
    note = None
    if error is None:
        note = "an independent retrain shares no coordinates with the original"
    else:
        error *= 1 + behaviour.spread * random.normal()
    raw = None if error is None else error * distance
    records = [
        record("relative_verification_error", error, oracle="twin", note=note),
        record("verification_error", raw, oracle="twin", note=note),
    ]
    if behaviour.name == ORIGINAL:
        records.append(record("no_unlearning_distance", distance, oracle="twin"))
    moves = random.normal(scale=0.006, size=3) * (behaviour.error != 0)
    for split, mean, move, retrained in zip(
        SPLITS, behaviour.accuracies, moves, RETRAINED, strict=True
    ):
        accuracy = min(mean + move, 1.0)
        gap = 0.0 if behaviour.error == 0 else accuracy - retrained
        records += [
            record("accuracy", accuracy, split),
            record("loss", 1.2 - accuracy, split),
            record("accuracy_gap", gap, split, oracle="twin"),
            record("accuracy_gap", gap + 0.001 * seed, split, oracle="independent"),
            record("loss_gap", -gap, split, oracle="twin"),
            record("js_divergence", abs(gap) / 4, split, oracle="twin"),
            record("js_divergence", abs(gap) / 4 + 0.004, split, oracle="independent"),
        ]
    product = float(np.prod([1 - abs(r.value) for r in records if r.metric == "accuracy_gap"][::2]))
    records.append(record("tow", product, oracle="twin"))
    records.append(record("tow", product * 0.98, oracle="independent"))
    records.append(record("mia", 0.5 + (behaviour.accuracies[0] - 0.93) / 2, "forget"))
    return records


def _quantiles(behaviour: Behaviour, seed: int, random) -> list[Record]:
    centre = {0: 2.5}.get(behaviour.error, 2.5 + 18 * (behaviour.accuracies[0] - 0.93))
    logits = np.sort(random.normal(centre, 2.2, size=400))
    shares = np.linspace(0, 1, 51)
    probabilities = 1 / (1 + np.exp(-logits))
    found = {
        "true_class_probability": probabilities,
        "output_entropy": -np.log(probabilities) * probabilities,
    }
    return [
        _record(behaviour, seed, metric, float(value), "forget", at=float(share))
        for metric, values in found.items()
        for share, value in zip(shares, np.quantile(values, shares), strict=True)
    ]


def _losses(seed: int) -> list[Record]:
    random = np.random.default_rng(seed)
    noise = random.normal(scale=0.25, size=450)
    records = []
    for behaviour, shift in zip(BEHAVIOURS[:2], (1.0, 1.03), strict=True):
        losses = shift * 2.3 * np.exp(-np.arange(450) / 90) * np.exp(noise) + 0.01
        records += [
            _record(behaviour, seed, "training_loss", float(loss), at=float(step))
            for step, loss in enumerate(losses)
        ]
    return records


@pytest.fixture(scope="session")
def make_records():
    """The builder of synthetic records."""
    return synthetic_records


@pytest.fixture(scope="session")
def digits(make_records) -> list[Record]:
    """Ten rows, five training seeds, all metrics and curves."""
    return make_records()


@pytest.fixture(scope="session")
def thirty(make_records) -> list[Record]:
    """Thirty-four rows without the training curves."""
    return make_records(many_behaviours(), seeds=range(3))
