"""Trains many models with and without a forget set, in one process or in a job of several.

  python experiments/ensemble.py --config=configs/ensemble.py
  python experiments/ensemble.py --config=configs/ensemble.py:smoke

In a job every process runs the same command but for its number, and shares store and workdir:

  python experiments/ensemble.py --config=configs/ensemble.py \
    --coordinator=10.0.0.1:1234 --processes=2 --process_id=0    # and 1 on the other host

With `--coordinator=auto` jax asks the cluster (Slurm, Open MPI, Kubernetes, TPU). A process that
fails or is killed ends the others; all are then started again with the same commands, and go on
from what the store holds. Results go to the workdir: config.json, ensemble.jsonl, ensemble.md.
"""

import dataclasses

import from_config
import jax
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.errors import InputError
from unroll.evaluation.judge import Judge
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.rows import append_rows, read_rows
from unroll.evaluation.study import silent
from unroll.evaluation.work import ensemble as ensemble_work
from unroll.metrics.tow import SPLITS
from unroll.report.files import write_atomically
from unroll.report.formatting import format_interval
from unroll.report.summary import t_interval
from unroll.training import devices

_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, or `auto`.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")

TRAINED_ON = ("everything", "the retain set")
"""Without the forget set its weights are 0: the twins of the others, up to rounding."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A row: one trained model on one split."""

    seed: int
    trained_on: str
    split: str
    accuracy: float
    loss: float


def run(config, workdir, store):
    """Trains and judges all models; process 0 writes, and returns the path of, the page."""
    _join()
    mesh, first = devices.model_mesh(), jax.process_index() == 0
    study = from_config.build_study(config)
    seeds, schedules, weights = _members(config, study)
    if first:
        share = -(-len(seeds) // jax.process_count())
        size = config.group_size
        recipe = study.spec, study.train, schedules[0]
        launch.announce([ensemble_work(*recipe, share, group_size=size)])
        workdirs.prepare(workdir, config)
    display = ProgressDisplay().task if first else silent
    with display(f"train {len(seeds)} models") as report:
        trained = unroll.train_ensemble(
            study.spec,
            study.train,
            schedules,
            seeds=seeds,
            weights=weights,
            mode=config.mode,
            group_size=config.group_size,
            mesh=mesh,
            store=store,
            progress=report,
        )
    rows = _judged(study, trained, mesh)
    if first:
        (workdir / "ensemble.jsonl").unlink(missing_ok=True)
        append_rows(workdir / "ensemble.jsonl", rows)
        _write_page(workdir, study, trained, mesh)
    devices.gathered(mesh, np.int32(0))  # nobody leaves before the page is written
    return workdir / "ensemble.md"


def _join():
    coordinator, rest = _COORDINATOR.value, (_PROCESSES.value, _PROCESS_ID.value)
    if coordinator == "auto":
        devices.join(None, *rest)
    elif coordinator is not None:
        devices.join(coordinator, *rest)
    elif rest != (None, None):
        raise InputError(
            "--processes and --process_id need a --coordinator: host:port of process 0"
        )


def _members(config, study):
    """Seeds, schedules and weights: each seed with everything, then without the forget set."""
    if config.models < 1:
        raise InputError(f"models={config.models}: train at least one")
    seeds = range(config.models)
    schedules = np.stack([study.schedule(seed) for seed in seeds])
    weights = np.ones((2, len(study.train)), np.float32)
    weights[1, study.forget] = 0.0
    return (
        (*seeds, *seeds),
        np.concatenate([schedules, schedules]),
        np.repeat(weights, config.models, axis=0),
    )


def _judged(study, trained, mesh):
    """Rows of all models; each process judges its share."""
    judge = Judge(study.spec, study.train, study.test, study.forget)
    found = np.zeros((len(trained), len(SPLITS), 2), np.float32)
    for index in range(jax.process_index(), len(trained), jax.process_count()):
        state = trained.member(index)
        model = judge.model(state.params, state.model_state)
        pairs = [(model.accuracies[split], model.losses[split]) for split in SPLITS]
        found[index] = pairs
    found = devices.gathered(mesh, found).sum(axis=0)
    half = len(trained) // 2
    return [
        Member(seed, TRAINED_ON[index >= half], split, float(accuracy), float(loss))
        for index, seed in enumerate(trained.seeds)
        for split, (accuracy, loss) in zip(SPLITS, found[index], strict=True)
    ]


def _write_page(workdir, study, trained, mesh):
    rows = read_rows(workdir / "ensemble.jsonl", Member)
    lines = [
        f"# {study.name}",
        "",
        f"{len(trained)} models of {study.model_name} on {study.train.name}, half of them without "
        f"{study.forget_description}; {trained.seconds:.1f} s of steps on {mesh.size} devices "
        f"({mesh.devices.flat[0].device_kind}) of {jax.process_count()} processes. Mean and half "
        "of the 95% interval over seeds.",
        "",
        "| trained on | split | accuracy | loss |",
        "|---|---|---:|---:|",
    ]
    for trained_on in TRAINED_ON:
        for split in SPLITS:
            cell = [row for row in rows if (row.trained_on, row.split) == (trained_on, split)]
            columns = ([row.accuracy for row in cell], [row.loss for row in cell])
            numbers = " | ".join(format_interval(t_interval(column)) for column in columns)
            lines.append(f"| {trained_on} | {split} | {numbers} |")
    text = "\n".join(lines) + "\n"
    write_atomically(workdir / "ensemble.md", lambda file: file.write(text.encode()))


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    try:
        launch.launch(run)
    except devices.ProcessLost as error:
        devices.leave(error)
    except SystemExit as ending:
        if ending.code and jax.distributed.is_initialized():
            devices.leave(str(ending.code).removeprefix("error: "))
        raise
