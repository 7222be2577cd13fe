"""What the experiments on RUM and on difficulty share, besides data, network and exact scores."""

import ml_collections
from memorization_config import proxies

# The best of 12 candidates each on the development forget set: configs/memorization/tuning_*.py.
DIGITS = {
    "finetune": "finetune(batch_size=32, epochs=4, learning_rate=0.3)",
    "neggrad_plus": "neggrad_plus(alpha=0.9, batch_size=32, epochs=2, learning_rate=0.1)",
    "random_label": "random_label(batch_size=32, epochs=4, learning_rate=0.3)",
    "salun": "salun(batch_size=32, epochs=2, fraction=0.1, learning_rate=1.0)",
}
# The best of 12 each as RUM^F. For salun these are those above, on both data sets.
DIGITS_REFINED = (
    "neggrad_plus(alpha=0.9, batch_size=32, epochs=1, learning_rate=0.1)",
    "random_label(batch_size=32, epochs=3, learning_rate=0.3)",
)
CIFAR10 = {
    "finetune": "finetune(batch_size=64, epochs=4, learning_rate=0.1)",
    "neggrad_plus": "neggrad_plus(alpha=0.8, batch_size=64, epochs=2, learning_rate=0.1)",
    "random_label": "random_label(batch_size=64, epochs=4, learning_rate=0.1)",
    "salun": "salun(batch_size=64, epochs=2, fraction=0.5, learning_rate=0.3)",
}
CIFAR10_REFINED = (
    "neggrad_plus(alpha=0.9, batch_size=64, epochs=1, learning_rate=0.1)",
    "random_label(batch_size=64, epochs=2, learning_rate=0.1)",
)


def with_variants(
    config: ml_collections.ConfigDict,
    variant: str,
    texts: dict[str, str],
    refined: tuple[str, ...] = (),
    high: str = "salun",
) -> ml_collections.ConfigDict:
    """The fields of a comparison of RUM's variants with the exact scores of a config.

    Args:
      config: data, network and exact scores.
      variant: `` or `smoke`.
      texts: tuned methods by name: finetune, neggrad_plus, salun, and further candidates.
      refined: methods that were tuned part by part, for rows `rum_f_tuned_...` besides RUM^F with
        the hyper-parameters of the vanilla method.
      high: which of them gets the high part where methods are chosen by hand, as in the paper:
        wrong labels, in the form that did best on the development set.
    """
    smoke = variant == "smoke"
    texts = untuned(config.batch_size, 1) if smoke else texts
    config = _with_groups(config, variant)
    # Every method that a part may get in `rum_auto` has its vanilla row too, but for finetune,
    # which does next to nothing to the whole set.
    config.methods = tuple(texts[name] for name in texts if name != "finetune")
    config.refined_methods = (texts["salun"],) if smoke else refined
    config.hand_chosen = ("original", texts["finetune"], texts["salun" if smoke else high])
    config.candidates = ("original", *texts.values())
    if smoke:
        config.candidates = ("original", texts["finetune"])
    config.search = "greedy"
    config.retain_policy = "nested"
    config.partition_scores = ("confidence",)
    config.shuffle_seed = 0
    config.development_seeds = (100,) if smoke else (100, 101)
    return config


def with_all_proxies(
    config: ml_collections.ConfigDict, variant: str, texts: dict[str, str], record_every: int
) -> ml_collections.ConfigDict:
    """RUM^F with random labels and parts by every proxy.

    Args:
      config: data, network and exact scores.
      variant: `` or `smoke`.
      texts: tuned methods by name.
      record_every: steps of an epoch; self-influence looks at the states after the epochs.
    """
    config = with_variants(config, variant, texts)
    text = config.methods[-1] if variant == "smoke" else texts["random_label"]
    config.methods, config.refined_methods = (text,), ()
    config.hand_chosen, config.candidates = ("original", text, text), ("original", text)
    config.partition_scores = proxies(variant)
    config.record_every = record_every
    return config


def with_levels(
    config: ml_collections.ConfigDict, variant: str, texts: dict[str, str]
) -> ml_collections.ConfigDict:
    """The fields of a difficulty study; arguments as in `with_variants`."""
    texts = untuned(config.batch_size, 1) if variant == "smoke" else texts
    config = _with_groups(config, variant)
    config.methods = (texts["finetune"],) if variant == "smoke" else tuple(texts.values())
    return config


def _with_groups(config, variant):
    smoke = variant == "smoke"
    config.scores = "exact"
    config.mid_rule = "half"
    config.tie_seed = 0
    config.train_seeds = (0, 1) if smoke else (0, 1, 2)
    config.independents = 2
    config.record_every = 1000  # first and last state: nothing here replays a run
    return config


def untuned(batch_size: int, epochs: int = 2) -> dict[str, str]:
    """Plain SGD at one rate with one budget for all."""
    shared = f"learning_rate=0.05, epochs={epochs}, batch_size={batch_size}"
    return {
        "finetune": f"finetune({shared})",
        "neggrad_plus": f"neggrad_plus(alpha=0.97, {shared})",
        "salun": f"salun(fraction=0.5, {shared})",
    }
