"""Machine unlearning in JAX: a training run is a pure function of its example weights.

>>> import unroll
>>> train, test = unroll.data.load("digits")
>>> spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=10))
>>> schedule = unroll.data.make_schedule(seed=0, ids=len(train), batch_size=32, epochs=1)
>>> run = unroll.train(spec, train, schedule, record=unroll.Record(every=50))
>>> problem = unroll.Problem(run, unroll.data.random_ids(train, fraction=0.01))
>>> retrained = unroll.unlearn("retrain", problem)
>>> unlearned = unroll.unlearn("taylor(order=2)", problem)
>>> unroll.verification_error(unlearned.params, retrained.params) < 0.01
True
"""

import jax

from unroll import data, memorization, methods, models
from unroll.checkpoint import Store
from unroll.compiler import choose_cpu_convolution
from unroll.errors import DivergenceError, InputError, StoreError
from unroll.evaluation.study import Study, run_study
from unroll.metrics.verification import relative_verification_error, verification_error
from unroll.objectives import Objective
from unroll.problem import Method, Problem, Unlearned
from unroll.training.ensemble import Ensemble, train_ensemble
from unroll.training.optimizer import optax_call
from unroll.training.predict import predict
from unroll.training.record import Record
from unroll.training.run import Run, train
from unroll.training.spec import TrainSpec
from unroll.training.transforms import CropAndFlip, Normalize

choose_cpu_convolution()


def unlearn(method: str | Method, problem: Problem, seed: int = 0) -> Unlearned:
    """Applies a method to a deletion request.

    Args:
      method: a `Method`, or its name with arguments, for example `taylor(order=2)`.
      problem: the run and what to forget.
      seed: seed of the method, where it draws anything.

    Raises:
      InputError: on an unknown method, or one whose assumptions the run does not meet.
    """
    chosen = methods.method(method) if isinstance(method, str) else method
    return chosen(jax.random.key(seed), problem)


__all__ = [
    "CropAndFlip",
    "DivergenceError",
    "Ensemble",
    "InputError",
    "Method",
    "Normalize",
    "Objective",
    "Problem",
    "Record",
    "Run",
    "Store",
    "StoreError",
    "Study",
    "TrainSpec",
    "Unlearned",
    "data",
    "memorization",
    "methods",
    "models",
    "optax_call",
    "predict",
    "relative_verification_error",
    "run_study",
    "train",
    "train_ensemble",
    "unlearn",
    "verification_error",
]
