"""Exact memorization scores and influences from many models on random subsets.

  python experiments/memorization.py --config=configs/memorization/scores_digits.py
  python experiments/memorization.py --config=configs/memorization/scores_digits.py:smoke

Small dense networks keep to one core each; `--cpu_devices=2` gives their ensemble a device for each
of two. Results go to the workdir: config.json, scores.npz, scores.jsonl, scores.md and its figures.
Predictions of finished groups of models lie in the store, so a killed run is simply started again,
and one with more models goes on from those.
"""

import launch
import measured_scores
import workdir as workdirs
from absl import flags
from memorization_config import subset_recipe

from unroll.checks import whole_number
from unroll.evaluation.progress import ProgressDisplay
from unroll.memorization.scores import influence, save_scores, scores_of, top_pairs
from unroll.memorization.subsets import check_measure, train_on_subsets
from unroll.report.memorization import summarize_scores, write_memorization


def run(config, workdir, store):
    """Trains the models, scores the training set and returns the path of the page."""
    whole_number("pairs", config.pairs)
    check_measure(config.measure)
    study = measured_scores.base_study(config)
    recipe = subset_recipe(config, study.train)
    work = measured_scores.score_work(config, study, (measured_scores.EXACT,), store)
    launch.announce(work)
    workdirs.prepare(workdir, config)
    with ProgressDisplay().task(f"train {recipe.models} models") as report:
        found = train_on_subsets(recipe, study.test, store=store, progress=report)
    scores = {measure: scores_of(found, measure) for measure in ("accuracy", "probability")}
    chosen = scores[config.measure]
    save_scores(workdir / "scores.npz", chosen)
    influences = influence(found.test.measured(config.measure), recipe.included)
    return write_memorization(
        workdir,
        study.name,
        [summarize_scores(each, study.model_name) for each in scores.values()],
        chosen,
        study.train,
        study.test,
        top_pairs(influences, config.pairs),
    )


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    flags.adopt_module_key_flags(measured_scores)
    launch.launch(run)
