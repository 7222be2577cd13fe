"""The four-step pipeline: influences times kinds of noise, accepted or refused.

  python experiments/pipeline.py --config=configs/deletion/pipeline_digits.py
  python experiments/pipeline.py --config=configs/deletion/pipeline_digits.py:smoke

`config.influences` are triples: a label, the first step and the second, as calls. `config.noises`
are `none`, `measured(epsilon=..., delta=..., add=...)` or `proved(epsilon=..., delta=...,
sensitivity=...)`, the last for linear models with l2. `config.checks` are calls of metrics, such as
`test_accuracy_drop(at_most=0.02)`. Results go to the workdir: config.json, served.jsonl,
pipeline.md, pipeline.png.
"""

import from_config
import jax
import launch
import workdir as workdirs
from absl import flags

import unroll
from unroll.calls import parse_call
from unroll.data.options import call_with_options
from unroll.deletion.output_noise import (
    NoNoise,
    OutputNoise,
    measured_distance,
    strongly_convex_distance,
)
from unroll.deletion.pipeline import (
    AlongTrajectory,
    InverseCurvature,
    NewtonStep,
    Pipeline,
    TaylorSum,
)
from unroll.deletion.validation import Candidate, Check
from unroll.errors import DivergenceError, InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows
from unroll.evaluation.work import training
from unroll.metrics.verification import relative_verification_error
from unroll.report.certified import Served, write_pipeline


def _measured(epsilon, delta, add=False):
    return OutputNoise(epsilon, delta, measured_distance(), add)


def _proved(epsilon, delta, sensitivity):
    return OutputNoise(epsilon, delta, strongly_convex_distance(sensitivity))


INFLUENCES = {"inverse_curvature": InverseCurvature, "along_trajectory": AlongTrajectory}
ADJUSTMENTS = {"newton_step": NewtonStep, "taylor_sum": TaylorSum}
NOISES = {"none": NoNoise, "measured": _measured, "proved": _proved}


def run(config, workdir, store):
    """Serves the request by every pipeline and returns the path of the page."""
    study = from_config.build_study(config)
    pipelines = list(_pipelines(config))
    recipe = study.spec, study.train, study.schedule(0)
    launch.announce([training(*recipe, count=2 * len(study.train_seeds))])
    workdirs.prepare(workdir, config)
    path = workdir / "served.jsonl"
    path.unlink(missing_ok=True)
    rows = []
    total = len(pipelines) * len(study.train_seeds)
    with ProgressDisplay().task("pipelines") as report:
        for seed in study.train_seeds:
            problem, twin = _trained(study, seed, store)
            for label, noise, pipeline in pipelines:
                row = _served(study, problem, twin, seed, label, noise, pipeline)
                append_rows(path, [row])
                rows.append(row)
                report(len(rows), total)
    return write_pipeline(rows, workdir, config.experiment)


def _pipelines(config):
    """Label, noise and pipeline of every combination."""
    if any(len(triple) != 3 for triple in config.influences) or not config.influences:
        raise InputError("config.influences must be triples: a label, an influence, an adjustment")
    checks = []
    for text in config.checks:
        name, options = parse_call(text)
        checks.append(call_with_options(Check, name, name, **options))
    for label, influence, adjustment in config.influences:
        steps = _part(INFLUENCES, influence), _part(ADJUSTMENTS, adjustment)
        for noise in config.noises:
            yield label, noise, Pipeline(*steps, _part(NOISES, noise), tuple(checks))


def _part(known, text):
    name, options = parse_call(text)
    if name not in known:
        raise InputError(f"unknown part {name!r}; choose one of {sorted(known)}")
    return call_with_options(known[name], name, **options)


def _trained(study, seed, store):
    schedule = study.schedule(seed)
    record = unroll.Record(every=study.record_every)
    options = dict(seed=seed, store=store)
    original = unroll.train(study.spec, study.train, schedule, record=record, **options)
    problem = unroll.Problem(original, study.forget, store=store)
    weights = problem.twin_weights
    twin = unroll.train(study.spec, study.train, schedule, weights=weights, **options)
    return problem, twin


def _served(study, problem, twin, seed, label, noise, pipeline):
    state = problem.run.state
    accuracy = Check("test_accuracy", at_least=0.0)
    old = Candidate(problem, state.params, state.model_state, study.test)
    place = dict(
        dataset=study.train.name,
        model=study.model_name,
        influence=label,
        noise=noise,
        seed=seed,
        original_accuracy=accuracy(old).value,
    )
    try:
        result = pipeline.run(
            jax.random.key(seed), problem, test=study.test, twin=twin.state.params
        )
    except DivergenceError as error:
        missing = dict(error=None, accuracy=None, example_gradients=None)
        return Served(**place, **missing, accepted=False, note=str(error))
    return Served(
        **place,
        error=relative_verification_error(result.candidate, twin.state.params, state.params),
        accuracy=accuracy(old._replace(params=result.candidate)).value,
        accepted=result.accepted,
        example_gradients=result.cost["example_gradients"] / twin.example_gradients,
        statement=result.report.statement,
        note=result.report.info.get("warning"),
    )


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
