"""Streams of requests: what they ask for, when, and that they depend on their arguments alone."""

import dataclasses
import json

import numpy as np
import pytest

from unroll.data.dataset import Dataset
from unroll.deletion.costs import exponential_probabilities, simulate_cost, uniform_stream
from unroll.deletion.requests import parse_request
from unroll.deletion.sharding import random_assignment
from unroll.deletion.streams import STREAMS, make_stream, sureness
from unroll.errors import InputError

EXAMPLES, TEST = 60, 12
ASSIGNMENT = random_assignment(0, EXAMPLES, 3, 2)
TRAIN = Dataset(
    "line", np.linspace(-1, 1, EXAMPLES)[:, None], np.arange(EXAMPLES) % 2, num_classes=2
)


@dataclasses.dataclass
class Service:
    """A model that is the surer the larger the number that it sees; deleted rows it refuses."""

    removed: np.ndarray

    def predict(self, dataset):
        gone = TRAIN.inputs[self.removed]
        assert not np.isin(dataset.inputs, gone).any()
        return np.hstack([dataset.inputs, -np.ones((len(dataset), 1))])


def stream(text, **changes):
    settings = dict(examples=EXAMPLES, test_examples=TEST, seed=3)
    return make_stream(text, **{**settings, "assignment": ASSIGNMENT, "train": TRAIN, **changes})


def requests(made, service=None, asked=()):
    return [
        parse_request(made.line(number, service, asked).encode(), key=made.key)
        for number in range(made.length)
    ]


def asked_for(made):
    return [id for request in requests(made) if request.kind == "delete" for id in request.ids]


FIXED = ["uniform", "exponential", "adversarial", "bursts", "mixed"]


@pytest.mark.parametrize("name", FIXED)
def test_a_stream_depends_on_its_seed_and_the_number_alone(name):
    made = stream(f"{name}(requests=7)")
    lines = [made.line(number, None) for number in range(7)]
    again = stream(f"{name}(requests=7)")
    assert [again.line(number, None) for number in (6, 2, 0)] == [lines[n] for n in (6, 2, 0)]
    assert made.line(7, None) is None and made.length == 7 and not made.adaptive
    other = stream(f"{name}(requests=7)", seed=4)
    assert [other.line(number, None) for number in range(7)] != lines
    found = requests(made)
    assert len({request.name for request in found}) == 7
    times = [request.time for request in found]
    assert times == sorted(times) and times[0] > 0
    ids = asked_for(made)
    assert len(set(ids)) == len(ids) and all(0 <= id < EXAMPLES for id in ids)


def test_all_streams_are_tested():
    assert set(STREAMS) == {*FIXED, "adaptive"}


def test_arrivals_are_poisson():
    times = stream("mixed(requests=4000, rate=5.0, delete=0.0)").times
    gaps = np.diff(times)
    # Mean and deviation of exponential gaps are both 0.2; 4 standard errors of 4000 each, the
    # deviation's being sqrt(2) times larger for this distribution.
    assert gaps.mean() == pytest.approx(0.2, abs=4 * 0.2 / np.sqrt(4000))
    assert gaps.std() == pytest.approx(0.2, abs=4 * 0.2 * np.sqrt(2 / 4000))
    assert (np.round(times, 6) == times).all()


def test_who_is_asked_for():
    assert sorted(asked_for(stream("uniform(requests=59)"))) != list(range(59))
    bursts = requests(stream("bursts(requests=4, size=9)"))
    assert [len(request.ids) for request in bursts] == [9] * 4
    early = np.mean(
        [asked_for(stream("exponential(requests=1)", seed=seed))[0] for seed in range(200)]
    )
    # The mean id of the distribution, and four standard errors of 200 draws.
    probabilities, ids = exponential_probabilities(EXAMPLES), np.arange(EXAMPLES)
    mean = probabilities @ ids
    deviation = np.sqrt(probabilities @ (ids - mean) ** 2)
    assert early == pytest.approx(mean, abs=4 * deviation / np.sqrt(200))
    adversarial = asked_for(stream("adversarial(requests=12)"))
    assert (ASSIGNMENT.slice[adversarial] == 0).all()
    uniform = uniform_stream(0, EXAMPLES, 12)
    costs = [simulate_cost(ASSIGNMENT, (1, 1), ids).sum() for ids in (adversarial, uniform)]
    assert costs[0] > costs[1]


def test_mixed_requests_have_the_shares_that_were_asked_for():
    found = requests(stream("mixed(requests=2000, delete=1, predict=2, status=2)", examples=9000))
    kinds = [request.kind for request in found]
    for kind, share in (("delete", 0.2), ("predict", 0.4), ("status", 0.4)):
        # Four standard errors of a share.
        error = np.sqrt(share * (1 - share) / 2000)
        assert kinds.count(kind) / 2000 == pytest.approx(share, abs=4 * error)
    for kind, most in (("delete", 9000), ("predict", TEST), ("status", 9000)):
        requested = [request.ids for request in found if request.kind == kind]
        assert {len(ids) for ids in requested} == {1, 2, 3}
        assert all(len(set(ids)) == len(ids) and 0 <= min(ids) for ids in requested)
        assert most * 0.9 <= 1 + max(max(ids) for ids in requested) <= most


def test_an_adaptive_stream_follows_the_model():
    removed = np.array([59, 0])
    most = stream("adaptive(requests=5, choice='most_sure', size=2)")
    least = stream("adaptive(requests=5, choice='least_sure')")
    assert most.adaptive and most.length == 5
    assert requests(most, Service(removed))[3].ids == (58, 57)
    assert requests(least, Service(removed))[3].ids == (1,)
    # What waits is not asked for again, though the model still has it.
    assert requests(most, Service(removed), asked=[58, 56])[3].ids == (57, 55)
    either = requests(stream("adaptive(requests=40)"), Service(removed))
    coins = [request.ids[0] for request in either]
    assert set(coins) == {58, 1} and 8 < coins.count(1) < 32  # four deviations of 40 coins
    assert requests(stream("adaptive(requests=40)"), Service(removed)) == either
    assert either[0].time == stream("uniform(requests=1)").times[0]


def test_an_adaptive_stream_ends_when_nothing_would_be_left():
    made = stream("adaptive(requests=5, size=2)")
    assert made.line(0, Service(np.arange(57))) is not None
    assert made.line(0, Service(np.arange(58))) is None
    assert made.line(0, Service(np.arange(57)), asked=[58]) is None


def test_how_sure_a_model_is():
    scores = [[1.0, 4.0, 2.0], [0.0, 0.0, -1.0], [5.0, 0.0, 1.0]]
    assert sureness(np.array(scores)).tolist() == [2.0, 0.0, 4.0]
    assert sureness(np.ones((2, 1))).tolist() == [0.0, 0.0]


def test_lines_are_authenticated():
    made = stream("uniform(requests=2)", key=b"a key of 32 bytes, for the tests")
    assert "mac" in json.loads(made.line(0, None)) and requests(made)
    with pytest.raises(InputError):
        parse_request(made.line(0, None).encode(), key=b"another key, of equal length too")


@pytest.mark.parametrize(
    "text, message",
    [
        ("unknown", "unknown stream 'unknown'; choose one of"),
        ("uniform(number=3)", "stream uniform: unknown option 'number'"),
        ("uniform(requests=60)", "deletes 60 of 60 examples; one must be left"),
        ("bursts(requests=10, size=6)", "deletes 60 of 60"),
        ("exponential(requests=60)", "deletes 60 of 60"),
        ("adversarial(requests=60)", "deletes 60 of 60"),
        ("adaptive(requests=60)", "deletes 60 of 60"),
        ("mixed(requests=500)", "one must be left, so give fewer requests"),
        ("mixed(delete=-1)", "delete must be a share"),
        ("mixed(delete=0, predict=0, status=0)", "the shares are all 0"),
        ("mixed(largest=13)", "largest=13"),
        ("uniform(requests=5, rate=0)", "rate must be a number above 0"),
        ("uniform(requests=5, rate=1e-310)", "too low a rate"),
        ("uniform(requests=0)", "requests must be a whole number"),
        ("adaptive(choice='best')", "unknown choice 'best'"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(InputError, match=message) as error:
        stream(text)
    assert "\n" not in str(error.value)


def test_what_a_stream_needs():
    with pytest.raises(InputError, match="needs an assignment"):
        stream("adversarial(requests=5)", assignment=None)
    with pytest.raises(InputError, match="needs the training set"):
        stream("adaptive(requests=5)", train=None)
    with pytest.raises(InputError, match="number must be a whole number"):
        stream("uniform(requests=5)").line(-1, None)
