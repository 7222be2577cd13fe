"""Verifies a ledger of deletions: its chain, and every exact deletion by training it again.

python experiments/verify_deletion.py --config=configs/deletion/verify_digits.py
python experiments/verify_deletion.py --config=configs/deletion/verify_digits.py \\
  --config.ledger=path/to/ledger --config.key_folder=path/to/keys --config.expected_head=<hash>

Without `ledger` it first makes one: trains, deletes the forget set in parts, and logs each step;
with `config.sisa`, for example `sisa(shards=4, slices=4)`, a SISA system's steps too.
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
from unroll.data.options import call_with_options
from unroll.deletion import evidence, keys, lineage, merkle
from unroll.deletion.evidence_sisa import SisaRecipe, re_execute_sisa, sisa_entry, sisa_run_entry
from unroll.deletion.ledger import Ledger
from unroll.deletion.lineage_sisa import record_sisa
from unroll.deletion.sisa import train_sisa
from unroll.deletion.sisa_method import plan_like
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
    count = (1 if config.ledger else 3) * (1 + config.deletions) * (2 if config.sisa else 1)
    launch.announce([training(*steps, count=count)])
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
    if config.sisa:
        _sisa_plan(study, config.sisa)
    if bool(config.ledger) != bool(config.key_folder):
        raise InputError("give both ledger and key_folder, or neither to make a ledger")


def _record(config, study, store, ledger, secrets):
    """Appends what is not in the ledger yet: each training, and a deletion for each part."""
    private, salt = keys.load_signing_key(secrets), keys.load_salt(secrets)
    logged, parts = len(ledger.entries()), np.array_split(study.forget, config.deletions)
    makers = [_single_entries] + [_sisa_entries] * bool(config.sisa)
    total = len(makers) * (1 + len(parts))
    made = (each for maker in makers for each in maker(config, study, store, parts, salt))
    with ProgressDisplay().task("record") as report:
        for number, (entry, recipe) in enumerate(made):
            if number >= logged:
                recipe.save(ledger.path.parent / "recipes", entry.recipe)
                ledger.append(entry, private)
            report(number + 1, total)


def _single_entries(config, study, store, parts, salt):
    """Entries and recipes of a run and of deletions from it."""
    current = _train(study, config, store)
    lineage.record_run(store, current)
    yield evidence.run_entry(current, salt)
    for part in parts:
        problem = unroll.Problem(current, part, store=store)
        result = unroll.unlearn(config.method, problem)
        current = _train(study, config, store, problem.twin_weights)
        lineage.record_run(store, current)
        yield evidence.deletion_entry(problem, result, config.method, salt)


def _sisa_entries(config, study, store, parts, salt):
    """Entries and recipes of a SISA system and of deletions from it."""
    current = train_sisa(_sisa_plan(study, config.sisa), store=store)
    record_sisa(store, current)
    yield sisa_run_entry(current, salt)
    for part in parts:
        before, (current, _) = current, current.delete(part)
        record_sisa(store, current)
        yield sisa_entry(before, current, part, salt)


def _sisa_plan(study, text):
    """The plan of `sisa(shards=..., slices=...)`, to be trained as the study's models are."""
    name, options = parse_call(text)
    if name != evidence.SISA:
        raise InputError(f"sisa={text!r} is not of the form sisa(shards=4, slices=4)")
    (seed,) = study.train_seeds

    def plan(shards=4, slices=4):
        return plan_like(study.spec, study.train, study.schedule(seed), seed, shards, slices)

    return call_with_options(plan, name, **options)


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
    results, entries, recipes = [], ledger.entries(), ledger.path.parent / "recipes"
    with ProgressDisplay().task("re-execute") as report:
        for done, signed in enumerate(entries, start=1):
            entry, name = signed.entry, parse_call(signed.entry.method)[0]
            row = {"index": signed.index, "method": entry.method, "time": signed.time}
            if entry.kind == "deletion" and name not in (*lineage.EXACT_METHODS, evidence.SISA):
                results.append({**row, "holds": None, "links": ["not exact: a record only"]})
                continue
            if name == evidence.SISA:
                recipe = SisaRecipe.load(recipes, entry.recipe)
                spec = _sisa_plan(study, entry.method).spec
                found = re_execute_sisa(signed, recipe, spec, study.train, salt)
            else:
                recipe = evidence.Recipe.load(recipes, entry.recipe)
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
