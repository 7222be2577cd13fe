"""SISA systems in the ledger: equal bits from scratch, and every kind of mismatch by its name."""

import dataclasses

import jax
import numpy as np
import pytest
from ledger_parts import at, open_ledger

import unroll
from unroll.deletion import evidence, merkle
from unroll.deletion.evidence import Recipe, re_execute, run_entry
from unroll.deletion.evidence_sisa import (
    SisaRecipe,
    re_execute_sisa,
    sisa_entry,
    sisa_run_entry,
    system_hash,
)
from unroll.deletion.sharding import random_assignment
from unroll.deletion.sisa import SisaPlan, train_sisa
from unroll.errors import InputError

SALT = bytes(range(32))
FORGET = np.array([3, 17, 40])


@pytest.fixture(scope="module")
def plan(blobs):
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(6,)))
    data = blobs[0].take(range(50))
    return SisaPlan(spec, data, random_assignment(0, 50, 2, 2), (1, 2), 4, seed=5)


@pytest.fixture(scope="module", params=["sequential", "batched"])
def systems(request, plan):
    """Before and after a deletion."""
    before = train_sisa(plan, mode=request.param)
    return before, before.delete(FORGET)[0]


@pytest.fixture(scope="module")
def deletion(plan):
    """Entry, recipe and systems of a deletion in sequential mode."""
    before = train_sisa(plan)
    after, _ = before.delete(FORGET)
    return *sisa_entry(before, after, FORGET, SALT, metrics={"a": 1.0}), before, after


def again(entry, recipe, plan, **changes):
    arguments = dict(recipe=recipe, spec=plan.spec, dataset=plan.dataset, salt=SALT)
    return re_execute_sisa(entry, **{**arguments, **changes})


def failing(verification):
    assert not verification.holds
    return [link.name for link in verification.failing]


def link(verification, name):
    return next(link for link in verification.links if link.name == name)


def test_training_and_deletion_are_found_again_from_scratch(systems, plan):
    before, after = systems
    first, recipe = sisa_run_entry(before, SALT)
    assert (first.kind, first.method, first.requests) == ("run", "sisa(shards=2, slices=2)", ())
    assert again(first, recipe, plan).holds
    second, recipe = sisa_entry(before, after, FORGET[::-1], SALT)
    assert (second.kind, second.data_before) == ("deletion", first.data_after)
    assert second.parameters_before == first.parameters_after != second.parameters_after
    assert (second.schedule, second.spec) == (first.schedule, first.spec)
    found = again(second, recipe, plan)
    assert found.holds and all(link.holds for link in found.links), found
    assert again(second, recipe, plan, dataset=plan.erase(FORGET).dataset).holds


def test_modes_differ_in_their_recipes(plan):
    """The two differ in rounding, so a record of one says nothing of the other."""
    entries = [sisa_run_entry(train_sisa(plan, mode=m), SALT)[0] for m in ("sequential", "batched")]
    assert entries[0].schedule != entries[1].schedule


def test_requests_are_shown_absent(deletion, plan):
    entry, recipe, *_ = deletion
    proofs = evidence.prove_absences(recipe, plan.dataset, SALT)
    assert sorted(proof.key for proof in proofs) == list(entry.requests)
    for proof in proofs:
        assert merkle.verify(proof, entry.data_after)
        assert not merkle.verify(proof, entry.data_before)


def test_a_system_with_an_empty_shard_can_be_logged(plan):
    ids = np.flatnonzero(plan.assignment.shard == 1)
    before = train_sisa(plan)
    after, _ = before.delete(ids)
    assert after.constituents[1] is None
    entry, recipe = sisa_entry(before, after, ids, SALT)
    assert again(entry, recipe, plan).holds


def changed_recipes(recipe):
    """By the link that fails: one change of every field."""
    weights = recipe.weights.copy()
    weights[3] = 1
    shard, slice = recipe.shard.copy(), recipe.slice.copy()
    shard[0], slice[0] = 1 - shard[0], 1 - slice[0]
    yield "seed", dict(seed=1)
    yield "weights", dict(weights=weights)
    yield "requests", dict(forget=recipe.forget[:2])
    yield "schedule", dict(shard=shard)
    yield "schedule", dict(slice=slice)
    yield "schedule", dict(shards=3)
    yield "schedule", dict(slices=3)
    yield "schedule", dict(epochs=recipe.epochs + 1)
    yield "schedule", dict(batch_size=5)
    yield "schedule", dict(width=2)


def test_every_changed_field_of_a_recipe_is_named_by_its_part(deletion, plan):
    entry, recipe, *_ = deletion
    changed = list(changed_recipes(recipe))
    fields = {name for _, change in changed for name in change}
    assert fields == {field.name for field in dataclasses.fields(SisaRecipe)}
    for name, change in changed:
        found = failing(again(entry, dataclasses.replace(recipe, **change), plan))
        sizes = ["method"] if {"shards", "slices"} & set(change) else []
        assert found == ["recipe", *sizes, name], change


def changed_entries(entry):
    """By the link that fails: one change of every field that a re-execution looks at."""
    other = "0" * 64
    for name in ("recipe", "spec", "schedule", "weights", "initial"):
        yield [name], {name: other}
    yield ["method"], {"method": "sisa(shards=4, slices=2)"}
    yield ["requests"], {"requests": entry.requests[:2]}
    yield ["seed"], {"seed": entry.seed + 1}
    yield ["remaining data"], {"data_after": other}
    yield ["parameters"], {"parameters_after": entry.parameters_before}


def test_every_changed_field_of_an_entry_is_named(deletion, plan):
    entry, recipe, *_ = deletion
    for names, change in changed_entries(entry):
        assert failing(again(dataclasses.replace(entry, **change), recipe, plan)) == names
    # What may differ without harm is a note; the signature covers it.
    for name, change in (
        ("dataset", {"dataset": "0" * 64}),
        ("environment", {"environment": {**entry.environment, "xla_flags": "--other"}}),
        ("environment", {"packages": {**entry.packages, "jax": "0.1"}}),
        ("code", {"code": {"source": "other"}}),
    ):
        found = again(dataclasses.replace(entry, **change), recipe, plan)
        assert found.holds and link(found, name).holds is None


@pytest.mark.parametrize("field", ["inputs", "labels"])
def test_any_changed_example_that_remains_is_found(deletion, plan, field):
    entry, recipe, *_ = deletion
    for example in (0, 49):
        array = getattr(plan.dataset, field).copy()
        array[example] = (array[example] + 1) % 3
        changed = dataclasses.replace(plan.dataset, **{field: array})
        found = again(entry, recipe, plan, dataset=changed)
        assert failing(found) == ["remaining data"]
        assert "not trained again" in link(found, "parameters").message


def test_other_materials_are_named(deletion, plan, blobs):
    entry, recipe, *_ = deletion
    assert failing(again(entry, recipe, plan, dataset=blobs[1])) == ["dataset"]
    spec = dataclasses.replace(plan.spec, denominator="renormalise")
    assert failing(again(entry, recipe, plan, spec=spec)) == ["spec"]
    wrong_salt = failing(again(entry, recipe, plan, salt=SALT[::-1]))
    assert {"recipe", "requests", "schedule", "weights"} <= set(wrong_salt)


def test_a_constituent_that_kept_its_old_bits_is_found(deletion, plan):
    """A provider that logs the request and goes on serving a constituent of before."""
    entry, recipe, before, after = deletion
    kept = dataclasses.replace(
        after, constituents=(before.constituents[0], *after.constituents[1:])
    )
    assert kept.hash != after.hash
    lie = dataclasses.replace(entry, parameters_after=system_hash(kept))
    assert failing(again(lie, recipe, plan)) == ["parameters"]


def test_a_bit_of_one_constituent_is_in_the_hash(deletion):
    *_, after = deletion
    state = after.constituents[1].state
    leaves, structure = jax.tree.flatten(state.params)
    leaves[0] = np.nextafter(leaves[0], np.float32(9))
    other = dataclasses.replace(
        after.constituents[1], state=state._replace(params=structure.unflatten(leaves))
    )
    swapped = dataclasses.replace(after, constituents=after.constituents[::-1])
    changed = dataclasses.replace(after, constituents=(after.constituents[0], other))
    assert len({system_hash(each) for each in (after, changed, swapped)}) == 3


def test_recipes_come_back_and_are_told_apart(deletion, tmp_path, recorded_run):
    entry, recipe, *_ = deletion
    path = recipe.save(tmp_path, entry.recipe)
    back = SisaRecipe.load(tmp_path, entry.recipe)
    assert back.hash == recipe.hash and type(back.shards) is int
    with pytest.raises(InputError, match="is damaged .*schedule"):
        Recipe.load(tmp_path, entry.recipe)
    single, other = run_entry(recorded_run, SALT)
    other.save(tmp_path, single.recipe)
    with pytest.raises(InputError, match="is damaged"):
        SisaRecipe.load(tmp_path, single.recipe)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="is damaged .*; restore it"):
        SisaRecipe.load(tmp_path, entry.recipe)


def test_one_ledger_holds_both_kinds(deletion, plan, recorded_run, tmp_path):
    entry, recipe, before, _ = deletion
    ledger, private = open_ledger(tmp_path)
    single, its_recipe = run_entry(recorded_run, SALT)
    for number, each in enumerate((sisa_run_entry(before, SALT)[0], single, entry)):
        ledger.append(each, private, now=at(number))
    _, second, third = ledger.entries()
    assert ledger.verify() == []
    assert again(third, recipe, plan).holds
    run = recorded_run
    assert re_execute(second, its_recipe, run.spec, run.dataset, SALT).holds
    with pytest.raises(InputError, match="is of a SISA system; verify it with re_execute_sisa"):
        re_execute(third, its_recipe, run.spec, run.dataset, SALT)
    with pytest.raises(InputError, match="train is not of a SISA system"):
        again(second, recipe, plan)


def test_mistakes(deletion, plan):
    *_, before, after = deletion
    with pytest.raises(InputError, match="a deletion without ids is none"):
        sisa_entry(before, before, [], SALT)
    with pytest.raises(InputError, match="do not differ by the ids"):
        sisa_entry(before, after, FORGET[:2], SALT)
    with pytest.raises(InputError, match="are of different plans"):
        other = dataclasses.replace(after, plan=dataclasses.replace(plan, seed=6))
        sisa_entry(before, other, FORGET, SALT)
