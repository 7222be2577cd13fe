"""What the configs of the ledger share: digits, one run, requests in parts."""

import ml_collections
from default_config import default_config


def verify_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """A GELU MLP on digits that forgets 1% in 3 requests."""
    config = default_config(f"deletion/{experiment}", variant)
    smoke = variant == "smoke"
    config.dataset = "digits(num_train=200, num_test=100)" if smoke else "digits()"
    config.model = "mlp(hidden=(128, 128), activation='gelu')"
    config.epochs = 1 if smoke else 10
    config.batch_size = 32
    config.record_every = 4 if smoke else 45
    config.train_seeds = (0,)
    config.method = "replay"
    # A SISA system beside the single model, for example `sisa(shards=4, slices=4)`.
    config.sisa = ""
    config.deletions = 2 if smoke else 3
    # Folders of an existing ledger and of its keys; without them both are made in the workdir.
    config.ledger = ""
    config.key_folder = ""
    config.expected_head = ""
    return config
