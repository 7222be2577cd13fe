"""Models in flax.linen: hashable modules from a batch to logits.

Every model is called as `model.apply(variables, x, train, example_keys, example_weights)`, by
keyword, and leaves out the arguments that it has no use for. `build` makes one by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from unroll.errors import InputError
from unroll.models.allcnn import AllCNN
from unroll.models.cnn import SmallCNN
from unroll.models.convolution import Conv, conv2d
from unroll.models.linear import LogisticRegression
from unroll.models.mlp import MLP
from unroll.models.resnet import RESNET18, RESNET50, ResNet
from unroll.models.text import TextClassifier
from unroll.models.vgg import VGG, VGG16, VGG19, VGG_SMALL

__all__ = [
    "MLP",
    "MODELS",
    "VGG",
    "AllCNN",
    "Conv",
    "LogisticRegression",
    "ResNet",
    "SmallCNN",
    "TextClassifier",
    "build",
    "conv2d",
    "parameter_count",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "linear": LogisticRegression,
    "mlp": MLP,
    "cnn": SmallCNN,
    "allcnn": AllCNN,
    "vgg_small": partial(VGG, stages=VGG_SMALL),
    "vgg16": partial(VGG, stages=VGG16),
    "vgg19": partial(VGG, stages=VGG19),
    "resnet18": partial(ResNet, depths=RESNET18),
    "resnet50": partial(ResNet, depths=RESNET50, bottleneck=True),
    "text": TextClassifier,
}


def build(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Makes a model by name.

    Example:
        >>> build("mlp", num_classes=10, hidden=[64, 64]).hidden
        (64, 64)

    Args:
        name: a key of `MODELS`.
        num_classes: number of logits.
        **options: attributes of the model; lists become tuples, so that the model is hashable.

    Returns:
        a linen module; two of the same arguments are equal and have equal hashes.

    Raises:
        InputError: if the name or an option is unknown, or a needed option is missing.
    """
    if name not in MODELS:
        raise InputError(f'unknown model "{name}"; choose one of {sorted(MODELS)}')
    fields = inspect.signature(MODELS[name]).parameters
    known = sorted(set(fields) - {"num_classes", "parent", "name"})
    for option in options:
        if option not in known:
            raise InputError(f'model "{name}" has no option "{option}"; choose among {known}')
    for option in known:
        if fields[option].default is inspect.Parameter.empty and option not in options:
            raise InputError(f'model "{name}" needs the option "{option}"')
    return MODELS[name](num_classes=num_classes, **{k: _frozen(v) for k, v in options.items()})


def _frozen(value: Any) -> Any:
    """Lists, also nested ones, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def parameter_count(variables: Mapping[str, Any]) -> int:
    """The number of trained numbers in a model's variables.

    Works on arrays and on what `jax.eval_shape` returns.

    Example:
        >>> parameter_count({"params": {"bias": jax.numpy.zeros(3)}})
        3

    Args:
        variables: what `init` returns, or only its "params".

    Returns:
        the total size of "params"; running averages do not count.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", variables)))
