"""What the configs of served deletion requests share."""

import ml_collections
from default_config import default_config


def serving_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """A model, a stream of requests, a policy, and what is kept and measured."""
    config = default_config(f"deletion/{experiment}", variant)
    smoke = variant == "smoke"
    config.optimizer.momentum = 0.9
    config.optimizer.schedule = "cosine"
    # `sisa` or `single`; shards to mode are of a SISA system.
    config.service = "sisa"
    config.shards = 2 if smoke else 4
    config.slices = 2 if smoke else 4
    config.class_balance = True
    config.aggregation = "vote"
    config.mode = "auto"
    config.train_seeds = (0,)
    # States of single runs that approximate methods need; 0 keeps the ends alone.
    config.record_every = 0
    # A file of requests, or a stream that is drawn; see `deletion.requests` and `streams`.
    config.requests = ""
    config.stream = "mixed(requests=12, rate=1.0)" if smoke else "mixed(requests=500, rate=0.5)"
    config.stream_seed = 0
    config.policy = "immediately"
    # A file with the secret of the macs that requests must carry; without one none is looked at.
    config.request_key = ""
    # Keys of a ledger in the workdir, made where there are none; without a folder there is none.
    config.key_folder = ""
    config.purge = False
    # The distance of every so manieth approximation from the exact model; 0 measures none.
    config.drift_every = 0
    # Seconds of a gradient in the queue; 0 takes the measured seconds of each application.
    config.gradient_seconds = 0.0
    # Trains on what remains at the end and compares the bits.
    config.check_scratch = True
    return config


def serve_digits(
    config: ml_collections.ConfigDict, smoke: bool, epochs: int = 20, batch_size: int = 16
) -> None:
    """Makes it an MLP on digits."""
    config.dataset = "digits(num_train=128, num_test=50)" if smoke else "digits()"
    config.model = "mlp(hidden=(16,))" if smoke else "mlp(hidden=(128, 128), activation='gelu')"
    config.epochs = 3 if smoke else epochs
    config.batch_size = batch_size


def serve_cifar10(config: ml_collections.ConfigDict, smoke: bool) -> None:
    """Makes it a small CNN on a subset of CIFAR-10."""
    sizes = "num_train=128, num_test=50" if smoke else "num_train=4000, num_test=1000"
    config.dataset = f"cifar10({sizes})"
    config.model = f"cnn(channels={(4, 8) if smoke else (16, 32, 32)}, activation='gelu')"
    config.optimizer.learning_rate = 0.06
    config.epochs = 3 if smoke else 10
    config.batch_size = 32
