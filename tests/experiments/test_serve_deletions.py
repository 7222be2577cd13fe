"""Serving deletion requests as a user does: a stream, a file that grows, a kill, and mistakes."""

import json

import pytest
import serve_deletions
from run_script import one_line_error, run_script, smoke_config

from unroll.deletion.journal import Journal
from unroll.deletion.requests import Request, format_request
from unroll.deletion.server import describe_server
from unroll.errors import InputError

IMAGES = "--config.dataset=random_images(num_train=128, num_test=20, size=8, num_classes=4)"
SISA = "serve_digits_sisa.py"


def serve(config, *arguments, cwd):
    return run_script("serve_deletions.py", f"deletion/{config}:smoke", *arguments, cwd=cwd)


def good(result):
    assert result.returncode == 0, result.stderr
    return result


def report_of(cwd, config):
    return json.loads((cwd / "runs" / f"{config[:-3]}-smoke" / "report.json").read_text())


def journal_of(cwd, config):
    path = cwd / "runs" / f"{config[:-3]}-smoke" / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_line(result):
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        (SISA, ["--config.purge=True"]),
        pytest.param("serve_digits_budgeted.py", [], marks=pytest.mark.slow),
        pytest.param("serve_cifar10_sisa.py", [IMAGES], marks=pytest.mark.slow),
        pytest.param(
            SISA,
            ["--config.stream=adaptive(requests=5)", "--config.policy=batches(size=2)"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_smoke_run(tmp_path, config, arguments):
    arguments = [*arguments, "--config.key_folder=keys"]
    result = good(serve(config, *arguments, cwd=tmp_path))
    workdir = tmp_path / "runs" / f"{config[:-3]}-smoke"
    assert f"report: runs/{workdir.name}/report.md" in result.stdout
    found = report_of(tmp_path, config)
    assert found["exact"] is True and found["model"] == found["scratch"]
    assert found["accepted"] > 0 and found["refused"] == 0
    assert found["lines"] == found["accepted"] + found["answered"]
    assert found["queues"]["until deleted"]["mean_wait"] > 0
    assert len(found["queues"]["until deleted"]["waits"]) == found["accepted"]
    page = (workdir / "report.md").read_text()
    assert "what remains: yes, bit for bit" in page and "(requests.png)" in page
    assert (workdir / "requests.png").stat().st_size > 1000
    entries = (workdir / "ledger" / "ledger.jsonl").read_text().splitlines()
    assert len(entries) == 1 + found["applications"]["exact"]
    if "budgeted" in config:
        assert found["drift"]["measured"] > 0 and found["applications"]["approximate"] > 0


@pytest.mark.slow
def test_a_file_of_requests_is_served_as_far_as_it_goes_and_then_on(tmp_path):
    path = tmp_path / "requests.jsonl"
    lines = [
        format_request(Request("a", 1.0, "delete", (5,))),
        "nonsense",
        format_request(Request("b", 2.0, "status", (5, 6))),
    ]
    path.write_text("\n".join(lines) + "\n" + lines[0][:10])
    arguments = ("--config.requests=requests.jsonl", "--config.check_scratch=False")
    result = good(serve(SISA, *arguments, cwd=tmp_path))
    assert "has no end and is not served" in result.stderr
    found = report_of(tmp_path, SISA)
    assert [found[name] for name in ("accepted", "answered", "refused")] == [1, 1, 1]
    assert found["exact"] is None
    answer = next(each for each in journal_of(tmp_path, SISA) if each["record"] == "answered")
    assert answer["answer"] == ["deleted", "present"]

    lines.append(format_request(Request("c", 3.0, "delete", (7, 8))))
    path.write_text("\n".join(lines) + "\n")
    good(serve(SISA, *arguments, cwd=tmp_path))
    assert report_of(tmp_path, SISA)["deleted_examples"] == 3

    lines[0] = format_request(Request("a", 1.0, "delete", (6,)))
    path.write_text("\n".join(lines) + "\n")
    message = last_line(serve(SISA, *arguments, cwd=tmp_path))
    assert "line 1 of the requests is not the one that was served" in message
    other = last_line(serve(SISA, *arguments, "--config.policy=batches(size=2)", cwd=tmp_path))
    assert "holds the results of another config" in other


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.requests=nowhere.jsonl", "cannot read the requests nowhere.jsonl"),
        # Each takes a process of its own.
        *[
            pytest.param(argument, message, marks=pytest.mark.slow)
            for argument, message in [
                ("--config.policy=never", "unknown policy 'never'"),
                (
                    "--config.policy=budgeted(method='taylor', threshold=2)",
                    "deletes exactly; choose immediately or batches",
                ),
                ("--config.mode=fast", "unknown mode 'fast'"),
                ("--config.service=both", "unknown service 'both'"),
                ("--config.stream=none", "unknown stream 'none'"),
                ("--config.request_key=nowhere", "cannot read the request key nowhere"),
                ("--config.aggregation=median", "unknown aggregation 'median'"),
                ("--config.gradient_seconds=inf", "must be finite, 0 or more"),
                ("--config.drift_every=-1", "drift_every must be a whole number"),
                ("--config.train_seeds=(0, 1)", "one seed in train_seeds"),
            ]
        ],
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, argument, message):
    assert message in one_line_error(serve(SISA, argument, cwd=tmp_path))


@pytest.mark.parametrize("config", [SISA, "serve_digits_budgeted.py"])
def test_a_journal_of_another_server_is_found_before_anything_is_trained(tmp_path, config):
    chosen = smoke_config(f"deletion/{config}")
    setting = serve_deletions.build_setting(chosen)
    rest = setting.policy, setting.test, setting.key
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        serve_deletions.compare(journal, setting)
        assert journal.records == []
        # One of the descriptions is that of the service itself.
        journal.begin(describe_server(setting.make([], None).describe(), *rest))
        serve_deletions.compare(journal, setting)
        for name, value in [
            ("epochs", chosen.epochs + 1),
            ("batch_size", 8),
            ("train_seeds", (1,)),
        ]:
            other = chosen.copy_and_resolve_references()
            other[name] = value
            with pytest.raises(InputError, match="another server: service differs"):
                serve_deletions.compare(journal, serve_deletions.build_setting(other))


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_a_deletion_that_changes_nothing_has_no_drift_and_stops_no_server(tmp_path, rate):
    chosen = smoke_config("deletion/serve_digits_budgeted.py")
    chosen.optimizer.learning_rate, chosen.drift_every = rate, 1
    setting = serve_deletions.build_setting(chosen)
    model, _ = setting.make([], None).approximately([3], "single_gradient")
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        found = serve_deletions._measure(chosen, setting, journal)(model, "approximate")
    assert ("drift" in found) == (rate > 0) and "test_accuracy" in found
