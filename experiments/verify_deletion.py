"""Verifies a ledger of deletions: its chain, and every exact deletion by training it again.

python experiments/verify_deletion.py --config=configs/deletion/verify_digits.py
python experiments/verify_deletion.py --config=configs/deletion/verify_digits.py \\
  --config.ledger=path/to/ledger --config.key_folder=path/to/keys --config.expected_head=<hash>

Without `ledger` it first makes one: trains, deletes the forget set in parts, and logs each step.
Results go to the workdir: config.json, verification.json, verification.md, and then also ledger/
and keys/. A killed record goes on; the verification starts again, since it trusts nothing stored.
"""

import dataclasses
import json
from pathlib import Path

import from_config
import launch
import numpy as np
import workdir as workdirs
from absl import flags

import unroll
from unroll.calls import parse_call
from unroll.checks import whole_number
from unroll.deletion import evidence, keys, lineage, merkle
from unroll.deletion.ledger import Ledger
from unroll.errors import InputError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.work import training


def run(config, workdir, store):
    """Makes a ledger if none is given, verifies it, and returns the path of the report."""
    study = from_config.build_study(config)
    _check(config, study)
    folder = Path(config.ledger or workdir / "ledger")
    secrets = Path(config.key_folder or workdir / "keys")
    if config.ledger:
        ledger = Ledger.open(folder / "ledger.jsonl", keys.load_verifying_key(secrets))
        if not ledger.path.exists():
            raise InputError(f"there is no ledger {ledger.path}; leave `ledger` out to make one")
    steps = study.spec, study.train, study.schedule(config.train_seeds[0])
    launch.announce([training(*steps, count=(1 if config.ledger else 3) * (1 + config.deletions))])
    workdirs.prepare(workdir, config)
    if not config.ledger:
        if not secrets.exists():
            keys.create_keys(secrets)
        ledger = Ledger.open(folder / "ledger.jsonl", keys.load_verifying_key(secrets))
        _record(config, study, store, ledger, secrets)
    salt = keys.load_salt(secrets)
    problems = ledger.verify(expected_head=config.expected_head or None)
    results = [] if problems else _re_execute(study, ledger, salt)
    return _report(workdir, ledger, problems, results)


def _check(config, study):
    whole_number("deletions", config.deletions)
    if config.deletions > len(study.forget):
        raise InputError(f"deletions={config.deletions} parts of {len(study.forget)} examples")
    if len(config.train_seeds) != 1:
        raise InputError("one run is recorded; give one seed in train_seeds")
    if parse_call(config.method)[0] not in lineage.EXACT_METHODS:
        raise InputError(f"{config.method} is not exact; choose replay or retrain")
    if bool(config.ledger) != bool(config.key_folder):
        raise InputError("give both ledger and key_folder, or neither to make a ledger")


def _record(config, study, store, ledger, secrets):
    """Appends what is not in the ledger yet: the run, and a deletion for each part."""
    private, salt = keys.load_signing_key(secrets), keys.load_salt(secrets)
    logged = len(ledger.entries())
    current = _train(study, config, store)
    parts = np.array_split(study.forget, config.deletions)
    with ProgressDisplay().task("record") as report:
        for number in range(1 + len(parts)):
            if number == 0:
                entry, recipe = evidence.run_entry(current, salt)
            else:
                problem = unroll.Problem(current, parts[number - 1], store=store)
                result = unroll.unlearn(config.method, problem)
                entry, recipe = evidence.deletion_entry(problem, result, config.method, salt)
                current = _train(study, config, store, problem.twin_weights)
            if number >= logged:
                recipe.save(ledger.path.parent / "recipes", entry.recipe)
                ledger.append(entry, private)
            lineage.record_run(store, current)
            report(number + 1, 1 + len(parts))


def _train(study, config, store, weights=None):
    (seed,) = config.train_seeds
    record = unroll.Record(every=study.record_every)
    return unroll.train(
        study.spec,
        study.train,
        study.schedule(seed),
        seed=seed,
        weights=weights,
        record=record,
        store=store,
    )


def _re_execute(study, ledger, salt):
    """One dictionary per entry: what was found, link by link."""
    results = []
    entries = ledger.entries()
    with ProgressDisplay().task("re-execute") as report:
        for done, signed in enumerate(entries, start=1):
            entry = signed.entry
            row = {"index": signed.index, "method": entry.method, "time": signed.time}
            if entry.kind == "deletion" and (
                parse_call(entry.method)[0] not in lineage.EXACT_METHODS
            ):
                results.append({**row, "holds": None, "links": ["not exact: a record only"]})
                continue
            recipe = evidence.Recipe.load(ledger.path.parent / "recipes", entry.recipe)
            found = evidence.re_execute(signed, recipe, study.spec, study.train, salt)
            proofs = evidence.prove_absences(recipe, study.train, salt) if found.holds else []
            absent = {proof.key for proof in proofs if merkle.verify(proof, entry.data_after)}
            row["absent"] = sum(key in absent for key in entry.requests)
            row["requests"] = len(entry.requests)
            results.append({**row, "holds": found.holds, "links": list(map(str, found.links))})
            report(done, len(entries))
    return results


def _report(workdir, ledger, problems, results):
    """Writes what was found; an error that names the first failure, after the report is there."""
    failed = [row for row in results if row["holds"] is False]
    value = {
        "head": None if problems else ledger.head(),
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "entries": results,
    }
    (workdir / "verification.json").write_text(json.dumps(value, indent=1), encoding="utf-8")
    lines = [f"# Verification of {ledger.path.name}", ""]
    lines += [f"- {problem}" for problem in problems] or [f"The chain holds; head {value['head']}."]
    for row in results:
        verdict = {True: "holds", False: "FAILS", None: "not verified"}[row["holds"]]
        lines += ["", f"## Entry {row['index']}: {row['method']}: {verdict}", ""]
        if row.get("requests"):
            lines.append(f"- {row['absent']} of {row['requests']} requests shown absent")
        lines += [f"- {link}" for link in row["links"]]
    path = workdir / "verification.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if problems:
        raise InputError(f"the chain of {ledger.path} fails at {problems[0]}; see {path}")
    if failed:
        reason = next(link for link in failed[0]["links"] if "FAILS" in link)
        raise InputError(f"entry {failed[0]['index']} fails at {reason}; see {path}")
    print(f"{len(results)} entries verified; publish the head {value['head']}")
    return path


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)
    launch.launch(run)
