"""The networks and data that the rows share: one specification here, one network in PyTorch.

Data are random numbers of the right shape, from a fixed seed: speed does not depend on them, and no
row needs a download. The digits are the real ones, which come with scikit-learn.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from work import Settings

import unroll
from unroll.training.step import initial_state
from unroll.types import TrainState


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on both sides, with data.

    Attributes:
      spec: how this library trains it.
      data: training set.
      batch: examples in a batch.
      rate: learning rate of both sides.
      network: name of its maker in `peers`, and the maker's arguments.
    """

    spec: unroll.TrainSpec
    data: unroll.data.Dataset
    batch: int
    rate: float
    network: tuple[str, dict[str, Any]]

    @property
    def images(self) -> bool:
        return self.data.example_shape[-1] == 3

    def initial(self, seed: int = 0) -> TrainState:
        """A state before training; a new one in every call, since programs may donate it."""
        return initial_state(self.spec, jax.random.key(seed), jnp.asarray(self.data.inputs[:1]))

    def peer(self, seed: int = 0, params: dict | None = None) -> Any:
        """The network in PyTorch, with the weights of `initial` or the given ones."""
        import peers

        name, arguments = self.network
        net = getattr(peers, name)(**arguments)
        return peers.copy_weights(self.initial(seed).params if params is None else params, net)

    def schedule(self, steps: int) -> np.ndarray:
        """int32 `[steps, batch]` ids, uniform, without empty slots."""
        rng = np.random.default_rng(1)
        return rng.integers(0, len(self.data), (steps, self.batch)).astype(np.int32)


def _spec(rate: float, name: str, **options: Any) -> unroll.TrainSpec:
    return unroll.TrainSpec(
        unroll.models.build(name, num_classes=10, **options),
        optimizer=unroll.optax_call("sgd", learning_rate=rate),
    )


def random_images(count: int, size: int = 32) -> unroll.data.Dataset:
    """Gaussian colour images with labels at random."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, size, size, 3)).astype(np.float32)
    return unroll.data.Dataset("random", inputs, rng.integers(0, 10, count), 10)


def mlp(settings: Settings) -> Case:
    """The digits MLP, 64-128-128-10, batch 32."""
    hidden, rate = settings.choose((128, 128), (8,)), 0.1
    data, _ = unroll.data.load("digits")
    spec = _spec(rate, "mlp", hidden=hidden)
    return Case(spec, data, 32, rate, ("mlp", {"hidden": hidden}))


def small_cnn(settings: Settings) -> Case:
    """The small CNN, channels 16-32-32, on 32x32x3, batch 64."""
    channels, size = settings.choose((16, 32, 32), (2, 4)), settings.choose(32, 8)
    data, rate = random_images(settings.choose(2048, 64), size), 0.05
    spec = _spec(rate, "cnn", channels=channels)
    peer = ("small_cnn", {"channels": channels, "size": size})
    return Case(spec, data, settings.choose(64, 8), rate, peer)


def resnet18(settings: Settings, width: int) -> Case:
    """ResNet-18 with group normalisation on 32x32x3, batch 64."""
    width, depths = settings.choose((width, (2, 2, 2, 2)), (4, (1, 1)))
    data, rate = random_images(settings.choose(512, 32), settings.choose(32, 8)), 0.01
    spec = (
        _spec(rate, "resnet18", width=width) if not settings.smoke else _tiny(rate, width, depths)
    )
    peer = ("resnet", {"width": width, "depths": depths})
    return Case(spec, data, settings.choose(64, 8), rate, peer)


def _tiny(rate: float, width: int, depths: tuple[int, ...]) -> unroll.TrainSpec:
    from unroll.models.resnet import ResNet

    model = ResNet(num_classes=10, width=width, depths=depths)
    return unroll.TrainSpec(model, optimizer=unroll.optax_call("sgd", learning_rate=rate))


CASES: dict[str, Callable[..., Case]] = {"mlp": mlp, "small_cnn": small_cnn, "resnet18": resnet18}


def make_case(settings: Settings, case: str, **arguments: Any) -> Case:
    """Makes a case by name."""
    return CASES[case](settings, **arguments)
