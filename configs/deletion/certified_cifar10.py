"""CIFAR-10, airplane against automobile: certified removals from features of a small CNN.

python experiments/certified_removal.py --config=configs/deletion/certified_cifar10.py

The network is trained on 7500 public images of all classes, of which nobody asks to be removed; the
classifier, of 128 random features of its last layer, on the others of the two classes. Measured on
2 CPU cores, 6 minutes beside other work, epsilon 1, delta 1e-4, 3 seeds (means and 95% intervals):

    bound      l2     sigma   removals until   true residual     accuracy at   accuracy without
                              the budget ends  over its bound    the end       perturbation
    paper      0.001  1       3 +- 4           0.0027 +- 0.0015  0.89 +- 0.02  0.896
    paper      0.01   1       42 +- 5          0.0037 +- 0.0003  0.87 +- 0.01  0.864
    paper      0.01   0.3     14 +- 1          0.0038 +- 0.0004  0.86 +- 0.01  0.864
    integral   0.001  1       82 +- 9          0.09 +- 0.01      0.89 +- 0.01  0.896
    integral   0.01   1       more than 200    0.11 +- 0.01      0.87 +- 0.02  0.864
    integral   0.01   0.3     more than 200    0.11 +- 0.01      0.86 +- 0.01  0.864
"""

import ml_collections
from certified_config import certified_config
from default_config import default_config


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Variants: `` (all) and `smoke` (seconds)."""
    config = certified_config("certified_cifar10", variant)
    smoke = variant == "smoke"
    sizes = "num_train=300, num_test=100" if smoke else "num_train=15000, num_test=3000"
    config.dataset = f"cifar10({sizes})"
    config.classes = (0, 1)
    config.extractor = default_config(config.experiment, variant)
    channels = (4, 8) if smoke else (16, 32, 32)
    config.extractor.model = f"cnn(channels={channels}, activation='gelu')"
    config.extractor.optimizer.momentum = 0.9
    config.extractor.optimizer.schedule = "cosine"
    config.extractor.augment = True
    config.extractor.epochs = 1 if smoke else 12
    # 2048 features of the network would make a removal take seconds.
    config.random_features = 16 if smoke else 128
    config.public = 150 if smoke else 7500
    return config
