"""What each policy decides in every situation, and what is no policy."""

import math

import pytest

from unroll.deletion.policies import Situation, make_policy
from unroll.errors import InputError


def waiting(requests=1, *, clock=10.0, oldest=10.0, examples=None, **more):
    examples = requests if examples is None else examples
    return Situation(clock, requests, examples, oldest, **more)


CASES = [
    ("immediately", Situation(10.0), None),
    ("immediately", waiting(), "exact"),
    ("batches(size=3)", waiting(2, oldest=0.0), None),
    ("batches(size=3)", waiting(3), "exact"),
    ("batches(size=3)", waiting(2, examples=9), None),  # requests count, not their examples
    ("batches(size=3, longest_wait=5)", waiting(1, oldest=5.1), None),
    ("batches(size=3, longest_wait=5)", waiting(1, oldest=5.0), "exact"),
    ("batches(size=3, longest_wait=5)", Situation(10.0), None),
    ("budgeted(method='taylor', threshold=4)", waiting(1, examples=4), "approximate"),
    ("budgeted(method='taylor', threshold=4)", waiting(1, examples=5), "exact"),
    ("budgeted(method='taylor', threshold=4)", waiting(approximated_examples=3), "approximate"),
    ("budgeted(method='taylor', threshold=4)", waiting(approximated_examples=4), "exact"),
    ("budgeted(method='taylor', threshold=4)", Situation(10.0, approximated_examples=4), None),
]


@pytest.mark.parametrize(("text", "situation", "decision"), CASES)
def test_decisions(text, situation, decision):
    assert make_policy(text).decide(situation) == decision


@pytest.mark.parametrize(
    ("found", "decision"),
    [
        ({"distance": 1.0, "guess": 0.1}, None),
        ({"distance": 1.1, "guess": 0.1}, "exact"),
        ({"distance": 1.0, "guess": 0.3}, "exact"),
        ({"distance": math.nan, "guess": 0.1}, "exact"),
        ({"distance": 1.0, "guess": math.nan}, "exact"),
    ],
)
def test_what_an_approximation_says_of_itself_can_use_the_budget_up(found, decision):
    text = "budgeted(method='taylor', threshold=9, distance=1.0, estimate='guess', limit=0.2)"
    situation = Situation(10.0, approximated_examples=2, estimates=found)
    assert make_policy(text).decide(situation) == decision


def test_an_estimate_that_a_method_does_not_give_is_said():
    policy = make_policy("budgeted(method='taylor', threshold=9, estimate='guess', limit=0.2)")
    with pytest.raises(InputError, match=r"no estimate 'guess'; choose one of \['distance'\]"):
        policy.decide(Situation(1.0, approximated_examples=1, estimates={"distance": 1.0}))


def test_a_late_batch_was_ready_before_the_request_that_finds_it():
    policy = make_policy("batches(size=3, longest_wait=5.0)")
    assert policy.ready(waiting(1, clock=10.0, oldest=2.0)) == 7.0
    assert policy.ready(waiting(3, clock=10.0, oldest=2.0)) == 10.0


@pytest.mark.parametrize(
    "text",
    [
        "immediately",
        "batches(longest_wait=2.5, size=3)",
        "batches(size=3)",
        "budgeted(distance=0.5, method='taylor(order=2)', threshold=4)",
        "budgeted(estimate='last_term_norm', limit=0.1, method='taylor', threshold=4)",
    ],
)
def test_a_policy_is_its_text(text):
    assert str(make_policy(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("never", "unknown policy 'never'; choose one of"),
        ("batches", "option 'size' is required"),
        ("batches(size=0)", "size must be a whole number"),
        ("batches(size=2, longest_wait=0)", "longest_wait must be a number above 0"),
        ("immediately(size=2)", "unknown option 'size'"),
        ("budgeted(method='taylor')", "option 'threshold' is required"),
        ("budgeted(method='taylor', threshold=0)", "threshold must be"),
        ("budgeted(method='taylor(', threshold=1)", "cannot read"),
        ("budgeted(method=3, threshold=1)", "method"),
        ("budgeted(method='taylor', threshold=1, limit=1.0)", "both estimate and limit"),
        ("budgeted(method='taylor', threshold=1, estimate='x')", "both estimate and limit"),
    ],
)
def test_mistakes_are_said_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as found:
        make_policy(text)
    assert "\n" not in str(found.value)
