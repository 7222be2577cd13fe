"""What the experiments on memorization share: data, models, training, and the exact scores."""

import ml_collections
from default_config import default_config
from from_config import build_spec

from unroll.memorization.subsets import SubsetRecipe


def digits_scores_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """Exact scores of the digits: 400 MLPs on 70% of the training set each."""
    config = _scores_config(experiment, variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=100, num_test=50)" if smoke else "digits()"
    config.model = "mlp(hidden=(128, 128), activation='gelu')"
    config.epochs = 2 if smoke else 20
    config.batch_size = 32
    config.models = 24 if smoke else 400
    return config


def cifar10_scores_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """Exact scores of a CIFAR-10 subset with a small CNN."""
    config = _scores_config(experiment, variant)
    smoke = variant == "smoke"
    sizes = "num_train=100, num_test=50" if smoke else "num_train=4000, num_test=1000"
    config.dataset = f"cifar10({sizes})"
    channels = (4, 8) if smoke else (16, 32, 32)
    config.model = f"cnn(channels={channels}, activation='gelu')"
    config.optimizer.learning_rate = 0.06
    config.optimizer.schedule = "cosine"
    config.epochs = 1 if smoke else 12
    config.batch_size = 64
    config.models = 24 if smoke else 240
    config.group_size = 8 if smoke else 20
    return config


def full_scores_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """The size of the papers: ResNet-18 on all of CIFAR-10, 400 models on 70% of it.

    Training is that of arXiv 2406.01257, for the exact scores too, which there have a recipe of
    their own. GroupNorm and GELU stand where it has batch normalisation and ReLU.
    """
    config = _scores_config(experiment, variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=100, num_test=50)" if smoke else "cifar10()"
    config.model = "mlp(hidden=(16,))" if smoke else "resnet18"
    config.objective.l2 = 5e-4
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.epochs = 2 if smoke else 30
    config.batch_size = 32 if smoke else 256
    config.models = 24 if smoke else 400
    config.group_size = 8
    return config


def _scores_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    config = default_config(f"memorization/{experiment}", variant)
    config.optimizer.momentum = 0.9
    config.share = 0.7
    config.seed = 0
    config.group_size = 8 if variant == "smoke" else 64
    config.measure = "accuracy"
    return config


def subset_recipe(config: ml_collections.ConfigDict, train) -> SubsetRecipe:
    """The models of the exact scores; rates that fall along a run follow that of a subset."""

    def recipe(steps):
        return SubsetRecipe(
            build_spec(config, train, steps),
            train,
            config.models,
            config.epochs,
            config.batch_size,
            config.share,
            config.seed,
            config.group_size,
        )

    return recipe(recipe(1).steps)


def with_proxies(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """The fields of a comparison of proxies with the exact scores of a config."""
    smoke = variant == "smoke"
    config.proxies = proxies(variant)
    config.augmentations = (False,)
    config.record_epochs = 1
    config.top_shares = (0.05, 0.1)
    config.train_seeds = (0, 1) if smoke else (0, 1, 2)
    return config


def proxies(variant: str) -> tuple[str, ...]:
    """All proxies, as a comparison asks for them."""
    smoke = variant == "smoke"
    early = "(epochs=1, seeds=2)" if smoke else "(epochs=2, seeds=5)"
    return (
        "confidence",
        "max_confidence",
        "entropy",
        "binary_accuracy",
        "forgetting_events",
        f"el2n{early}",
        f"grand{early}",
        "holdout_retraining" + ("(epochs=1)" if smoke else "(epochs=5)"),
        "loss_curvature",
        "self_influence",
    )
