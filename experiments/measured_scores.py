"""Memorization scores for the experiments that use them: exact ones and proxies, by their texts."""

import dataclasses

import from_config
import jax
import numpy as np
from absl import flags
from memorization_config import subset_recipe

import unroll
from unroll.checks import whole_number
from unroll.data.ids import make_generator
from unroll.evaluation.work import ensemble, training
from unroll.memorization.proxies import proxy
from unroll.memorization.scores import scores_of
from unroll.memorization.subject import Subject
from unroll.memorization.subsets import check_measure, models_left, train_on_subsets
from unroll.training.events import train_with_events

EXACT = "exact"
_DEVICES = flags.DEFINE_integer("cpu_devices", None, "Devices that the CPU is split into.")


def base_study(config):
    """The study of a config before its forget set is known, which follows from the scores."""
    if _DEVICES.value is not None:
        jax.config.update("jax_num_cpu_devices", whole_number("cpu_devices", _DEVICES.value))
    single = config.copy_and_resolve_references()
    with single.unlocked():
        single.forget = "ids(ids=(0,))"  # a study of one deletion request has to have one
    return from_config.build_study(single)


def request(config, study, forget, description, **changes):
    """The study of a forget set; the recipe of its independent retrains has their own length."""
    retained = len(study.train) - len(forget)
    steps = config.epochs * unroll.data.steps_per_epoch(retained, config.batch_size, config.partial)
    return dataclasses.replace(
        study,
        forget=forget,
        forget_description=description,
        independent_spec=from_config.build_spec(config, study.train, steps),
        **changes,
    )


def halves(test):
    """A random half of the test set for development and proxies, and the other one for results."""
    order = make_generator(0, "held_out").permutation(len(test))
    middle = len(order) // 2
    return test.take(np.sort(order[:middle])), test.take(np.sort(order[middle:]))


def check_scores(config, texts):
    """Refuses what would show only after training."""
    check_measure(config.measure)
    for text in texts:
        if text != EXACT:
            proxy(text)


def score_work(config, study, texts, store):
    """The trainings behind the scores that the store does not hold."""
    if EXACT in texts:
        recipe = subset_recipe(config, study.train)
        left, size = models_left(recipe, study.test, store=store), recipe.group_size
        schedule = recipe.schedules([0])[0]
        # Of a group that is done only the predictions are left, so memory is that of one group.
        group = ensemble(recipe.spec, study.train, schedule, min(left, size), group_size=size)
        yield dataclasses.replace(group, count=left)
    others = [text for text in texts if text != EXACT]
    if others:
        # The run with its events; a proxy that trains models takes about as long again.
        schedule = study.schedule(0)
        work = training(study.spec, study.train, schedule, count=1 + len(others))
        yield dataclasses.replace(work, at_most=True)


def measured_scores(config, study, texts, store, display):
    """Scores `[N]` by text, larger is more memorized, all of the study's network and recipe.

    Proxies look at the original of the first training seed, and hold out one half of the test set.
    """
    found = {}
    if EXACT in texts:
        recipe = subset_recipe(config, study.train)
        with display.task(f"train {recipe.models} models") as report:
            models = train_on_subsets(recipe, study.test, store=store, progress=report)
        found[EXACT] = scores_of(models, config.measure).values
    others = [text for text in dict.fromkeys(texts) if text != EXACT]
    if others:
        with display.task("train with events") as report:
            run, events = first_run(study, train_with_events, store, report)
        subject = Subject(run, events, halves(study.test)[0], store)
        for text in others:
            with display.task(f"proxy {text}") as report:
                found[text] = proxy(text)(subject, report).scores
    return found


def first_run(study, train, store, report):
    """The original of the first training seed, by `unroll.train` or a function like it."""
    seed = study.train_seeds[0]
    record = unroll.Record(every=study.record_every)
    options = dict(seed=seed, record=record, store=store, progress=report)
    return train(study.spec, study.train, study.schedule(seed), **options)
