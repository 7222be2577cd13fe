"""Many models, each trained on a random part of the training set, and what they predict.

    included[k] = a random set of round(share N) examples;   model k = A(D[included[k]])

Memorization scores and influences are differences between means over these models (Feldman and
Zhang, arXiv 2008.03703, section 3); `unroll.memorization.scores` takes them.

Design: a model is an honest run on its own examples. Its schedule goes through the ids of its
subset, so it takes as many steps, with batches as full, as a training on those examples alone.
Rejected: one schedule over all examples for all models, with weights of 0 outside of the subset. It
takes less memory and one gather for a group, but 1/share times the steps, and under the
denominator `batch` each step moves by only the share of a full one: that model is the twin of a
deletion, not a training on less data.

A group of models is trained at once and stored as a unit: its logits, after which its weights are
not needed and not kept. Groups are cut at multiples of `group_size`, so a larger number of models
goes on from the groups of a smaller one. Rejected: groups of even size, which share one program but
all change with the number of models.

Logits are stored as float32. They are all that is kept of a model: 2.4 MB for 60,000 examples of 10
classes, where the weights of ResNet-18 take 45 MB. Rejected: float16, in which close logits become
equal, so that a stored model is right where the trained one was wrong; and the correctness alone,
from which no other measure can be had.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from unroll import tree
from unroll.checkpoint import FORMAT, Store
from unroll.checks import positive_number, seed_number, whole_number
from unroll.data.dataset import Dataset
from unroll.data.schedule import make_schedule, steps_per_epoch
from unroll.errors import DivergenceError, InputError
from unroll.training import devices
from unroll.training.devices import MODELS
from unroll.training.ensemble import Ensemble, train_ensemble
from unroll.training.run import Progress, environment
from unroll.training.spec import TrainSpec, apply_model, description_hash
from unroll.training.step import initial_state
from unroll.training.timing import Stopwatch
from unroll.types import PyTree

_SUBSET, _TRAINING = 0, 1
_PREDICTED_AT_ONCE = 500


def subset_weights(seed: int, models: int | Iterable[int], count: int, share: float) -> np.ndarray:
    """Which examples each model is trained on.

    Args:
      seed: seed of all subsets.
      models: number K of models, or the indices of those that are wanted. A row depends on the
        index of its model and on no other.
      count: number N of examples.
      share: part of the examples in a subset, above 0 and below 1.

    Returns:
      bool `[K, N]`, `round(share * N)` of them True in each row: the example weights 1 and 0.

    Raises:
      InputError: if a number is out of range, or the share rounds to no example or to all.
    """
    size = _subset_size(count, share)
    indices = np.arange(whole_number("models", models)) if isinstance(models, int) else models
    indices = np.asarray(list(indices), np.uint32)
    if not len(indices):
        return np.zeros((0, count), bool)
    return np.array(_subsets(jax.random.key(seed_number(seed)), indices, count, size))


@jax.jit(static_argnames=("count", "size"))
def _subsets(key: jax.Array, models: jax.Array, count: int, size: int) -> jax.Array:
    def one(model):
        own = jax.random.fold_in(jax.random.fold_in(key, model), _SUBSET)
        return jax.random.permutation(own, count) < size

    return jax.lax.map(one, models)


def _subset_size(count: int, share: float) -> int:
    whole_number("count", count)
    size = round(positive_number("share", share) * count)
    if not 0 < size < count:
        raise InputError(
            f"share={share} of {count} examples is {size}; models with and without every example "
            "are needed"
        )
    return size


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetRecipe:
    """K models on random subsets: everything that determines them.

    Attributes:
      spec: how each is trained.
      dataset: the training set, N examples.
      models: number K of models.
      epochs: passes of a model over its subset.
      batch_size: slots per step.
      share: part of the training set in a subset.
      seed: of subsets, initialisations and schedules.
      group_size: models that are trained together and stored as a unit.

    Raises:
      InputError: if a number is out of range, or an example has fewer than 2 models with it or
        without it.
    """

    spec: TrainSpec
    dataset: Dataset
    models: int
    epochs: int
    batch_size: int
    share: float = 0.7
    seed: int = 0
    group_size: int = 64

    def __post_init__(self):
        for name in ("models", "epochs", "batch_size", "group_size"):
            whole_number(name, getattr(self, name))
        check_counts(self.included)

    @functools.cached_property
    def included(self) -> np.ndarray:
        """bool `[K, N]`: the subsets of all models."""
        return subset_weights(self.seed, self.models, len(self.dataset), self.share)

    @property
    def steps(self) -> int:
        """Steps of one model."""
        size = _subset_size(len(self.dataset), self.share)
        return self.epochs * steps_per_epoch(size, self.batch_size)

    @property
    def example_gradients(self) -> int:
        """Example-gradient evaluations of all models."""
        return self.epochs * int(self.included.sum())

    @property
    def groups(self) -> list[range]:
        """Indices of the models of each group."""
        starts = range(0, self.models, self.group_size)
        return [range(begin, min(begin + self.group_size, self.models)) for begin in starts]

    def training_seeds(self, models: Sequence[int]) -> tuple[int, ...]:
        """Seeds of initialisation, noise and schedule of some models, below 2**32."""
        indices = np.asarray(models, np.uint32)
        return tuple(_training_seeds(jax.random.key(seed_number(self.seed)), indices).tolist())

    def schedules(self, models: Sequence[int]) -> np.ndarray:
        """int32 `[M, T, B]`: some models' schedules, each of the ids of its own subset."""
        seeds = self.training_seeds(models)
        return np.stack(
            [
                make_schedule(
                    seed, np.flatnonzero(self.included[model]), self.batch_size, self.epochs
                )
                for model, seed in zip(models, seeds, strict=True)
            ]
        )


@jax.jit
def _training_seeds(key: jax.Array, models: jax.Array) -> jax.Array:
    def one(model):
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, model), _TRAINING))

    return jax.lax.map(one, models)


def check_counts(included: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of models with and without each example, two int64 `[N]`.

    Raises:
      InputError: if one of them is below 2, where a mean has no standard error.
    """
    inside = np.asarray(included).astype(bool).sum(axis=0)
    outside = len(included) - inside
    few = np.flatnonzero(np.minimum(inside, outside) < 2)
    if len(few):
        raise InputError(
            f"example {few[0]} is in {inside[few[0]]} of {len(included)} subsets "
            f"({len(few)} such examples); train more models, so that each has 2 with it and 2 "
            "without it"
        )
    return inside, outside


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What K models make of M examples: bool `correct [K, M]`, float32 `probability [K, M]`.

    `probability` is that of the true class.
    """

    correct: np.ndarray
    probability: np.ndarray

    def measured(self, measure: str) -> np.ndarray:
        """One of the two by the name of its mean: `accuracy` or `probability`.

        Raises:
          InputError: on any other name.
        """
        return self.correct if check_measure(measure) == "accuracy" else self.probability


def check_measure(measure: str) -> str:
    """Returns the name of a measure.

    Raises:
      InputError: if it is neither `accuracy` nor `probability`.
    """
    if measure not in ("accuracy", "probability"):
        raise InputError(f"unknown measure {measure!r}; choose accuracy or probability")
    return measure


def outputs_of(logits: np.ndarray, labels: np.ndarray) -> Outputs:
    """Correctness and probability of the true class from logits `[K, M, C]` and labels `[M]`."""
    correct = np.zeros(logits.shape[:2], bool)
    probability = np.zeros(logits.shape[:2], np.float32)
    column = np.asarray(labels)[:, None]
    # A model at a time: with many classes the logits of a group are large already.
    for model, values in enumerate(logits):
        correct[model] = values.argmax(axis=1) == labels
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        true = np.take_along_axis(shifted, column, axis=1)[:, 0]
        probability[model] = true / shifted.sum(axis=1)
    return Outputs(correct, probability)


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetModels:
    """What is known of K models after they were trained.

    Attributes:
      recipe: how they were made; `recipe.included` has their subsets.
      train: outputs on the training set, `[K, N]`.
      test: outputs on the test set, `[K, M]`, if there was one.
      seconds: of training and prediction, compilation not counted, however many runs it took.
    """

    recipe: SubsetRecipe
    train: Outputs
    test: Outputs | None
    seconds: float


def train_on_subsets(
    recipe: SubsetRecipe,
    test: Dataset | None = None,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> SubsetModels:
    """Trains the models group by group, and predicts training and test set with each.

    With a store, finished groups are read back, and one that was killed goes on where it was. In a
    job of several processes each makes this call, trains its share and returns the whole.

    Args:
      recipe: what to train.
      test: examples to predict besides the training set. A later call without them reads back what
        was stored with them, not the other way round.
      store: where logits are kept.
      mesh: devices to train on, by default all of the job.
      progress: called with (steps done, steps in all) summed over the models.

    Raises:
      InputError: if something does not fit together.
      DivergenceError: if a model diverges; the message names it.
      StoreError: if the store cannot be written.
    """
    mesh = devices.model_mesh() if mesh is None else mesh
    evaluated = [recipe.dataset] if test is None else [recipe.dataset, test]
    parts, total = [], recipe.models * recipe.steps
    for models in recipe.groups:
        group = _Group(recipe, models, evaluated, mesh, store)
        found = group.read()
        if found is None:
            found = group.train(_begun(progress, models.start * recipe.steps, total))
        elif progress is not None:
            progress(models.stop * recipe.steps, total)
        logits, seconds = found
        outputs = [
            outputs_of(each, data.labels) for each, data in zip(logits, evaluated, strict=True)
        ]
        parts.append((outputs, seconds))
    outputs = [
        Outputs(
            np.concatenate([group[which].correct for group, _ in parts]),
            np.concatenate([group[which].probability for group, _ in parts]),
        )
        for which in range(len(evaluated))
    ]
    seconds = float(sum(seconds for _, seconds in parts))
    return SubsetModels(recipe, outputs[0], None if test is None else outputs[1], seconds)


def models_left(
    recipe: SubsetRecipe,
    test: Dataset | None = None,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
) -> int:
    """How many models `train_on_subsets` would still have to train, by what the store lists."""
    mesh = devices.model_mesh() if mesh is None else mesh
    evaluated = [recipe.dataset] if test is None else [recipe.dataset, test]
    groups = (_Group(recipe, models, evaluated, mesh, store) for models in recipe.groups)
    return sum(len(group.models) for group in groups if not group.is_listed())


def _begun(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


class _Group:
    """Models that are trained together: a unit of the store.

    Logits on each data set lie under an address of their own, so that those on the training set are
    found whichever test set there was.
    """

    def __init__(self, recipe, models: range, evaluated: list[Dataset], mesh: Mesh, store):
        self.recipe, self.models, self.evaluated = recipe, models, evaluated
        self._mesh, self._store = mesh, store
        self._identities = [self._identity(data) for data in evaluated] if store else []
        self._addresses = [description_hash(identity) for identity in self._identities]

    def _identity(self, data: Dataset) -> dict:
        recipe = self.recipe
        return {
            "format": FORMAT,
            "program": "models on random subsets",
            "spec": recipe.spec.describe(),
            "dataset": recipe.dataset.fingerprint,
            "subsets": tree.content_hash(recipe.included[self.models.start : self.models.stop]),
            "seed": recipe.seed,
            "models": [self.models.start, self.models.stop],
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "group_size": recipe.group_size,
            "devices": self._mesh.size,
            "evaluated": data.fingerprint,
            **environment(recipe.spec),
        }

    def is_listed(self) -> bool:
        return bool(self._addresses) and all(self._store.steps(each) for each in self._addresses)

    def read(self) -> tuple[list[np.ndarray], float] | None:
        """Logits `[G, M, C]` on each data set and the seconds they took, if all are stored."""
        entries = []
        for address, data in zip(self._addresses, self.evaluated, strict=False):
            shape = (len(self.models), len(data), _logit_count(self.recipe))
            entries.append(self._store.read(address, 0, np.zeros(shape, np.float32)))
        complete = bool(entries) and all(entry is not None for entry in entries)
        # Processes with stores of their own must train together or not at all.
        if not devices.gathered(self._mesh, np.int32(complete)).all():
            return None
        self._drop_weights()  # of a run that was killed in between
        return [logits for logits, _ in entries], entries[0][1]["seconds"]

    def train(self, progress: Progress | None) -> tuple[list[np.ndarray], float]:
        """Trains and predicts; with a store, keeps the logits and drops the weights."""
        recipe, store = self.recipe, self._store
        seeds = recipe.training_seeds(self.models)
        unfinished = Store(self._folder, store.progress_seconds) if store else None
        try:
            trained = train_ensemble(
                recipe.spec,
                recipe.dataset,
                recipe.schedules(self.models),
                seeds=seeds,
                weights=recipe.included[self.models.start : self.models.stop],
                group_size=recipe.group_size,
                mesh=self._mesh,
                store=unfinished,
                progress=progress,
            )
        except DivergenceError as error:
            raise DivergenceError(_name_model(str(error), self.models, seeds)) from None
        watch = Stopwatch()
        logits = [ensemble_logits(trained, data, self._mesh) for data in self.evaluated]
        self._check(logits)
        seconds = trained.seconds + watch.seconds()
        if store is not None:
            for address, identity, values in zip(
                self._addresses, self._identities, logits, strict=True
            ):
                store.describe(address, identity)
                store.write(address, 0, values, {"seconds": seconds})
            devices.gathered(self._mesh, np.int32(0))  # nobody removes what another still reads
            self._drop_weights()
        return logits, seconds

    @property
    def _folder(self) -> Path:
        """Where weights lie until the group is finished."""
        return self._store.root / f"unfinished-{self._addresses[0]}"

    def _drop_weights(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, logits: list[np.ndarray]) -> None:
        for values in logits:
            bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
            if len(bad):
                raise DivergenceError(
                    f"logits of model {self.models[bad[0]]} of {self.recipe.models} are not "
                    "finite; lower the learning rate or clip the gradients"
                )


def _name_model(message: str, models: range, seeds: tuple[int, ...]) -> str:
    """Says which of the models a message means that names its seed."""
    found = re.search(r"seed (\d+)", message)
    if found is None or int(found[1]) not in seeds:
        return message
    return f"model {models[seeds.index(int(found[1]))]} on its subset: {message}"


def _logit_count(recipe: SubsetRecipe) -> int:
    def logits(inputs):
        state = initial_state(recipe.spec, jax.random.key(0), inputs)
        return _logits(recipe.spec, inputs, (state.params, state.model_state))

    return jax.eval_shape(logits, jnp.asarray(recipe.dataset.inputs[:1])).shape[1]


def _logits(spec: TrainSpec, inputs: jax.Array, variables: PyTree) -> jax.Array:
    if spec.preprocess is not None:
        inputs = spec.preprocess(inputs)
    return apply_model(spec, *variables, inputs, train=False)[0].astype(jnp.float32)


def ensemble_logits(ensemble: Ensemble, dataset: Dataset, mesh: Mesh) -> np.ndarray:
    """Logits float32 `[M, N, C]` of all models in evaluation mode, shared out over a mesh.

    In a job every process makes this call and gets the whole.
    """
    width = -(-len(ensemble) // mesh.size)
    variables = (ensemble.states.params, ensemble.states.model_state)
    parts = []
    for place in devices.local_places(mesh):
        # Places beyond the last model repeat it, so that all devices run one program.
        members = np.minimum(np.arange(place * width, (place + 1) * width), len(ensemble) - 1)
        parts.append(jax.tree.map(lambda leaf, members=members: leaf[members], variables))
    variables = devices.lay_out(mesh, parts)
    size, results = min(_PREDICTED_AT_ONCE, len(dataset)), []
    for begin in range(0, len(dataset), size):
        # The last batch reaches back, so that one program serves all.
        start = min(begin, len(dataset) - size)
        inputs = devices.replicate(mesh, jnp.asarray(dataset.inputs[start : start + size]))
        logits = devices.on_every_host(mesh, _mesh_logits(ensemble.spec, mesh, variables, inputs))
        results.append(logits[: len(ensemble), begin - start :])
    return np.concatenate(results, axis=1)


@jax.jit(static_argnames=("spec", "mesh"))
def _mesh_logits(spec: TrainSpec, mesh: Mesh, variables: PyTree, inputs: jax.Array) -> jax.Array:
    def local(variables, inputs):
        # One model after the other: on the CPU a convolution uses all cores by itself.
        return jax.lax.map(functools.partial(_logits, spec, inputs), variables)

    each, shared = PartitionSpec(MODELS), PartitionSpec()
    return jax.shard_map(
        local, mesh=mesh, in_specs=(each, shared), out_specs=each, check_vma=False
    )(variables, inputs)
