"""Serves a stream of deletion requests; killed at any moment, the same command goes on.

  python experiments/serve_deletions.py --config=configs/deletion/serve_digits_sisa.py
  python experiments/serve_deletions.py --config=configs/deletion/serve_digits_sisa.py:smoke
  python experiments/serve_deletions.py --config=configs/deletion/serve_digits_sisa.py \\
    --config.requests=path/to/requests.jsonl --config.policy="batches(size=8, longest_wait=60.0)"

Without `requests` a stream is drawn, and its lines are written to the workdir before they are
served. A last line without its end is not served. Lines may be added to the file of requests later;
the same command then serves them.

Results go to the workdir: config.json, requests.jsonl, journal.jsonl, report.md, report.json and
requests.png; with `key_folder` also ledger/. Models lie in the store.
"""

import copy
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import from_config
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll import tree
from unroll.checks import whole_number
from unroll.data.schedule import make_schedule
from unroll.deletion import keys
from unroll.deletion.aggregation import aggregate
from unroll.deletion.costs import expected_request
from unroll.deletion.journal import Journal
from unroll.deletion.policies import Policy, make_policy
from unroll.deletion.requests import Register, append_line, cut_half_line, read_lines
from unroll.deletion.server import Server, SignedLog, describe_server, replay
from unroll.deletion.services import (
    Service,
    SingleModel,
    SisaService,
    approximate_method,
    describe_single,
    describe_sisa,
)
from unroll.deletion.sisa import WIDTH, train_sisa
from unroll.deletion.streams import Stream, make_stream
from unroll.errors import InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.work import Work, training
from unroll.report.serving import Served, write_serving

MODES = ("auto", "sequential", "batched")
# Where these lie is no part of what is served: lines are known by their hashes, keys by what they
# sign.
_PLACES = ("requests", "key_folder", "request_key")


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """All that is served with, checked, before anything is trained.

    Attributes:
      train: the training set.
      test: the test set.
      policy: when deletions are applied.
      key: of the macs, or none.
      make: `(deleted ids, store) -> service`; trains, or reads from the store.
      stream: where requests are drawn; `None` where they are in a file.
      work: what one application costs at most, for the estimate.
      descriptions: one of these is the service's own.
    """

    train: unroll.data.Dataset
    test: unroll.data.Dataset
    policy: Policy
    key: bytes | None
    make: Callable[[Any, unroll.Store | None], Service]
    stream: Stream | None
    work: Work
    descriptions: list[dict[str, Any]]


def run(config, workdir, store):
    """Serves what is not served yet, and returns the path of the report."""
    setting = build_setting(config)
    given = Path(config.requests) if config.requests else None
    total = setting.stream.length if given is None else _count(given)
    launch.announce([dataclasses.replace(setting.work, count=1 + total, at_most=True)])
    workdirs.prepare(workdir, _without_places(config))
    path = given or workdir / "requests.jsonl"
    with Journal.open(workdir / "journal.jsonl") as journal:
        compare(journal, setting)
        if given is None:
            cut_half_line(path)
        with path.open("rb") as file:
            lines = read_lines(file)
            journal.verify_lines(lines)
            server = _server(config, setting, workdir, store, journal)
            _serve(server, lines, setting, path, total)
        scratch = _scratch_hash(config, setting, server)
        records, model = journal.records, server.service.hash
    served = Served(
        name=f"{setting.train.name}, {config.model}, {config.service}",
        policy=str(setting.policy),
        requests=config.requests or config.stream,
        examples=len(setting.train),
        epochs=config.epochs,
        gradient_seconds=config.gradient_seconds,
        model=model,
        scratch=scratch,
    )
    return write_serving(records, served, workdir, config.experiment)


def compare(journal: Journal, setting: Setting) -> None:
    """Whether a journal is of another server, before anything is trained or read.

    Raises:
      InputError: if it is.
    """
    rest = setting.policy, setting.test, setting.key
    possible = [describe_server(each, *rest) for each in setting.descriptions]
    if journal.records and journal.records[0]["serves"] not in possible:
        journal.begin(possible[0])  # says what differs


def _count(path: Path) -> int:
    try:
        with path.open("rb") as file:
            count = sum(1 for _ in read_lines(file))
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    print(f"the last line of {path} has no end and is not served", file=sys.stderr)
    except OSError as error:
        raise InputError(f"cannot read the requests {path} ({error.strerror})") from None
    return count


def _without_places(config):
    shown = copy.deepcopy(config)
    for name in _PLACES:
        shown[name] = "given" if config[name] else ""
    return shown


def build_setting(config) -> Setting:
    train, test, _ = from_config.load_data(config)
    whole_number("drift_every", config.drift_every, least=0)
    if not 0 <= config.gradient_seconds < math.inf:
        raise InputError(f"gradient_seconds={config.gradient_seconds} must be finite, 0 or more")
    if len(config.train_seeds) != 1:
        raise InputError("one model is served; give one seed in train_seeds")
    kinds = {"sisa": _sisa, "single": _single}
    if config.service not in kinds:
        raise InputError(f"unknown service {config.service!r}; choose one of {sorted(kinds)}")
    policy, key = make_policy(config.policy), _request_key(config.request_key)
    assignment, rest = kinds[config.service](config, train, policy)
    stream = None
    if not config.requests:
        sizes = dict(examples=len(train), test_examples=len(test), seed=config.stream_seed)
        options = dict(assignment=assignment, train=train, key=key)
        stream = make_stream(config.stream, **sizes, **options)
    return Setting(train=train, test=test, policy=policy, key=key, stream=stream, **rest)


def _request_key(path: str) -> bytes | None:
    if not path:
        return None
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise InputError(f"cannot read the request key {path} ({error.strerror})") from None
    if len(key) < 16:
        raise InputError(f"the request key {path} has {len(key)} bytes; give 16 or more")
    return key


def _sisa(config, train, policy):
    """The assignment, and the fields of a setting for a SISA system."""
    if policy.method is not None:
        raise InputError("a SISA system deletes exactly; choose immediately or batches")
    aggregate(np.zeros((1, 1, 2)), config.aggregation)
    if config.mode not in MODES:
        raise InputError(f"unknown mode {config.mode!r}; choose one of {MODES}")
    (seed,) = config.train_seeds
    plan = from_config.build_sisa_plan(config, train, config.shards, config.slices, seed)

    def make(deleted, store):
        sisa = train_sisa(plan, removed=deleted, store=store, mode=config.mode)
        return SisaService(sisa, config.aggregation)

    schedule = make_schedule(seed, len(train), config.batch_size, config.epochs)
    share = expected_request(plan.assignment, plan.epochs) / (config.epochs * len(train))
    work = dataclasses.replace(training(plan.spec, train, schedule), multiple=share)
    # Which mode `auto` is shows when it is trained.
    modes = MODES[1:] if config.mode == "auto" else (config.mode,)
    width = min(config.shards, WIDTH)
    kinds = [describe_sisa(plan, mode, width, config.aggregation) for mode in modes]
    return plan.assignment, dict(make=make, work=work, descriptions=kinds)


def _single(config, train, policy):
    """No assignment, and the fields of a setting for a single model."""
    if policy.method is not None:
        approximate_method(policy.method)
    (seed,) = config.train_seeds
    schedule = make_schedule(seed, len(train), config.batch_size, config.epochs)
    spec = from_config.build_spec(config, train, len(schedule))
    record = unroll.Record(every=config.record_every)

    def make(deleted, store):
        weights = np.ones(len(train), np.float32)
        weights[deleted] = 0.0
        options = dict(seed=seed, weights=weights, store=store, record=record)
        return SingleModel(unroll.train(spec, train, schedule, **options), record, store)

    work, kind = training(spec, train, schedule), (spec, train, schedule, seed)
    descriptions = [describe_single(*kind, record=record)]
    return None, dict(make=make, work=work, descriptions=descriptions)


def _server(config, setting: Setting, workdir: Path, store, journal: Journal) -> Server:
    register = Register(len(setting.train), len(setting.test))
    replay(register, journal)
    log = None
    if config.key_folder:
        folder = Path(config.key_folder)
        if not folder.exists():
            keys.create_keys(folder)
        log = SignedLog(workdir / "ledger", folder)
    with ProgressDisplay().task("model") as report:
        report(0, 1)
        service = setting.make(sorted(register.deleted), store)
        report(1, 1)
    return Server(
        service,
        journal,
        setting.policy,
        test=setting.test,
        key=setting.key,
        log=log,
        measure=_measure(config, setting, journal),
        purge=config.purge,
    )


def _measure(config, setting: Setting, journal: Journal):
    """Test accuracy after every application, and now and then the drift of an approximation."""
    applied = [each for each in journal.records if each["record"] == "applied"]
    approximations = itertools.count(1 + sum(each["how"] == "approximate" for each in applied))

    def measure(service: Service, how: str) -> dict[str, float]:
        found = service.predict(setting.test).argmax(axis=-1) == setting.test.labels
        numbers = {"test_accuracy": float(found.mean())}
        due = how == "approximate" and config.drift_every
        if due and next(approximations) % config.drift_every == 0:
            exact, _ = service.without([])
            last = service.run.state.params
            if tree.distance(last, exact.params):  # else there is nothing to compare with
                error = unroll.relative_verification_error(service.params, exact.params, last)
                numbers["drift"] = error
        return numbers

    return measure


def _serve(server: Server, lines, setting: Setting, path: Path, total: int) -> None:
    """Submits what is left of the lines, and draws the others where there is a stream."""
    served = server.journal.lines
    with ProgressDisplay().task("requests") as report:
        while True:
            line = next(lines, None)
            if line is None and setting.stream is not None:
                line = setting.stream.line(served, server.service, server.waiting)
                if line is not None:
                    append_line(path, line)
            if line is None:
                break
            server.submit(line)
            served += 1
            report(served, max(total, served))
    server.finish()


def _scratch_hash(config, setting: Setting, server: Server) -> str | None:
    """Hash of the model that is trained from scratch on what remains, without a store."""
    if not config.check_scratch:
        return None
    with ProgressDisplay().task("from scratch") as report:
        report(0, 1)
        found = setting.make(sorted(server.register.deleted), None).hash
        report(1, 1)
    return found


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
