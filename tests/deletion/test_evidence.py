"""From runs to entries and back: equal bits, and every kind of mismatch by its name."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from ledger_parts import at, open_ledger

import unroll
from unroll.deletion import evidence, merkle
from unroll.deletion.evidence import Recipe, deletion_entry, re_execute, run_entry
from unroll.errors import InputError

SALT = bytes(range(32))
FORGET = np.array([3, 17, 40])


@pytest.fixture(scope="module")
def deletion(recorded_run):
    """Problem, result, entry and recipe of an exact deletion."""
    problem = unroll.Problem(recorded_run, FORGET)
    result = unroll.unlearn("replay", problem)
    return problem, result, *deletion_entry(problem, result, "replay", SALT, metrics={"a": 1.0})


def again(entry, recipe, run, **changes):
    arguments = dict(recipe=recipe, spec=run.spec, dataset=run.dataset, salt=SALT)
    return re_execute(entry, **{**arguments, **changes})


def failing(verification):
    assert not verification.holds
    return [link.name for link in verification.failing]


def link(verification, name):
    return next(link for link in verification.links if link.name == name)


def erased(dataset, ids, field="inputs"):
    """The data set with rows overwritten."""
    array = getattr(dataset, field).copy()
    array[ids] = 0
    return dataclasses.replace(dataset, **{field: array})


def test_entry_names_what_determines_the_bits(deletion, recorded_run):
    problem, result, entry, recipe = deletion
    assert entry.requests == merkle.salted_ids(SALT, FORGET) and len(entry.requests) == 3
    assert entry.parameters_before != entry.parameters_after
    twin = unroll.unlearn("retrain", problem)
    assert entry.parameters_after == evidence.parameter_hash(twin.params, twin.model_state)
    assert set(entry.packages) == {"jax", "jaxlib", "flax", "optax", "numpy", "unroll"}
    assert entry.packages["jax"] == jax.__version__
    assert {"xla_flags", "device"} <= set(entry.environment)
    assert entry.dataset == recorded_run.dataset.fingerprint and entry.method == "replay"
    np.testing.assert_array_equal(np.flatnonzero(recipe.weights == 0), FORGET)


def test_logged_requests_are_shown_absent_from_the_logged_root(deletion, recorded_run):
    _, _, entry, recipe = deletion
    remaining = np.setdiff1d(np.arange(120), FORGET)
    after = merkle.commit(recorded_run.dataset, remaining, SALT)
    before = merkle.commit(recorded_run.dataset, np.arange(120), SALT)
    assert (entry.data_before, entry.data_after) == (before.root, after.root)
    proofs = evidence.prove_absences(recipe, recorded_run.dataset, SALT)
    assert sorted(proof.key for proof in proofs) == list(entry.requests)
    for absence, example in zip(proofs, FORGET, strict=True):
        assert merkle.verify(absence, entry.data_after, absence.key)
        assert not merkle.verify(absence, entry.data_before, absence.key)
        assert merkle.verify(merkle.prove_presence(before, example), entry.data_before)


def test_nothing_in_an_entry_can_be_found_by_trying_all_ids(deletion, recorded_run):
    """Hashes of one-id masks, schedules and ids without the salt are not in the log."""
    import hashlib

    from unroll import tree

    problem = unroll.Problem(recorded_run, np.array([5]))
    entry, recipe = deletion_entry(problem, unroll.unlearn("replay", problem), "replay", SALT)
    logged = str(dataclasses.asdict(entry))
    plain = [hashlib.sha256(form).hexdigest() for form in (b"5", (5).to_bytes(8, "big"))]
    plain += [recipe.hash, tree.content_hash(recipe.weights), tree.content_hash(recipe.schedule)]
    assert not [each for each in plain if each in logged]
    other = deletion_entry(problem, unroll.unlearn("replay", problem), "replay", SALT[::-1])[0]
    for name in ("requests", "weights", "schedule", "recipe", "data_before", "data_after"):
        assert getattr(entry, name) != getattr(other, name)


def test_re_execution_gives_the_same_bits(deletion, recorded_run):
    _, _, entry, recipe = deletion
    found = again(entry, recipe, recorded_run)
    assert found.holds and all(link.holds for link in found.links), found


def test_re_execution_of_a_run_with_weights_and_from_a_given_state(blobs, mlp_spec, recorded_run):
    weights = np.linspace(0.5, 2, 120)
    schedule = recorded_run.schedule[:5]
    start = recorded_run.snapshots[10]
    run = unroll.train(mlp_spec, blobs[0], schedule, seed=3, weights=weights, initial=start)
    entry, recipe = run_entry(run, SALT)
    assert (entry.kind, entry.method, entry.requests) == ("run", "train", ())
    assert again(entry, recipe, run, initial=start).holds
    assert failing(again(entry, recipe, run)) == ["initial"]
    assert failing(again(entry, recipe, run, initial=recorded_run.snapshots[5])) == ["initial"]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_erased_rows_do_not_matter(batch_norm, images, deletion, recorded_run):
    if batch_norm:  # weighted statistics, which a row of weight zero does not enter either
        spec = unroll.TrainSpec(
            unroll.models.build("cnn", num_classes=3, channels=(4,), normalization="batch")
        )
        schedule = unroll.data.make_schedule(0, 64, batch_size=16, epochs=1)
        run = unroll.train(spec, images[0], schedule)
        problem = unroll.Problem(run, np.array([1, 2]))
        result = unroll.unlearn("retrain", problem)
        entry, recipe = deletion_entry(problem, result, "retrain", SALT)
    else:
        run, (problem, _, entry, recipe) = recorded_run, deletion
    found = again(entry, recipe, run, dataset=erased(run.dataset, problem.forget))
    assert found.holds
    assert link(found, "dataset").holds is None
    assert "outside of what remains (erased rows)" in link(found, "dataset").message


@pytest.mark.parametrize("field", ["inputs", "labels"])
def test_any_changed_example_that_remains_is_found(deletion, recorded_run, field):
    _, _, entry, recipe = deletion
    dataset = recorded_run.dataset
    for example in (0, 119):
        array = getattr(dataset, field).copy()
        array[example] = (array[example] + 1) % 3
        changed = dataclasses.replace(dataset, **{field: array})
        found = again(entry, recipe, recorded_run, dataset=changed)
        assert failing(found) == ["remaining data"]
        assert "not trained again" in link(found, "parameters").message


def test_other_materials_are_named(deletion, recorded_run, blobs):
    _, _, entry, recipe = deletion
    run = recorded_run
    assert failing(again(entry, recipe, run, dataset=blobs[1])) == ["dataset"]
    spec = dataclasses.replace(run.spec, denominator="renormalise")
    assert failing(again(entry, recipe, run, spec=spec)) == ["spec"]
    wrong_salt = failing(again(entry, recipe, run, salt=SALT[::-1]))
    assert {"recipe", "requests", "schedule", "weights"} <= set(wrong_salt)


def changed_recipes(recipe):
    swapped = recipe.schedule.copy()
    swapped[2, [0, 1]] = swapped[2, [1, 0]]
    weights = recipe.weights.copy()
    weights[3] = 1e-30
    yield "schedule", dataclasses.replace(recipe, schedule=swapped)
    yield "schedule", dataclasses.replace(recipe, schedule=recipe.schedule + 10**6)
    yield "weights", dataclasses.replace(recipe, weights=weights)
    yield "requests", dataclasses.replace(recipe, forget=recipe.forget[:2])
    yield "seed", dataclasses.replace(recipe, seed=1)


def test_a_changed_recipe_is_named_by_its_part(deletion, recorded_run):
    _, _, entry, recipe = deletion
    for name, changed in changed_recipes(recipe):
        assert failing(again(entry, changed, recorded_run)) == ["recipe", name]


def test_a_deletion_whose_ids_are_still_used_is_found(deletion, recorded_run):
    """A provider that logs the request, and leaves the weights as they were."""
    _, _, entry, recipe = deletion
    kept = dataclasses.replace(recipe, weights=np.ones(120, np.float32))
    lie = dataclasses.replace(
        entry,
        weights=evidence._salted_array(SALT, "weights", kept.weights),
        recipe=merkle.salted_hash(SALT, "recipe", kept.hash.encode()),
        parameters_after=entry.parameters_before,
    )
    found = again(lie, kept, recorded_run)
    assert failing(found) == ["remaining data"]
    assert link(found, "remaining data").message == "a deleted example is still used"


def test_other_parameters_are_found(deletion, recorded_run):
    _, result, entry, recipe = deletion
    leaf = result.params["head"]["dense"]["bias"]
    other = jax.tree.map(lambda each: np.array(each), result.params)
    other["head"]["dense"]["bias"] = np.nextafter(leaf, np.float32(9))  # in the last bit
    lie = dataclasses.replace(
        entry, parameters_after=evidence.parameter_hash(other, result.model_state)
    )
    found = again(lie, recipe, recorded_run)
    assert failing(found) == ["parameters"]
    assert "may be why" not in link(found, "parameters").message
    assert evidence.check_parameters(entry, result.params, result.model_state).holds
    assert not evidence.check_parameters(entry, other, result.model_state).holds


def test_another_environment_is_a_note_and_a_possible_reason(deletion, recorded_run):
    _, _, entry, recipe = deletion
    environment = {**entry.environment, "xla_flags": "--other"}
    packages = {**entry.packages, "jax": "0.1"}
    elsewhere = dataclasses.replace(entry, environment=environment, packages=packages)
    found = again(elsewhere, recipe, recorded_run)
    assert found.holds and link(found, "environment").holds is None
    assert link(found, "environment").message == "packages, xla_flags differ, so bits may differ"
    lie = dataclasses.replace(elsewhere, parameters_after=entry.parameters_before)
    message = link(again(lie, recipe, recorded_run), "parameters").message
    assert message.endswith("environment differ, which may be why")
    code = dataclasses.replace(entry, code={"source": "other"})
    assert link(again(code, recipe, recorded_run), "code").holds is None


def test_an_approximate_deletion_is_a_record_only(deletion, recorded_run):
    problem, result, *_ = deletion
    entry, recipe = deletion_entry(problem, result, "taylor(order=1)", SALT)
    with pytest.raises(InputError, match=r"taylor\(order=1\) is not exact"):
        again(entry, recipe, recorded_run)


def test_recipes_come_back_or_are_refused_in_one_line(deletion, tmp_path):
    _, _, entry, recipe = deletion
    path = recipe.save(tmp_path / "recipes", entry.recipe)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Recipe.load(tmp_path / "recipes", entry.recipe).hash == recipe.hash
    with pytest.raises(InputError, match="there is no recipe"):
        Recipe.load(tmp_path, entry.recipe)
    content = path.read_bytes()
    for damaged in (content[:50], b"", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged .*; restore it"):
            Recipe.load(tmp_path / "recipes", entry.recipe)


def test_any_changed_byte_of_a_recipe_is_found_or_changes_no_array(deletion, tmp_path):
    """A zip file has bytes that mean nothing; those of the arrays have a checksum and our hash."""
    _, _, entry, recipe = deletion
    path = recipe.save(tmp_path, entry.recipe)
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = Recipe.load(tmp_path, entry.recipe)
        except InputError:
            continue
        assert found.hash == recipe.hash


def test_deletions_one_after_the_other_chain_by_their_parameters(deletion, recorded_run, tmp_path):
    """Through the file: append, read back, re-execute the second of two deletions."""
    problem, _, first, _ = deletion
    ledger, private = open_ledger(tmp_path)
    run = recorded_run
    twin = unroll.train(run.spec, run.dataset, run.schedule, weights=problem.twin_weights)
    further = unroll.Problem(twin, np.array([50]))
    second, recipe = deletion_entry(further, unroll.unlearn("retrain", further), "retrain", SALT)
    for number, entry in enumerate((run_entry(run, SALT)[0], first, second)):
        ledger.append(entry, private, now=at(number))
    entries = [signed.entry for signed in ledger.entries()]
    for before, after in zip(entries, entries[1:], strict=False):
        assert before.parameters_after == after.parameters_before
        assert before.data_after == after.data_before
    both = erased(run.dataset, [*FORGET, 50])
    assert again(ledger.entries()[2], recipe, run, dataset=both).holds


def test_mistakes(deletion, recorded_run):
    problem, result, *_ = deletion
    with pytest.raises(InputError, match="a deletion without ids is none"):
        empty = unroll.Problem(recorded_run, np.zeros(0, np.int64))
        deletion_entry(empty, result, "replay", SALT)
    with pytest.raises(InputError, match="cannot read"):
        deletion_entry(problem, result, "replay(", SALT)
    with pytest.raises(InputError, match="cannot be written as JSON"):
        deletion_entry(problem, result, "replay", SALT, metrics={"error": np.float32(1)})


def test_source_hash_sees_every_file(tmp_path, monkeypatch):
    from pathlib import Path

    found = evidence.code_version()
    package = tmp_path / "unroll"
    shutil.copytree(Path(unroll.__file__).parent, package)
    monkeypatch.setattr(evidence.checkpoint, "__file__", str(package / "checkpoint.py"))
    monkeypatch.setattr(evidence, "code_version", evidence.code_version.__wrapped__)
    assert evidence.code_version() == found
    (package / "deletion" / "__init__.py").write_text("# changed\n")
    assert evidence.code_version() != found
