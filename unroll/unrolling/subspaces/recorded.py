"""The statistics of a run, kept beside it, and the bases of a deletion from them.

With them an original model can be unlearned when its training data is gone: what is left to read is
the forget set.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from unroll.calls import parse_call
from unroll.checkpoint import FORMAT, Store
from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.training.projection import Bases
from unroll.training.run import Run
from unroll.training.spec import TrainSpec, description_hash
from unroll.types import Params, PyTree
from unroll.unrolling.subspaces.spectrum import RANK_RULES, RankRule, all_bases
from unroll.unrolling.subspaces.statistics import (
    DEFAULT_OPTIONS,
    LayerOptions,
    LayerStatistic,
    Statistics,
    input_statistics,
    layer_sizes,
    model_hash,
)


@dataclasses.dataclass(frozen=True)
class Projection:
    """What a method that projects its steps has to be told: what is kept, and what is protected."""

    rule: RankRule = RankRule()
    options: LayerOptions = LayerOptions()


def parse_projection(text: str) -> Projection:
    """Reads a rank rule with the options of `RankRule` and `LayerOptions`.

    Raises:
      InputError: on an unknown rule or option.

    >>> parse_projection("energy(threshold=0.9, bias='moves')").options.bias
    'moves'
    """
    name, arguments = parse_call(text)
    if name not in RANK_RULES:
        raise InputError(f"unknown rank rule {name!r}; choose one of {list(RANK_RULES)}")
    kept = {field.name for field in dataclasses.fields(LayerOptions)}
    options = {key: arguments.pop(key) for key in kept & set(arguments)}
    if "thresholds" in arguments:
        arguments["thresholds"] = tuple(sorted(dict(arguments["thresholds"]).items()))
    known = [f.name for f in dataclasses.fields(RankRule) if f.name != "rule"]
    for key in arguments:
        if key not in known:
            raise InputError(f"rank rule {name!r} has no {key!r}; choose of {known + sorted(kept)}")
    return Projection(RankRule(name, **arguments), LayerOptions(**options))


CLIPPED_LIMIT = 1e-3
"""Clipped mass of a layer above which a warning is given; rounding leaves about 1e-7."""


def record_statistics(
    run: Run, options: LayerOptions = DEFAULT_OPTIONS, *, store: Store | None = None
) -> Statistics:
    """Second moments over all examples that a run was trained on, read back if the store has them.

    The last thing that needs the training data: to be called when the run is finished, before
    anybody asks for a deletion. Examples that the run had at weight 0 are left out.

    Args:
      run: a finished run; the features are those of its final state.
      options: what is kept.
      store: where they are looked up and kept, under the hash of the run, its state, the
        preprocessing and the options.
    """
    spec, (params, _, model_state, _) = run.spec, run.state
    used = run.weights != 0
    if store is None:
        return input_statistics(spec, params, model_state, run.dataset, options, weights=used)
    identity = {
        "format": FORMAT,
        "kind": "input statistics",
        "run": run.address,
        "model": model_hash(spec, params, model_state),
        "examples": description_hash(np.flatnonzero(used).tolist()),
        "options": dataclasses.asdict(options),
    }
    address = description_hash(identity)
    sizes = layer_sizes(spec, params, model_state, run.dataset.inputs, options)
    target = {
        f"layer.{path}": {
            "products": np.zeros((inputs, options.columns(inputs))),
            "trace": np.zeros(()),
        }
        for path, (inputs, _, _) in sizes.items()
    }
    entry = store.read(address, 0, target)
    if entry is not None:
        value, metadata = entry
        layers = {path: LayerStatistic(**value[f"layer.{path}"]) for path in sizes}
        return Statistics(layers, options, identity["model"], False, **metadata)
    found = input_statistics(spec, params, model_state, run.dataset, options, weights=used)
    store.describe(address, identity)
    store.write(
        address,
        0,
        {f"layer.{path}": vars(layer) for path, layer in found.layers.items()},
        {name: getattr(found, name) for name in ("examples", "example_gradients", "seconds")},
    )
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Retained:
    """What a deletion must leave alone.

    Attributes:
      statistics: moments of the retained examples, for the next deletion.
      bases: protected directions of each layer that may move.
      layers: per layer `inputs`, `rank`, `energy` kept, and `clipped` mass.
      example_gradients: what the moments of the forget set cost.
      warning: set where the difference is not the moment of the retained examples.
      note: JSON-able facts for the info of a method.
    """

    statistics: Statistics
    bases: Bases
    layers: dict[str, dict[str, Any]]
    example_gradients: float
    warning: str | None

    @property
    def note(self) -> dict[str, Any]:
        before = self.statistics
        return {
            "layers": self.layers,
            "preparation_seconds": before.seconds,
            "preparation_example_gradients": before.example_gradients,
            "warning": (f"{self.warning}; " if self.warning else "")
            + "after a preparation that is not counted, once for all deletions: "
            f"{before.example_gradients:.0f} example gradients, {before.nbytes / 1e6:.1f} MB",
        }


def retained_bases(
    statistics: Statistics,
    spec: TrainSpec,
    params: Params,
    model_state: PyTree,
    forget: Dataset,
    rule: RankRule,
) -> Retained:
    """Bases of the retained inputs by subtraction: G(all) - G(forget), then the rank rule.

    Args:
      statistics: of all examples that are still learned; features of the original model.
      spec: the model and its preprocessing.
      params: current parameters, whose features of the forget set are subtracted.
      model_state: the other collections.
      forget: the examples to forget.
      rule: how many directions are protected.

    Raises:
      InputError: if the statistics have fewer examples than are to be forgotten, are of another
        model's layers, or the rule names a layer that there is not.
    """
    if statistics.examples <= len(forget):
        raise InputError(
            f"the statistics are of {statistics.examples} examples, {len(forget)} are to be "
            "forgotten; give the statistics of all of them"
        )
    gone = input_statistics(spec, params, model_state, forget, statistics.options)
    left = statistics.minus(gone, allow_drift=True)
    bases, layers = all_bases(left.spectra(), rule)
    clipped = max(report["clipped"] for report in layers.values())
    warning = None
    if left.drifted or clipped > CLIPPED_LIMIT:
        warning = (
            "the protected subspaces come from a difference of two models' features; "
            if left.drifted
            else "the statistics do not contain the forget set as it is now; "
        ) + f"clipped mass up to {clipped:.1e}"
    return Retained(left, bases, layers, gone.example_gradients, warning)
