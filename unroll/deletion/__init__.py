"""Serving deletion requests: exact unlearning, guarantees, and a record that can be checked.

Exact: `sharding` and `sisa`. Approximate: `pipeline` with the parts of its four steps. Guarantees:
`certified` for linear models, `noisy` for networks. Requests that go on arriving: `server` with
`requests`, `journal`, `services` and `policies`; `streams` and `queueing` try it out. The record:
`ledger` with `entry`, `merkle` and `evidence`; what must go from a store: `lineage` and `purge`.
"""

from unroll.deletion.certified import FrozenFeatures, MustRetrain, train_certified, unit_rows
from unroll.deletion.costs import slice_epochs
from unroll.deletion.entry import Entry
from unroll.deletion.evidence import deletion_entry, re_execute, run_entry
from unroll.deletion.evidence_sisa import re_execute_sisa, sisa_entry, sisa_run_entry
from unroll.deletion.journal import Journal
from unroll.deletion.keys import create_keys
from unroll.deletion.ledger import Ledger
from unroll.deletion.lineage import record_run, record_training
from unroll.deletion.lineage_sisa import purge_removed, record_sisa
from unroll.deletion.merkle import commit, prove_absence, prove_presence, verify
from unroll.deletion.noisy import NoisySteps, noisy_fine_tune
from unroll.deletion.pipeline import Pipeline
from unroll.deletion.policies import make_policy
from unroll.deletion.purge import check_purged, purge
from unroll.deletion.queueing import Queue, queue
from unroll.deletion.requests import Request
from unroll.deletion.server import Server, SignedLog
from unroll.deletion.services import SingleModel, SisaService
from unroll.deletion.sharding import Assignment, aware_assignment, random_assignment
from unroll.deletion.sisa import Sisa, SisaPlan, train_sisa
from unroll.deletion.streams import Stream, make_stream

__all__ = [
    "Assignment",
    "Entry",
    "FrozenFeatures",
    "Journal",
    "Ledger",
    "MustRetrain",
    "NoisySteps",
    "Pipeline",
    "Queue",
    "Request",
    "Server",
    "SignedLog",
    "SingleModel",
    "Sisa",
    "SisaPlan",
    "SisaService",
    "Stream",
    "aware_assignment",
    "check_purged",
    "commit",
    "create_keys",
    "deletion_entry",
    "make_policy",
    "make_stream",
    "noisy_fine_tune",
    "prove_absence",
    "prove_presence",
    "purge",
    "purge_removed",
    "queue",
    "random_assignment",
    "re_execute",
    "re_execute_sisa",
    "record_run",
    "record_sisa",
    "record_training",
    "run_entry",
    "sisa_entry",
    "sisa_run_entry",
    "slice_epochs",
    "train_certified",
    "train_sisa",
    "unit_rows",
    "verify",
]
