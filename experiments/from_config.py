"""From a config to the objects of the library. Everything is checked here, before any work."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import unroll
from unroll.calls import parse_call
from unroll.data import Dataset
from unroll.data.options import call_with_options
from unroll.deletion.costs import slice_epochs
from unroll.deletion.sharding import random_assignment
from unroll.deletion.sisa import SisaPlan
from unroll.deletion.sisa_method import sisa_method
from unroll.errors import InputError
from unroll.training.optimizer import OptaxCall
from unroll.training.step import initial_state


def load_data(config: ml_collections.ConfigDict) -> tuple[Dataset, Dataset, np.ndarray]:
    """Training set, test set and forget ids.

    A vocabulary of words is built from the retained text only, so a text data set is read twice.
    """
    name, options = parse_call(config.dataset)
    train, test = unroll.data.load(name, **options)
    train = _corrupt(train, config.corruption)
    kind, choice = parse_call(config.forget)
    forget = unroll.data.select(train, kind, **choice)
    if name == "imdb_reviews" and options.get("encoding", "vocabulary") == "vocabulary":
        train, test = unroll.data.load(name, **options, exclude_ids=tuple(forget.tolist()))
        train = _corrupt(train, config.corruption)
    return train, test, forget


def _corrupt(train: Dataset, text: str) -> Dataset:
    name, options = parse_call(text)
    corruptions = {
        "none": lambda dataset: dataset,
        "mislabel": unroll.data.mislabel,
        "swap_classes": unroll.data.swap_classes,
        "poison_trigger": unroll.data.poison_trigger,
    }
    if name not in corruptions:
        raise InputError(f"unknown corruption {name!r}; choose one of {sorted(corruptions)}")
    return call_with_options(corruptions[name], name, train, **options)


def build_optimizer(config: ml_collections.ConfigDict, steps: int) -> OptaxCall:
    """The optax expression of `config.optimizer`; the other fields go to the optimiser."""
    options = {key: value for key, value in config.optimizer.to_dict().items() if value is not None}
    name, rate = options.pop("name"), options.pop("learning_rate")
    decay, warmup = options.pop("schedule"), options.pop("warmup_steps")
    if decay == "cosine":
        rate = unroll.optax_call(
            "warmup_cosine_decay_schedule",
            init_value=0.0 if warmup else rate,
            peak_value=rate,
            warmup_steps=warmup,
            decay_steps=steps,
        )
    elif decay == "linear" and not warmup:
        rate = unroll.optax_call(
            "linear_schedule", init_value=rate, end_value=0.0, transition_steps=steps
        )
    elif decay == "constant" and warmup:
        rate = unroll.optax_call(
            "linear_schedule", init_value=0.0, end_value=rate, transition_steps=warmup
        )
    elif decay != "constant":
        raise InputError(
            f"unknown schedule {decay!r}; choose constant, cosine or (without warmup_steps) linear"
        )
    if options.get("momentum") == 0.0:
        del options["momentum"]  # optax would carry a trace that is never used
    return unroll.optax_call(name, learning_rate=rate, **options)


def build_spec(config: ml_collections.ConfigDict, train: Dataset, steps: int) -> unroll.TrainSpec:
    """The specification of the training run."""
    name, options = parse_call(config.model)
    images = train.inputs.dtype == np.uint8
    if images and train.mean is None:
        raise InputError(f"{train.name} has no mean and std; give them when the data is made")
    return unroll.TrainSpec(
        model=unroll.models.build(name, num_classes=train.num_classes, **options),
        objective=unroll.Objective(**config.objective.to_dict()),
        optimizer=build_optimizer(config, steps),
        denominator=config.denominator,
        preprocess=unroll.Normalize(train.mean, train.std) if images else None,
        augmentation=unroll.CropAndFlip() if config.augment else None,
    )


def build_sisa_plan(
    config: ml_collections.ConfigDict, train: Dataset, shards: int, slices: int, seed: int
) -> SisaPlan:
    """The plan of a SISA system with the config's passes; its classes shared out evenly if asked.

    Raises:
      InputError: if these do not fit together.
    """
    labels = train.labels if config.get("class_balance", False) else None
    assignment = random_assignment(seed, len(train), shards, slices, labels=labels)
    epochs = slice_epochs(config.epochs, slices)
    spec = build_spec(config, train, 1)
    plan = SisaPlan(spec, train, assignment, epochs, config.batch_size, seed)
    # A rate that falls along a run falls along all stages of a constituent.
    steps = int(plan.steps().sum(axis=1).max())
    return dataclasses.replace(plan, spec=build_spec(config, train, steps))


def _method(text: str) -> str | unroll.Method:
    """A method as a study takes it; SISA has a layer of its own above the registry of methods."""
    name, options = parse_call(text)
    return call_with_options(sisa_method, name, **options) if name == "sisa" else text


def build_study(config: ml_collections.ConfigDict) -> unroll.Study:
    """The study that a config describes.

    Raises:
      InputError: whatever is wrong with it.
    """
    try:
        return _build_study(config)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        # A value of the wrong kind, deep inside the library that was given it.
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the config has a value that does not work: {reason}") from error


def _build_study(config: ml_collections.ConfigDict) -> unroll.Study:
    train, test, forget = load_data(config)
    steps, retrain_steps = (
        config.epochs * unroll.data.steps_per_epoch(count, config.batch_size, config.partial)
        for count in (len(train), len(train) - len(forget))
    )
    spec = build_spec(config, train, steps)
    # Shapes only: a model or an optimiser that does not work fails here and not after the loading.
    jax.eval_shape(lambda: initial_state(spec, jax.random.key(0), jnp.asarray(train.inputs[:1])))
    fields = {field.name for field in dataclasses.fields(unroll.Study)}
    shared = {key: value for key, value in config.to_dict().items() if key in fields}
    return unroll.Study(
        **{
            **shared,
            "name": config.experiment,
            "train": train,
            "test": test,
            "spec": spec,
            "independent_spec": build_spec(config, train, retrain_steps),
            "methods": tuple(map(_method, config.get("methods", ()))),
            "forget": forget,
            "forget_description": config.forget,
            "model_name": config.model,
        }
    )
