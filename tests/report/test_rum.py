"""The page of RUM: names, differences within seeds, and what is missing, from made-up records."""

import numpy as np
import pytest

import unroll
from unroll.evaluation.records import NULL, ORIGINAL, RETRAIN, Record
from unroll.evaluation.selector import Selection, Trial
from unroll.report.rum import differences, rum_figure, rum_page, variant_of, write_rum
from unroll.report.summary import summarize

LONG = "salun(batch_size=64, epochs=5, fraction=0.5, learning_rate=0.05)"
SETTINGS = {"batch_size": 64, "epochs": 5, "fraction": 0.5, "learning_rate": 0.05}


def parts(methods, scores="exact"):
    return {"count": 3, "methods": methods, "scores": f"{scores}:0123456789ab", "tie_seed": 0}


ROWS = (
    (ORIGINAL, {}, 0.60),
    (RETRAIN, {}, 1.0),
    (NULL, {}, 0.93),
    ("salun", SETTINGS, 0.80),
    ("shuffle_salun", parts(LONG, "random"), 0.82),
    ("rum_f_salun", parts(LONG), 0.87),
    ("rum_f_salun_by_confidence", parts(LONG, "confidence"), 0.86),
    ("rum", parts([ORIGINAL, "finetune(epochs=2)", LONG]), 0.90),
    ("rum_auto", parts([ORIGINAL, ORIGINAL, LONG]), 0.91),
)


def made(rows=ROWS, seeds=(0, 1, 2), spread=0.04, missing=()):
    """Every row moves with its seed; `rum_f` is better than `salun` by 0.06, 0.07 and 0.08."""
    records = []
    for method, settings, mean in rows:
        for seed in seeds:
            own = 0.01 * (seed - 1) if method == "rum_f_salun" else 0.0
            value = min(mean + spread * (seed - 1) + own, 1.0)
            for metric, split, oracle, number in (
                ("tow", None, "twin", value),
                ("tow", None, "independent", value * 0.97),
                ("tow_mia", None, "twin", value * 0.9),
                *(("accuracy", split, None, value) for split in ("forget", "retain", "test")),
            ):
                note = "diverged" if (method, seed) in missing else None
                records.append(
                    Record(
                        experiment="memorization/rum", dataset="digits", model="mlp()",
                        forget="150 of digits", forget_size=150, method=method,
                        hyperparameters=settings, train_seed=seed, method_seed=0, metric=metric,
                        split=split, value=None if note else number, oracle=oracle, note=note,
                        cost_ratio_gradients=0.2, cost_ratio_seconds=0.3, seconds=1.0,
                    )
                )  # fmt: skip
    return records


def test_variants_are_known_by_their_names():
    found = {row.method: variant_of(row) for row in summarize(made())}
    assert found == {
        ORIGINAL: ORIGINAL, RETRAIN: RETRAIN, NULL: NULL, "salun": "vanilla",
        "shuffle_salun": "shuffle", "rum_f_salun": "rum_f", "rum_f_salun_by_confidence": "rum_f",
        "rum": "rum", "rum_auto": "rum_auto",
    }  # fmt: skip


def test_differences_are_taken_within_seeds():
    found = {(first, second): interval for first, second, interval in differences(made())}
    own = found["rum_f: salun by exact", "vanilla: salun"]
    assert own.mean == pytest.approx(0.07) and own.count == 3
    # The seeds move both rows by 0.04, their difference by 0.01 only.
    assert own.half_width == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-5)
    assert ("shuffle: salun", "vanilla: salun") in found
    assert ("rum_auto: original, original, salun", "vanilla: salun") in found
    assert ("vanilla: salun", "shuffle: salun") not in found
    assert not any("retrain" in name for pair in found for name in pair)


def test_the_page_names_methods_and_where_the_parts_come_from(tmp_path):
    trials = (
        Trial(1, [ORIGINAL] * 3, 0.71, {"7": 0.71}, 0.0, 0.0),
        Trial(1, [LONG, ORIGINAL, ORIGINAL], None, {}, 5.0, 0.5, "seed 7: diverged"),
    )
    selection = Selection((ORIGINAL,) * 3, trials)
    path = write_rum(made(), tmp_path, "RUM", selection, ["Measured here."])
    page = path.read_text()
    for text in (
        "Measured here.",
        "| vanilla | salun |  | 0.80 ± 0.10 |",
        "| rum_f | salun | confidence | 0.86 ± 0.10 |",
        "| rum | original, finetune, salun | exact |",
        f"- `{LONG}`",
        "| rum_f: salun by exact | vanilla: salun | +0.07 ± 0.02 |",
        "| **0.71** | 0 | 0 |",
        "n/a (seed 7: diverged)",
    ):
        assert text in page, text
    assert (tmp_path / "rum.png").stat().st_size > 5000


def test_a_row_that_failed_for_a_seed_has_no_number_and_no_point():
    records = made(missing={("rum_f_salun", 1)})
    page = rum_page(records, "RUM")
    assert "| rum_f | salun | exact | n/a |" in page
    assert "`rum_f_salun" in page and "diverged" in page
    drawn = {line.get_gid() for axes in rum_figure(records).axes for line in axes.lines}
    assert not any(gid.startswith("point rum_f_salun(") for gid in drawn if gid)
    assert any(gid.startswith("point rum(") for gid in drawn if gid)


def test_names_do_not_overlap_and_points_are_inside():
    figure = rum_figure(made())
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in zip(boxes[:-1], boxes[1:], strict=True))
    assert len(boxes) == len(ROWS) - 1
    assert [each.get_title() for each in figure.axes] == [
        "ToW, twin", "ToW, independent", "ToW-MIA, twin"
    ]  # fmt: skip
    low, high = axes.get_xlim()
    assert low >= -0.1 and high <= 1.1


def test_two_methods_of_one_name_are_told_apart_by_what_differs():
    other = {**SETTINGS, "epochs": 7}
    text = LONG.replace("epochs=5", "epochs=7")
    records = made((*ROWS, ("salun", other, 0.7), ("rum_f_salun_7", parts(text), 0.75)))
    names = {name for pair in differences(records) for name in pair[:2]}
    short = {f"{variant}: salun(epochs={n})" for variant in ("vanilla", "rum_f") for n in (5, 7)}
    assert short - {"rum_f: salun(epochs=5)"} <= names  # of which there are two, by other scores
    assert f"- `{text}`" in rum_page(records, "RUM")


def test_a_method_tuned_part_by_part_is_compared_with_its_vanilla_row():
    text = LONG.replace("epochs=5", "epochs=2")
    found = differences(made((*ROWS, ("rum_f_tuned_salun", parts(text), 0.85))))
    ((first, second, interval),) = [each for each in found if each[0].startswith("rum_f_tuned")]
    assert (first, second) == ("rum_f_tuned: salun(epochs=2)", "vanilla: salun(epochs=5)")
    assert interval.mean == pytest.approx(0.05)


def test_sections_are_not_mixed():
    elsewhere = [*made(), *(record for record in made() if record.method != "rum")]
    elsewhere[0] = Record(**{**vars(elsewhere[0]), "forget": "others"})
    with pytest.raises(unroll.InputError):
        rum_page(elsewhere, "RUM")
