"""Grids and workdirs of experiments: cells, and what is refused before any work."""

import json

import grids
import ml_collections
import pytest
import workdir as workdirs

from unroll.checkpoint import FORMAT
from unroll.errors import InputError


def config(variants=((),), axes=()):
    fields = dict(epochs=1, optimizer=dict(momentum=0.0), variants=variants, axes=axes)
    return ml_collections.ConfigDict(fields)


def test_cells_are_variants_times_axes():
    variants = ((), (("optimizer.momentum", 0.9),))
    cells = list(grids.cells(config(variants, (("epochs", (1, 2)),))))
    found = [(cell.optimizer.momentum, cell.epochs) for cell in cells]
    assert found == [(0.0, 1), (0.0, 2), (0.9, 1), (0.9, 2)]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(axes=(("epoch", (1,)),)), "sets 'epoch', which the config does not have"),
        (dict(axes=(("optimzer.momentum", (0.9,)),)), "sets 'optimzer.momentum', which"),
        (dict(axes=(("epochs.momentum", (0.9,)),)), "sets 'epochs.momentum', which"),
        (dict(axes=(("epochs", ("a",)),)), "sets epochs='a', which does not fit"),
        (dict(axes=(("epochs", 3),)), "'epochs' needs a tuple of values; got 3"),
        (dict(axes=("epochs",)), "axes of the grid must be a tuple of .* pairs"),
        (dict(variants=(("epochs", 3),)), "a variant of the grid must be a tuple of .* pairs"),
    ],
)
def test_mistakes_in_a_grid_are_one_line(changes, message):
    with pytest.raises(InputError, match=message):
        list(grids.cells(config(**changes)))


def test_cells_that_rows_cannot_tell_apart_are_refused():
    places = [dict(model="a", strength=strength, seed=0) for strength in (0.1, 0.2)]
    grids.refuse_equal_cells(places)
    grids.refuse_equal_cells([])
    with pytest.raises(InputError, match="knows their model, strength; vary other fields"):
        grids.refuse_equal_cells([*places, places[0]])


def test_a_workdir_goes_on_with_the_same_config_and_format_only(tmp_path):
    folder = tmp_path / "w"
    workdirs.prepare(folder, config())
    workdirs.prepare(folder, config())
    with pytest.raises(InputError, match="another config"):
        workdirs.prepare(folder, config(variants=()))
    written = json.loads((folder / "config.json").read_text())
    assert written["format"] == FORMAT and written["epochs"] == 1


@pytest.mark.parametrize("old", [{}, {"format": FORMAT - 1}])
def test_rows_of_older_code_are_not_taken_for_those_of_this_one(tmp_path, old):
    workdirs.prepare(tmp_path, config())
    path = tmp_path / "config.json"
    fields = {**json.loads(path.read_text()), **old}
    fields = fields if old else {k: v for k, v in fields.items() if k != "format"}
    path.write_text(json.dumps(fields, indent=1, sort_keys=True))
    with pytest.raises(InputError, match="earlier version of the library; choose another"):
        workdirs.prepare(tmp_path, config())
