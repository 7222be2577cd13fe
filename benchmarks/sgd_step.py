"""One SGD step, gather of the batch included: unroll inside its loop against PyTorch eager.

  pip install -e ".[peers]"
  python benchmarks/sgd_step.py

Both sides train the same network on the same data at the same batch size, turn about, in one
process run; the table gives medians and ranges over the repetitions and the ratio of the medians
(above 1: unroll is faster). PyTorch is given its best number of threads and, for the convolutions,
its better memory layout. Compilation is not counted on either side.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import unroll
from unroll.training import loop
from unroll.training.step import initial_state


def mlp_case():
    """Digits-sized MLP, 64-128-128-10, batch 32."""
    data = np.random.default_rng(0).normal(size=(1437, 8, 8, 1)).astype(np.float32)
    net = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 128),
        torch.nn.GELU(approximate="tanh"),
        torch.nn.Linear(128, 128),
        torch.nn.GELU(approximate="tanh"),
        torch.nn.Linear(128, 10),
    )
    return "MLP 64-128-128-10, batch 32", data, 32, ("mlp", {"hidden": (128, 128)}), net, 400


def cnn_case():
    """Small CNN, 16-32-32 channels on 32x32x3, batch 64."""
    data = np.random.default_rng(0).normal(size=(2048, 32, 32, 3)).astype(np.float32)

    def gelu():
        return torch.nn.GELU(approximate="tanh")

    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        gelu(),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        gelu(),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(32, 32, 3, padding=1),
        gelu(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 8 * 32, 10),
    )
    return "CNN 16-32-32, 32x32x3, batch 64", data, 64, ("cnn", {}), net, 40


def unroll_steps(data, labels, batch, model, steps):
    """A function that takes `steps` steps and returns seconds per step."""
    name, options = model
    spec = unroll.TrainSpec(unroll.models.build(name, num_classes=10, **options))
    dataset = unroll.data.Dataset("random", data, labels, 10)
    schedule = jnp.asarray(np.random.default_rng(1).integers(0, len(data), (steps, batch)), "int32")
    examples, weights = loop.device_examples(dataset), jnp.ones(len(data))
    key = jax.random.key(0)
    parameters = unroll.models.parameter_count(
        {"params": initial_state(spec, key, data[:1]).params}
    )

    def measure():
        state = initial_state(spec, key, data[:1])
        losses = jnp.zeros(steps)
        jax.block_until_ready(state)
        begin = time.perf_counter()
        result = loop.advance(spec, state, losses, examples, weights, key, schedule, 0, steps)
        jax.block_until_ready(result)
        return (time.perf_counter() - begin) / steps

    measure()
    return measure, parameters


def torch_steps(data, labels, batch, net, steps, channels_last):
    """The same in PyTorch: gather, forward, backward, SGD step."""
    inputs = torch.from_numpy(data)
    if channels_last:
        inputs = inputs.permute(0, 3, 1, 2)  # NHWC in memory, as PyTorch's channels_last wants it
        net = net.to(memory_format=torch.channels_last)
    elif inputs.shape[-1] == 3:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels.astype(np.int64))
    schedule = torch.randint(0, len(data), (steps, batch))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    criterion = torch.nn.CrossEntropyLoss()

    def measure():
        begin = time.perf_counter()
        for ids in schedule:
            optimizer.zero_grad(set_to_none=True)
            criterion(net(inputs[ids]), targets[ids]).backward()
            optimizer.step()
        return (time.perf_counter() - begin) / steps

    return measure


def best_torch_setting(data, labels, batch, net, steps):
    """Threads and memory layout with the smallest time per step."""
    timings = {}
    for threads in range(1, os.cpu_count() + 1):
        for channels_last in (False, True) if data.shape[-1] == 3 else (False,):
            torch.set_num_threads(threads)
            measure = torch_steps(data, labels, batch, net, steps, channels_last)
            measure()
            timings[threads, channels_last] = min(measure() for _ in range(3))
    return min(timings, key=timings.get)


def compare(case, repetitions):
    """Row of the table: name, both sides' milliseconds, ratio."""
    name, data, batch, model, net, steps = case()
    labels = np.random.default_rng(2).integers(0, 10, len(data)).astype(np.int32)
    threads, channels_last = best_torch_setting(data, labels, batch, net, steps)
    torch.set_num_threads(threads)
    theirs = torch_steps(data, labels, batch, net, steps, channels_last)
    ours, parameters = unroll_steps(data, labels, batch, model, steps)
    if parameters != sum(p.numel() for p in net.parameters()):
        raise ValueError(f"{name}: the two networks differ in size")
    theirs()
    pairs = [(ours(), theirs()) for _ in range(repetitions)]
    ours_ms, theirs_ms = ([1e3 * seconds for seconds in side] for side in zip(*pairs, strict=True))
    ratio = statistics.median(theirs_ms) / statistics.median(ours_ms)
    layout = ", channels last" if channels_last else ""
    return (
        name,
        spread(ours_ms),
        f"{spread(theirs_ms)} ({threads} threads{layout})",
        f"{ratio:.2f}",
    )


def spread(values):
    """Median with the range."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    title = f"SGD step, ms; jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0]}"
    table = Table(title=title)
    for column in ("work", "unroll, ms", "PyTorch, ms", "ratio"):
        table.add_column(column, no_wrap=True)
    for case in (mlp_case, cnn_case):
        table.add_row(*compare(case, repetitions))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
