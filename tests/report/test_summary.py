"""From records to rows: intervals, order, and the refusal to compare without an oracle."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from unroll.errors import InputError
from unroll.report import Interval, Missing, group_sections, summarize, t_interval
from unroll.report.formatting import display_labels, format_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_t_interval_matches_scipy(confidence):
    values = [0.061, 0.066, 0.072, 0.064]
    interval = t_interval(values, confidence)
    low, high = stats.t.interval(confidence, 3, loc=np.mean(values), scale=stats.sem(values))
    assert interval.count == 4
    np.testing.assert_allclose([interval.low, interval.high], [low, high], rtol=1e-12)


def test_one_seed_has_no_interval():
    assert t_interval([0.5]) == Interval(0.5, None, None, 1)
    with pytest.raises(InputError, match="at least one value"):
        t_interval([])


@pytest.mark.parametrize(
    ("values", "signed", "text"),
    [
        ((0.066, 0.062, 0.070), False, "0.066 ± 0.004"),
        ((0.0017, 0.0015, 0.0019), False, "0.0017 ± 0.0002"),
        ((0.0664, 0.0649, 0.0679), False, "0.0664 ± 0.0015"),
        ((4.0, 3.7, 4.3), False, "4.0 ± 0.3"),
        ((123456.0, 119456.0, 127456.0), False, "123000 ± 4000"),
        ((1.7e-7, 1.5e-7, 1.9e-7), False, "(1.7 ± 0.2)e-7"),
        ((0.0, 0.0, 0.0), False, "0"),
        ((1.0, 1.0, 1.0), False, "1"),
        ((0.1, 0.1, 0.1 + 1e-17), False, "0.1"),
        ((0.9312345, 0.93123449, 0.93123451), False, "0.9312 ± 1e-8"),
        ((0.01, 0.005, 0.015), True, "+0.010 ± 0.005"),
        ((-0.0001, -0.3, 0.3), True, "0.0 ± 0.3"),
        ((0.0, None, None), False, "0 (1 seed)"),
        ((0.06612, None, None), True, "+0.06612 (1 seed)"),
    ],
)
def test_interval_format(values, signed, text):
    mean, low, high = values
    count = 1 if low is None else 5
    assert format_interval(Interval(mean, low, high, count), signed) == text


def test_rows_are_ordered_by_role_and_then_by_error(digits):
    rows = summarize(reversed(digits))
    assert [row.label for row in rows] == [
        "original",
        "retrain",
        "retrain_vs_retrain",
        "replay",
        "taylor(order=3)",
        "taylor(order=2)",
        "taylor(order=1)",
        "finetune",
        "gradient_ascent",
        "single_gradient",
    ]
    assert [row.role for row in rows[:4]] == ["do nothing", "oracle", "null", "method"]


def test_a_method_without_an_error_comes_last(make_records):
    records = [
        dataclasses.replace(record, value=None, note="diverged")
        if record.method == "replay" and record.metric == "relative_verification_error"
        else record
        for record in make_records(curves=False)
    ]
    last = summarize(records)[-1]
    assert last.label == "replay"
    assert last.relative_error == Missing("diverged")


def test_method_seeds_are_averaged_within_a_training_seed(digits):
    template = next(r for r in digits if r.method == "retrain" and r.metric == "accuracy")
    values = {(0, 0): 0.2, (0, 1): 0.4, (1, 0): 0.5, (1, 1): 0.5, (1, 2): 0.5}
    records = [
        dataclasses.replace(template, train_seed=train, method_seed=method, value=value)
        for (train, method), value in values.items()
    ]
    accuracy = summarize(records)[0].get("accuracy", template.split)
    expected = t_interval([0.3, 0.5])
    assert accuracy.count == 2
    np.testing.assert_allclose(
        [accuracy.mean, accuracy.low, accuracy.high],
        [expected.mean, expected.low, expected.high],
    )


def test_costs_count_each_model_once(digits):
    row = next(row for row in summarize(digits) if row.method == "finetune")
    assert row.cost_ratio_gradients.mean == pytest.approx(0.11)
    assert row.cost_ratio_seconds.mean == pytest.approx(0.11 * 1.4)
    assert row.seconds.count == 5


def test_a_seed_without_a_value_is_noted(digits):
    records = [
        dataclasses.replace(record, value=None, note="diverged at step 3")
        if (record.method, record.metric, record.train_seed) == ("finetune", "mia", 2)
        else record
        for record in digits
    ]
    mia = next(row for row in summarize(records) if row.method == "finetune").get("mia", "forget")
    assert mia.count == 4
    assert mia.note == "1 of 5 models have no value; diverged at step 3"


@pytest.mark.parametrize(
    ("metric", "oracle"),
    [("accuracy_gap", None), ("relative_verification_error", None), ("tow", "independent")],
)
def test_no_comparison_without_an_oracle(digits, metric, oracle):
    kept = [r for r in digits if r.method != "retrain" and r.metric in ("accuracy", metric)]
    plain = [dataclasses.replace(r, oracle=oracle if r.metric == metric else None) for r in kept]
    with pytest.raises(InputError, match=f"`{metric}` is a comparison but there is no `retrain`"):
        summarize(plain)
    assert summarize([r for r in plain if r.metric == "accuracy"])


def test_the_oracle_of_another_section_does_not_count(make_records, digits):
    other = [r for r in make_records(curves=False, dataset="other") if r.method != "retrain"]
    with pytest.raises(InputError, match="other"):
        summarize([*digits, *other])


def test_sections_keep_their_order(make_records):
    records = make_records(curves=False) + make_records(curves=False, forget="class(3)")
    sections = group_sections(records)
    assert [section.forget for section in sections] == ["random(fraction=0.01)", "class(3)"]
    assert len(summarize(records)) == 20


def test_labels_are_shortened_to_what_differs(thirty, digits):
    def with_settings(**settings):
        return [
            dataclasses.replace(record, hyperparameters=settings)
            for record in digits
            if record.method == "finetune"
        ]

    common = {"learning_rate": 0.01, "weight_decay": 5e-4}
    variants = with_settings(steps=10, **common) + with_settings(steps=20, **common)
    others = [record for record in digits if record.method != "finetune"]
    short = display_labels(summarize(others + variants)).values()
    assert {"finetune(steps=10, …)", "finetune(steps=20, …)", "taylor(order=2)"} <= set(short)
    labels = display_labels(summarize(thirty))
    assert "scrub_plain" in labels.values()
    assert len(set(labels.values())) == len(labels)
