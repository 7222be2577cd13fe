"""Noisy fine-tuning: what a guarantee costs in accuracy, beside methods that have no noise.

  python experiments/noisy_fine_tuning.py --config=configs/deletion/noisy_digits.py
  python experiments/noisy_fine_tuning.py --config=configs/deletion/noisy_digits.py:smoke

Every model of `config.models` is trained and forgets the same examples, for every seed: by noisy
fine-tuning with every clipping, radius, epsilon and number of quiet epochs, by plain fine-tuning,
by training from the reference for as many epochs (which needs no noise), by retraining, and not at
all. Results go to the workdir: config.json, noisy.jsonl, noisy.md, noisy.png.
"""

import dataclasses
import math

import from_config
import jax
import launch
import numpy as np
import workdir as workdirs

import unroll
from unroll import tree
from unroll.checks import whole_number
from unroll.deletion.gaussian_mechanism import check_guarantee
from unroll.deletion.noisy import NoisySteps, noisy_fine_tune
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows
from unroll.evaluation.work import training
from unroll.metrics.outputs import accuracy
from unroll.metrics.verification import relative_verification_error
from unroll.report.noisy import NOISY, ORIGINAL, RETRAIN, NoisyRow, write_noisy
from unroll.training.step import initial_state


def run(config, workdir, store):
    """Unlearns in every way and returns the path of the page."""
    studies = [_study(config, model) for model in config.models]
    settings = list(_settings(config))
    recipes = [(study.spec, study.train, study.schedule(0)) for study in studies]
    launch.announce([training(*recipe, count=2 * len(config.train_seeds)) for recipe in recipes])
    workdirs.prepare(workdir, config)
    path = workdir / "noisy.jsonl"
    path.unlink(missing_ok=True)
    rows, total = [], len(studies) * len(config.train_seeds)
    with ProgressDisplay().task("fine-tune") as report:
        for study in studies:
            for seed in config.train_seeds:
                found = list(_forgotten(config, study, settings, seed, store))
                append_rows(path, found)
                rows += found
                report(len({(row.model, row.seed) for row in rows}), total)
    return write_noisy(rows, workdir, config.experiment, config.delta)


def _study(config, model: str):
    single = config.copy_and_resolve_references()
    single.model = model
    return from_config.build_study(single)


def _settings(config):
    """Noisy steps, epsilon and quiet epochs of every combination."""
    if not config.models or not config.epsilons:
        raise InputError("give one model and one epsilon or more")
    for name, least in (("quiet_epochs", 0), ("fine_tuning_epochs", 1)):
        for epochs in config[name]:
            whole_number(name, epochs, least)
    for epsilon in config.epsilons:
        check_guarantee(epsilon, config.delta)
    for clipping in config.clippings:
        for radius in config.radii:
            noisy = NoisySteps(
                clipping,
                radius,
                config.fine_tuning_rate,
                config.noisy_steps,
                config.gradient_norm,
                config.decay,
            )
            for epochs in config.quiet_epochs:
                yield from ((noisy, epsilon, epochs) for epsilon in config.epsilons)


def _forgotten(config, study, settings, seed: int, store):
    """A row for each model after the deletion."""
    options = dict(seed=seed, store=store)
    run = unroll.train(study.spec, study.train, study.schedule(seed), **options)
    problem = unroll.Problem(run, study.forget, store=store)
    weights = problem.twin_weights
    twin = unroll.train(study.spec, study.train, study.schedule(seed), weights=weights, **options)
    judge = _Judge(study, problem, twin, seed)
    yield judge.row(ORIGINAL, run.state, 0)
    yield judge.row(RETRAIN, twin.state, twin.example_gradients)
    untrained = tree.to_host(initial_state(study.spec, jax.random.key(seed), study.train.inputs))
    # The same request to a model that was never trained.
    blank = dataclasses.replace(problem, run=dataclasses.replace(run, state=untrained))
    for epochs in config.fine_tuning_epochs:
        rate = dict(learning_rate=config.fine_tuning_rate, epochs=epochs)
        method = unroll.methods.method(f"finetune({_text(rate)}, batch_size={config.batch_size})")
        for name, start in (("fine-tuning", problem), ("from scratch", blank)):
            result = method(jax.random.key(seed), start)
            label = f"{name}, {epochs} epochs" if epochs > 1 else f"{name}, 1 epoch"
            yield judge.row(label, result, result.example_gradients)
    for noisy, epsilon, epochs in settings:
        yield judge.noisily(config, noisy, epsilon, epochs)


def _text(options) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


class _Judge:
    """Makes the rows of one trained model."""

    def __init__(self, study, problem, twin, seed: int):
        self._study, self._problem, self._twin, self._seed = study, problem, twin, seed
        counts = np.bincount(study.test.labels)
        self._shared = dict(
            dataset=study.train.name,
            model=study.model_name,
            seed=seed,
            original_accuracy=self._accuracy(problem.run.state, study.test),
            chance=float(counts.max() / counts.sum()),
        )

    def _accuracy(self, result, data) -> float:
        logits = unroll.predict(self._study.spec, result.params, result.model_state, data)
        return accuracy(logits, data.labels)

    def row(self, method: str, result, spent: float, **known) -> NoisyRow:
        original, twin = self._problem.run.state, self._twin
        return NoisyRow(
            **self._shared,
            method=method,
            accuracy=self._accuracy(result, self._study.test),
            forget_accuracy=self._accuracy(result, self._problem.forget_data),
            error=relative_verification_error(result.params, twin.state.params, original.params),
            cost=spent / twin.example_gradients,
            **known,
        )

    def noisily(self, config, noisy: NoisySteps, epsilon: float, epochs: int) -> NoisyRow:
        problem, state = self._problem, self._problem.run.state
        per_epoch = math.ceil(len(problem.retain) / config.batch_size)
        known = dict(
            clipping=noisy.clipping, radius=noisy.radius, epsilon=epsilon, quiet_epochs=epochs
        )
        try:
            result = noisy_fine_tune(
                jax.random.key(self._seed),
                problem,
                noisy,
                epsilon=epsilon,
                delta=config.delta,
                batch_size=config.batch_size,
                quiet_steps=epochs * per_epoch,
                reference_seed=self._seed,
            )
        except DivergenceError as error:
            return NoisyRow(**self._shared, method=NOISY, note=str(error), **known)
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(result.params))
        known |= dict(sigma=result.sigma, noise_norm=result.sigma * math.sqrt(size))
        known["distance"] = result.info["distance_from_reference"]
        known["share_clipped"] = result.info["share_clipped"]
        served = state._replace(params=result.params)
        return self.row(NOISY, served, result.example_gradients, **known)


if __name__ == "__main__":
    launch.launch(run)
