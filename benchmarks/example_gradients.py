"""Norms of per-example gradients: `gradient_norms` against `torch.func.vmap(grad)`.

PyTorch works in chunks of the size that is fastest for it, each gathered, differentiated and
reduced to norms, as ours are.
"""

import time

import numpy as np
import peers
import torch
from cases import Case, make_case
from timing import agree, turn_about
from torch import func
from work import Outcome, Settings

from unroll.unrolling.example_gradients import gradient_norms

_CHUNKS = (16, 32, 64, 128, 256)
_TOLERANCE = 1e-4


def norms(settings: Settings, *, case: str, examples: int, **arguments) -> Outcome:
    """Seconds per 64 examples."""
    case = make_case(settings, case, **arguments)
    ids = np.random.default_rng(3).integers(0, len(case.data), settings.choose(examples, 16))
    per_64 = 64 / len(ids)
    state, found = case.initial(), {}

    def ours() -> float:
        begin = time.perf_counter()
        found["ours"] = gradient_norms(case.spec, state, case.data, ids)
        return (time.perf_counter() - begin) * per_64

    def peer_turn(setup: peers.Setup, chunk: int):
        of_chunk = _peer_norms(case, setup)
        batches = [torch.from_numpy(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
        batches = [batch.to(setup.device) for batch in batches]

        def turn() -> float:
            begin = time.perf_counter()
            found["theirs"] = torch.cat([of_chunk(batch) for batch in batches])
            setup.finish()
            return (time.perf_counter() - begin) * per_64

        return turn

    setup = peers.best_setup(settings, case.images, lambda setup: peer_turn(setup, 64))
    chunk = _best_chunk(lambda size: peer_turn(setup, size), settings.choose(_CHUNKS, (8, 16)))
    figures = turn_about(ours, peer_turn(setup, chunk), settings)
    check = agree("norms", found["ours"], found["theirs"].cpu(), _TOLERANCE)
    return Outcome(*figures, check, f"{setup}, chunks of {chunk}")


def _best_chunk(make, sizes: tuple[int, ...]) -> int:
    def figure(size: int) -> float:
        turn = make(size)
        turn()
        return min(turn() for _ in range(2))

    return min(sizes, key=figure)


def _peer_norms(case: Case, setup: peers.Setup):
    """Ids to norms, as `torch.func` documents per-example gradients."""
    net = setup.network(case.peer())
    params = {name: value.detach() for name, value in net.named_parameters()}
    inputs, labels = setup.inputs(case.data.inputs), setup.labels(case.data.labels)

    def loss(params, example, label):
        logits = func.functional_call(net, params, (example[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    gradients = func.vmap(func.grad(loss), in_dims=(None, 0, 0))

    def norms(ids: torch.Tensor) -> torch.Tensor:
        by_name = gradients(params, inputs[ids], labels[ids])
        return sum(value.flatten(1).square().sum(1) for value in by_name.values()).sqrt()

    return setup.compiled(norms)
