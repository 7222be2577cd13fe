"""CIFAR-10 subset: SISA with 1, 4 and 16 shards of 1 and 4 slices, 20 deletions, small CNN.

python experiments/sisa.py --config=configs/deletion/sisa_cifar10.py

Measured on 2 CPU cores, 11 minutes beside other work, 3 seeds: exact in 18 of 18 systems. Test
accuracy after the deletions (vote) and gradients of one request, of retraining: single model 0.44
+- 0.17 and 1; 4 shards 0.49 +- 0.03 and 0.25, with 4 slices 0.469 +- 0.018 and 0.2 +- 0.2; 16
shards 0.430 +- 0.016 and 0.062, with 4 slices 0.425 +- 0.019 and 0.04 +- 0.03.
"""

import ml_collections
from sisa_config import sisa_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = sisa_config("sisa_cifar10", variant)
    smoke = variant == "smoke"
    sizes = "num_train=128, num_test=50" if smoke else "num_train=4000, num_test=1000"
    config.dataset = f"cifar10({sizes})"
    config.forget = "random(size=4, seed=0)" if smoke else "random(size=20, seed=0)"
    config.model = f"cnn(channels={(4, 8) if smoke else (16, 32, 32)}, activation='gelu')"
    config.optimizer.learning_rate = 0.06
    config.epochs = 5 if smoke else 10
    config.batch_size = 32
    config.shards = (1, 4) if smoke else (1, 4, 16)
    config.train_seeds = (0,) if smoke else (0, 1, 2)
    return config
