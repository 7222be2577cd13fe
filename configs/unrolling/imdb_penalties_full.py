"""Weight decay against SD on all of IMDB with the settings of Unrolling SGD (E).

python experiments/penalties.py --config=configs/unrolling/imdb_penalties_full.py

Written for a GPU and a data folder with all of IMDB. Not run here: neither numbers nor minutes are
known. From the paper's code: a linear head, plain SGD at 2e-5, batches of 8, 200 epochs, and the
strengths of both penalties. Its features, pooled by a language model, were never published; hashed
words of about their length stand in for them, and `--config.variants` with
`npz(path='features.npz')` takes others. `imdb_penalties.py` is the small version,
with measured numbers.
"""

import ml_collections
from default_config import default_config

STRENGTHS = {
    "sd_gamma": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0),
    "l2": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = default_config("unrolling/imdb_penalties_full", variant)
    smoke = variant == "smoke"
    config.shadow_dataset = ""
    config.objective.sd_norm = "reference"
    config.epochs = 1 if smoke else 200
    config.batch_size = 8
    config.optimizer.learning_rate = 2e-5
    config.fine_tuning_epochs = 1
    config.fine_tuning_rate = 2e-5
    config.fine_tuning_batch_size = 8
    config.curvature_examples = 32 if smoke else 1024
    config.curvature_chunk = 32 if smoke else 256
    config.proxies = True
    config.keep_runs = True
    config.methods = ("single_gradient", "taylor(order=1)")
    config.axes = ()
    for field in ("method_seeds", "independents", "record_every"):
        del config[field]
    if smoke:
        config.dataset = "digits(num_train=128, num_test=50)"
        config.model = "linear()"
        config.variants = ((), (("objective.l2", 0.1),))
        return config
    penalties = [
        ((f"objective.{field}", strength),)
        for field, strengths in STRENGTHS.items()
        for strength in strengths
    ]
    tokens = "encoding='hashing', vocabulary_size=20000, length=400"
    recipes = (
        (("dataset", "text_features(size=4096, scale=16.0)"), ("model", "linear()")),
        (
            ("dataset", f"imdb_reviews({tokens})"),
            ("model", "text(vocabulary_size=20000, embedding=64, encoder='bag')"),
            # Embeddings of single words move little at a rate meant for long feature vectors.
            ("optimizer.learning_rate", 1.0),
            ("epochs", 20),
            ("batch_size", 32),
            ("fine_tuning_rate", 0.02),
            ("fine_tuning_batch_size", 32),
        ),
    )
    config.variants = tuple(
        (*recipe, *penalty) for recipe in recipes for penalty in ((), *penalties)
    )
    return config
