"""IMDB reviews: a bag of embeddings forgets 1% of its training set.

Tokens are hashed, so that no vocabulary carries words of the forgotten reviews.

python experiments/unlearn.py --config=configs/imdb.py

Measured on 2 CPU cores, the subset of 5000 training and 2000 test reviews, 3 seeds, 41 seconds
(less than a minute): relative verification error 0.13 +- 0.02 (order 1), 0.030 +- 0.013 (order 2),
0.009 +- 0.006 (order 3), 1.5 +- 0.7 (single gradient), 0 exactly (replay); test accuracy 0.81.
"""

import ml_collections
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("imdb", variant)
    if variant == "smoke":
        tokens = "encoding='hashing', vocabulary_size=500, length=50"
        config.dataset = f"imdb_reviews({tokens}, num_train=200, num_test=100)"
        config.model = "text(vocabulary_size=500, embedding=16, encoder='bag')"
        config.optimizer.learning_rate = 1.0
        return config
    config.dataset = "imdb_reviews(encoding='hashing', vocabulary_size=10000, length=200)"
    config.model = "text(vocabulary_size=10000, embedding=64, encoder='bag')"
    config.optimizer.learning_rate = 1.0
    config.epochs = 20
    config.batch_size = 32
    config.methods = (*config.methods, "taylor(order=3)")
    return config
