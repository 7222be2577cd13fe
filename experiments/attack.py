"""Attacks many unlearned models: can they be told from retrained ones by their answers?

python experiments/attack.py --config=configs/pgu/attack.py

Results go to the workdir: config.json, attack.jsonl, attack.md.
"""

import from_config
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.errors import InputError
from unroll.evaluation.attacks import AttackRow, attack_rows
from unroll.evaluation.plans import without_ids
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, read_rows
from unroll.evaluation.study import INDEPENDENT_SEED, apply_method
from unroll.evaluation.work import training, unlearning
from unroll.report.attacks import write_attacks
from unroll.training.predict import predict


def run(config, workdir, store):
    """Trains the models, lets the methods unlearn, attacks, and returns the path of the page."""
    study = from_config.build_study(config)
    if not 2 <= config.folds <= config.models:
        raise InputError(f"folds={config.folds}: choose between 2 and models={config.models}")
    launch.announce(_work(study, config.models))
    workdirs.prepare(workdir, config)
    forgotten = study.train.take(study.forget)
    weights = without_ids(len(study.train), study.forget)
    display = ProgressDisplay().task

    def answers(params, model_state):
        return predict(study.spec, params, model_state, forgotten)

    def trained(seed, weights=None):
        options = {"seed": seed, "weights": weights, "store": store}
        return unroll.train(study.spec, study.train, study.schedule(seed), **options)

    original, retrained = [], []
    unlearned = {str(method): [] for method in study.compared}
    with display("models") as report:
        for index in range(config.models):
            run = trained(index)
            original.append(answers(run.state.params, run.state.model_state))
            problem = unroll.Problem(run, study.forget, store=store)
            for method in study.compared:
                result = apply_method(method, 0, problem, store, None)
                unlearned[str(method)].append(answers(result.params, result.model_state))
            for number in (index, config.models + index):
                twin = trained(INDEPENDENT_SEED + number, weights)
                retrained.append(answers(twin.state.params, twin.state.model_state))
            report(index + 1, config.models)
    logits = {name: np.stack(each) for name, each in unlearned.items()}
    retrained = np.stack(retrained[0::2] + retrained[1::2])
    rows = attack_rows(np.stack(original), retrained, logits, forgotten.labels, config.folds)
    path = workdir / "attack.jsonl"
    path.unlink(missing_ok=True)
    append_rows(path, rows)
    return write_attacks(read_rows(path, AttackRow), workdir, study.name)


def _work(study, models):
    recipe = study.spec, study.train, study.schedule(0)
    yield training(*recipe, count=3 * models)
    for method in study.compared:
        for _ in range(models):
            yield unlearning(method, *recipe, study.epochs)


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
