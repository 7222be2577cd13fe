"""What in a recipe spoils the derivatives of its run: kinks, and half precision.

At a kink (relu, max pooling) a derivative exists on either side and sees nothing of the other: it
is exact, and predicts a deletion badly; that is worth a warning. Half precision rounds to 8 or
11 bits in every operation, and a run amplifies what rounding does; the derivatives are noise,
and refused.

Design: half precision is looked for in the program of one training step, so that it is found
wherever it hides: in the model's dtype, the parameters, an optimiser's accumulator. Nothing is
executed, and the answer is kept, since methods ask for every deletion. Rejected: reading the dtypes
of the state alone; a model may keep its parameters in float32 and compute in bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from unroll.data.dataset import Dataset
from unroll.errors import InputError
from unroll.training.run import Run
from unroll.training.spec import TrainSpec
from unroll.training.step import Examples, train_step
from unroll.types import TrainState


def kink_warning(spec: TrainSpec, consequence: str) -> str | None:
    """A sentence that names the kinks of the model and what follows; `None` if it is smooth.

    Args:
      spec: what is trained; the fields `activation` and `pool` of its model are read.
      consequence: what the kinks do here, or what to do about them.
    """
    kinks = [
        kind
        for kind, is_there in (
            ("relu", getattr(spec.model, "activation", None) == "relu"),
            ("max pooling", getattr(spec.model, "pool", None) == "max"),
        )
        if is_there
    ]
    if not kinks:
        return None
    verb = "have" if kinks[1:] else "has"
    return (
        f"{' and '.join(kinks)} {verb} kinks, which a derivative does not see: {consequence}, or "
        "train with gelu and average pooling"
    )


def refuse_half_precision_of(run: Run, wanted: str) -> None:
    """`refuse_half_precision` for a recorded run."""
    refuse_half_precision(run.spec, run.state, run.dataset, run.schedule.shape[1], wanted)


def refuse_half_precision(
    spec: TrainSpec, state: TrainState, dataset: Dataset, batch_size: int, wanted: str
) -> None:
    """Refuses a step that computes anything in fewer than 32 bits; nothing is executed.

    Args:
      spec: what is trained.
      state: a state of the run, for its dtypes.
      dataset: the training set.
      batch_size: slots of a batch.
      wanted: what needs full precision, for the message.

    Raises:
      InputError: if it does; the message names the dtype.
    """
    leaves, structure = jax.tree.flatten(state)
    examples = Examples(_abstract(dataset.inputs), _abstract(dataset.labels))
    described = tuple(_abstract(leaf) for leaf in leaves)
    found = _half_dtypes_of_step(spec, structure, described, examples, batch_size)
    if found:
        raise InputError(
            f"the run computes in {' and '.join(found)}, whose rounding noise is amplified along "
            f"the run until it hides the derivatives; train in float32 to have {wanted}"
        )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype)


@functools.lru_cache(maxsize=64)
def _half_dtypes_of_step(
    spec: TrainSpec,
    structure: jax.tree_util.PyTreeDef,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
    examples: Examples,
    batch_size: int,
) -> tuple[str, ...]:
    """Names of the half-precision dtypes in the program of one step, sorted."""
    weights = jax.ShapeDtypeStruct(examples.labels.shape, np.float32)
    slots = jax.ShapeDtypeStruct((batch_size,), np.int32)
    program = jax.make_jaxpr(functools.partial(train_step, spec))(
        structure.unflatten(leaves),
        examples,
        weights,
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), np.int32),
        slots,
    )
    given = {str(leaf.dtype) for leaf in (*leaves, *examples) if _is_half(leaf.dtype)}
    return tuple(sorted(given | _half_dtypes(program.jaxpr)))


def _is_half(dtype: Any) -> bool:
    return jax.dtypes.issubdtype(dtype, np.floating) and np.dtype(dtype).itemsize < 4


def _half_dtypes(jaxpr: Any) -> set[str]:
    found = {
        str(variable.aval.dtype)
        for equation in jaxpr.eqns
        for variable in equation.outvars
        if hasattr(variable.aval, "dtype") and _is_half(variable.aval.dtype)
    }
    inner = (sub for equation in jaxpr.eqns for sub in jaxprs_in_params(equation.params))
    return found.union(*(_half_dtypes(sub) for sub in inner))
