"""What the sweeps of hyper-parameters share, besides data, network and exact scores."""

import ml_collections

# Plain SGD; the originals are trained at 0.05 with momentum 0.9, as far as 0.5 without.
RATES = ("learning_rate", (0.01, 0.03, 0.1, 0.3))
ASCENT_RATES = ("learning_rate", (0.003, 0.01, 0.03, 0.1))
# Wrong labels are few, and a mask leaves little of a step.
RELABELLING_RATES = ("learning_rate", (0.03, 0.1, 0.3, 1.0))
# SCRUB's divergence is multiplied by 16, the square of its temperature; at 1 it diverged.
SCRUB_RATES = ("learning_rate", (0.01, 0.02, 0.05, 0.1))


def with_sweep(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """The fields of a sweep: 12 candidates for each of 8 methods and of 3 as RUM^F.

    The forget set is RUM's development set.
    """
    batch = ("batch_size", (config.batch_size,))
    epochs, two = ("epochs", (1, 2, 4)), ("epochs", (2,))
    config.scores = "exact"
    config.mid_rule = "half"
    config.tie_seed = 0
    config.test_forget = ""
    config.independents = 2
    config.record_every = 1000  # first and last state: nothing here replays a run
    config.train_seeds = (100, 101, 102)
    config.criterion = "tow"
    config.most_cost = 0.5
    config.budget = 12
    # Three passes where the others have one, within the same cost.
    alphas, fractions = ("alpha", (0.8, 0.9, 0.97)), ("fraction", (0.1, 0.3, 0.5))
    config.refined = (
        ("neggrad_plus", (RATES, alphas, ("epochs", (1,)), batch)),
        ("random_label", (RELABELLING_RATES, ("epochs", (1, 2, 3)), batch)),
        ("salun", (RELABELLING_RATES, fractions, two, batch)),
    )
    config.grids = (
        ("finetune", (RATES, epochs, batch)),
        ("l1_sparse", (RATES, ("alpha", (1e-4, 1e-3, 1e-2)), two, batch)),
        ("gradient_ascent", (ASCENT_RATES, epochs, batch)),
        ("neggrad_plus", (RATES, alphas, two, batch)),
        ("random_label", (RELABELLING_RATES, epochs, batch)),
        ("salun", (RELABELLING_RATES, fractions, two, batch)),
        (
            "scrub",
            (
                SCRUB_RATES,
                ("maximisation_epochs", (2, 3, 4)),
                ("epochs", (4,)),
                batch,
                ("forget_batch_size", (config.batch_size,)),
            ),
        ),
        (
            "influence",
            (
                ("scale", (0.3, 1.0, 3.0, 10.0)),
                ("damping", (0.001, 0.01, 0.1)),
                ("examples", (200,)),
                ("iterations", (10,)),
            ),
        ),
    )
    if variant == "smoke":
        config.train_seeds = (100, 101)
        config.most_cost = 4.0
        config.budget = 2
        rates = ("learning_rate", (1e-2, 1e-1))
        finetune = "finetune", (rates, ("epochs", (1,)), batch)
        config.refined = (finetune,)
        config.grids = (
            finetune,
            ("scrub", (rates, two, batch)),
            ("influence", (("scale", (1.0, 1e30)), ("examples", (50,)), ("iterations", (3,)))),
        )
    return config
