"""IMDB reviews: a bag of embeddings forgets 1% of its training set.

Tokens are hashed, so that no vocabulary carries words of the forgotten reviews.

python experiments/unlearn.py --config=configs/imdb.py
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = ml_collections.ConfigDict()
    config.experiment = "imdb"
    config.dataset = "imdb_reviews(encoding='hashing', vocabulary_size=10000, length=200)"
    config.corruption = "none"
    config.forget = "random(fraction=0.01, seed=0)"
    config.model = "text(vocabulary_size=10000, embedding=64, encoder='bag')"
    config.objective = ml_collections.ConfigDict(
        dict(loss="cross_entropy", sd_gamma=0.0, sd_norm="population", l2=0.0)
    )
    config.optimizer = ml_collections.ConfigDict(
        dict(name="sgd", learning_rate=1.0, momentum=0.0, schedule="constant")
    )
    config.denominator = "batch"
    config.augment = False
    config.epochs = 20
    config.batch_size = 32
    config.partial = "pad"
    config.record_every = 157
    config.methods = (
        "replay",
        "single_gradient",
        "gradient_ascent",
        "finetune",
        "taylor(order=1)",
        "taylor(order=2)",
        "taylor(order=3)",
    )
    config.train_seeds = (0, 1, 2)
    config.method_seeds = (0,)
    config.independents = 3
    if variant == "smoke":
        config.dataset = (
            "imdb_reviews(encoding='hashing', vocabulary_size=500, length=50, "
            "num_train=200, num_test=100)"
        )
        config.model = "text(vocabulary_size=500, embedding=16, encoder='bag')"
        config.epochs = 1
        config.batch_size = 32
        config.record_every = 4
        config.train_seeds = (0, 1)
        config.independents = 2
        config.methods = ("replay", "taylor(order=1)")
    elif variant:
        raise ValueError(f"unknown variant {variant!r}; use configs/imdb.py or imdb.py:smoke")
    return config
