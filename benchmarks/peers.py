"""The same networks in PyTorch, with the same weights, and the training step of a PyTorch script.

Layers are created in the order in which the flax modules call theirs, so that the n-th convolution
here is `Conv_n` there. The flattened image is channels first here and channels last there; the rows
of the layer that follows are permuted when weights are copied, so that no time is lost on it.

PyTorch gets its better settings: the number of threads and the memory layout with which this very
work is fastest on the CPU; `torch.compile`, and the faster float32 products that jax uses by
default, on a GPU.
"""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from work import DifferentWorkError, NotHereError, Settings


def mlp(hidden: Sequence[int] = (128, 128), features: int = 64, classes: int = 10) -> nn.Module:
    """As `unroll.models.MLP`."""
    widths = [features, *hidden]
    layers = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), _gelu()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def small_cnn(
    channels: Sequence[int] = (16, 32, 32), size: int = 32, classes: int = 10
) -> nn.Module:
    """As `unroll.models.SmallCNN` on square colour images."""
    layers = []
    for block, (before, after) in enumerate(itertools.pairwise([3, *channels])):
        layers += [nn.Conv2d(before, after, 3, padding=1), _gelu()]
        if block < 2 and size >= 4:
            layers.append(nn.AvgPool2d(2))
            size //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size * size * channels[-1], classes))


def resnet(width: int, depths: Sequence[int] = (2, 2, 2, 2), classes: int = 10) -> nn.Module:
    """As `unroll.models.ResNet` with basic blocks, group normalisation and the CIFAR stem."""
    layers = [_convolution(3, width, 3), _group_norm(width), _gelu()]
    before = width
    for stage, depth in enumerate(depths):
        after = width * 2**stage
        for index in range(depth):
            layers.append(_Block(before, after, 2 if stage > 0 and index == 0 else 1))
            before = after
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(before, classes))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.activation = _gelu()
        self.body = nn.Sequential(
            _convolution(before, after, 3, stride),
            _group_norm(after),
            _gelu(),
            _convolution(after, after, 3),
            _group_norm(after),
        )
        same = stride == 1 and before == after
        self.shortcut = nn.Identity()
        if not same:
            projection = _convolution(before, after, 1, stride)
            self.shortcut = nn.Sequential(projection, _group_norm(after))

    def forward(self, x):
        return self.activation(self.body(x) + self.shortcut(x))


def _gelu() -> nn.Module:
    return nn.GELU(approximate="tanh")


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(before, after, size, stride, (size - 1) // 2, bias=False)


def _group_norm(channels: int) -> nn.Module:
    groups = max(n for n in range(1, 33) if channels % n == 0 and 2 * n <= max(channels, 2))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def parameter_count(net: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(parameter.numel() for parameter in net.parameters())


def copy_weights(params: dict, net: nn.Module) -> nn.Module:
    """Gives a PyTorch network the parameters of the flax network that it stands for.

    Raises:
      DifferentWorkError: if the two have different layers or shapes.
    """
    kinds = {nn.Conv2d: "Conv", nn.GroupNorm: "GroupNorm", nn.Linear: "Dense"}
    counts = dict.fromkeys(kinds, 0)
    modules = [module for module in net.modules() if type(module) in kinds]
    channels = None
    used = 0
    for module in modules:
        kind = type(module)
        if module is modules[-1]:
            layer = params["head"]["dense"]
        else:
            layer = params[f"{kinds[kind]}_{counts[kind]}"]
            counts[kind] += 1
        used += sum(np.size(leaf) for leaf in layer.values())
        weight = np.asarray(layer["scale" if kind is nn.GroupNorm else "kernel"])
        if kind is nn.Conv2d:
            weight, channels = weight.transpose(3, 2, 0, 1), weight.shape[3]
        elif kind is nn.Linear:
            if channels:
                rows = weight.reshape(-1, channels, weight.shape[1])
                weight = rows.transpose(1, 0, 2).reshape(weight.shape)
            weight, channels = weight.T, None
        _assign(module.weight, weight)
        if module.bias is not None:
            _assign(module.bias, np.asarray(layer["bias"]))
    if used != parameter_count(net):
        raise DifferentWorkError(f"{used} parameters against {parameter_count(net)}")
    return net


def _assign(parameter: nn.Parameter, value: np.ndarray) -> None:
    if tuple(parameter.shape) != value.shape:
        raise DifferentWorkError(f"a parameter {value.shape} against {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(value)))  # a copy, since jax's are read-only


class Setup(NamedTuple):
    """How PyTorch is set up: number of threads (CPU only), memory layout, device."""

    threads: int | None
    channels_last: bool
    device: str

    def __str__(self) -> str:
        words = [] if self.threads is None else [f"{self.threads} threads"]
        words += ["channels last"] if self.channels_last else []
        words += ["torch.compile"] if self.device == "cuda" else []
        return ", ".join(words)

    def use(self) -> None:
        """Sets what is global."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")

    def network(self, net: nn.Module) -> nn.Module:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return net.to(device=self.device, memory_format=layout)

    def inputs(self, array: np.ndarray) -> torch.Tensor:
        """Examples, channels last as this library stores them."""
        inputs = torch.from_numpy(np.array(array))
        if inputs.ndim == 4 and inputs.shape[3] == 3:
            inputs = inputs.permute(0, 3, 1, 2)  # strides of channels last
            inputs = inputs if self.channels_last else inputs.contiguous()
        return inputs.to(self.device)

    def labels(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.device)

    def compiled(self, function: Callable) -> Callable:
        """The function as a PyTorch user would run it: eager on the CPU, compiled on a GPU."""
        return torch.compile(function) if self.device == "cuda" else function

    def finish(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def setups(settings: Settings, images: bool) -> list[Setup]:
    """The setups to choose from.

    Raises:
      NotHereError: if jax computes on an accelerator that this PyTorch cannot use.
    """
    layouts = (False, True) if images else (False,)
    if settings.device == "cpu":
        threads = range(1, (os.cpu_count() or 1) + 1)
        counts = [n for n in threads if n & (n - 1) == 0 or n == threads[-1]]
        return [Setup(n, layout, "cpu") for layout in layouts for n in counts]
    if settings.device != "gpu" or not torch.cuda.is_available():
        raise NotHereError(f"this PyTorch does not compute on the {settings.device}")
    return [Setup(None, layout, "cuda") for layout in layouts]


def best_setup(
    settings: Settings, images: bool, make: Callable[[Setup], Callable[[], float]]
) -> Setup:
    """The setup with the smallest figure of a few turns; `make` makes the work of one.

    The number of threads is chosen first, then the layout with it: their product takes long.
    """
    candidates = setups(settings, images)
    seconds: dict[Setup, float] = {}

    def figure(setup: Setup) -> float:
        if setup not in seconds:
            setup.use()
            measure = make(setup)
            measure()
            seconds[setup] = min(measure() for _ in range(settings.choose(2, 1)))
        return seconds[setup]

    if settings.smoke:
        candidates = candidates[:1]
    same_layout = [setup for setup in candidates if not setup.channels_last]
    threads = min(same_layout, key=figure).threads
    best = min((setup for setup in candidates if setup.threads == threads), key=figure)
    best.use()
    return best


class Trainer:
    """Plain SGD on cross-entropy, as a PyTorch script does it, with all data on the device.

    Args:
      setup: how PyTorch is set up.
      net: the network; it is moved to the device.
      inputs: `[N, ...]`, channels last.
      labels: `[N]`.
      rate: learning rate.
    """

    def __init__(
        self, setup: Setup, net: nn.Module, inputs: np.ndarray, labels: np.ndarray, rate: float
    ):
        self.setup, self.rate = setup, rate
        self.net = setup.network(net)
        self._inputs, self._labels = setup.inputs(inputs), setup.labels(labels)
        self._loss = setup.compiled(self._batch_loss)

    def _batch_loss(self, inputs, labels):
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def batches(self, schedule: np.ndarray) -> list[tuple[torch.Tensor, float]]:
        """Ids of each step, and what part of the batch is filled: -1 marks an empty slot."""
        rows = [row[row >= 0].astype(np.int64) for row in schedule]
        ids = [torch.from_numpy(row).to(self.setup.device) for row in rows]
        return [(row, len(row) / schedule.shape[1]) for row in ids]

    def steps(
        self, batches: list[tuple[torch.Tensor, float]], keep_losses: bool = False
    ) -> list[float]:
        """Takes a step for each batch; returns the losses if they are wanted."""
        optimizer = torch.optim.SGD(self.net.parameters(), lr=self.rate)
        losses = []
        for ids, share in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self._inputs[ids], self._labels[ids])
            if share < 1:
                loss = loss * share  # the mean over all slots, the empty ones included
            loss.backward()
            optimizer.step()
            if keep_losses:
                losses.append(loss.detach())
        self.setup.finish()
        return [float(loss) for loss in losses]

    def seconds_per_step(self, batches: list[tuple[torch.Tensor, float]]) -> float:
        begin = time.perf_counter()
        self.steps(batches)
        return (time.perf_counter() - begin) / len(batches)
