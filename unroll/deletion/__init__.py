"""Serving deletion requests: exact unlearning, guarantees, and a record that can be checked.

Exact: `sharding` and `sisa`. Approximate: `pipeline` with the parts of its four steps. Guarantees:
`certified` for linear models, `noisy` for networks. The record: `ledger` with `entry`, `merkle` and
`evidence`; what must go from a store: `lineage` and `purge`.
"""

from unroll.deletion.certified import FrozenFeatures, MustRetrain, train_certified, unit_rows
from unroll.deletion.costs import slice_epochs
from unroll.deletion.entry import Entry
from unroll.deletion.evidence import deletion_entry, re_execute, run_entry
from unroll.deletion.keys import create_keys
from unroll.deletion.ledger import Ledger
from unroll.deletion.lineage import record_run
from unroll.deletion.merkle import commit, prove_absence, prove_presence, verify
from unroll.deletion.noisy import NoisySteps, noisy_fine_tune
from unroll.deletion.pipeline import Pipeline
from unroll.deletion.purge import check_purged, purge
from unroll.deletion.sharding import Assignment, aware_assignment, random_assignment
from unroll.deletion.sisa import Sisa, SisaPlan, train_sisa

__all__ = [
    "Assignment",
    "Entry",
    "FrozenFeatures",
    "Ledger",
    "MustRetrain",
    "NoisySteps",
    "Pipeline",
    "Sisa",
    "SisaPlan",
    "aware_assignment",
    "check_purged",
    "commit",
    "create_keys",
    "deletion_entry",
    "noisy_fine_tune",
    "prove_absence",
    "prove_presence",
    "purge",
    "random_assignment",
    "re_execute",
    "record_run",
    "run_entry",
    "slice_epochs",
    "train_certified",
    "train_sisa",
    "unit_rows",
    "verify",
]
