"""The main script as a user runs it: smoke runs, overrides, and what it says about mistakes."""

import importlib.util
import json
import re

import pytest
from run_script import ROOT, run_script

CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
DATASETS = {
    "cifar10": ("cifar10", "3.0.2"),
    "cifar10_resnet18": ("cifar10", "3.0.2"),
    "cifar100": ("cifar100", "3.0.2"),
    "fashion_mnist": ("fashion_mnist", "3.0.1"),
    "imdb": ("imdb_reviews/plain_text", "1.0.0"),
}


def unlearn(*arguments, cwd, data_dir="nowhere", timeout=300):
    return run_script("unlearn.py", None, *arguments, cwd=cwd, data_dir=data_dir, timeout=timeout)


def config_path(name):
    return f"--config={ROOT / 'configs' / name}"


def check_workdir(workdir):
    config = json.loads((workdir / "config.json").read_text())
    rows = [json.loads(line) for line in (workdir / "records.jsonl").read_text().splitlines()]
    assert {"original", "retrain", "retrain_vs_retrain"} <= {row["method"] for row in rows}
    keys = (
        "experiment dataset model forget forget_size method hyperparameters train_seed method_seed "
        "metric split value cost_ratio_gradients cost_ratio_seconds"
    )
    assert all(set(keys.split()) <= set(row) for row in rows)
    for name in ("report.md", "report.html", "figures/scoreboard.png"):
        assert (workdir / name).stat().st_size > 1000
    return config, rows


def test_digits_smoke_run_and_its_repetition(tmp_path):
    first = unlearn(config_path("digits.py:smoke"), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "report: runs/digits-smoke/report.html" in first.stdout
    workdir = tmp_path / "runs" / "digits-smoke"
    _, rows = check_workdir(workdir)
    second = unlearn(config_path("digits.py:smoke"), cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    # Everything came from the store, seconds included: the same rows to the last digit.
    assert check_workdir(workdir)[1] == rows


def test_another_optimiser(tmp_path):
    result = unlearn(
        config_path("digits.py:smoke"),
        "--config.optimizer.name=adamw",
        "--config.optimizer.learning_rate=0.003",
        "--config.optimizer.eps_root=1e-8",
        "--config.optimizer.weight_decay=0.01",
        "--config.methods=('taylor(order=1)','single_gradient')",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    _, rows = check_workdir(tmp_path / "runs" / "digits-smoke")
    errors = {
        method: [
            row["value"]
            for row in rows
            if row["method"] == method and row["metric"] == "relative_verification_error"
        ]
        for method in ("taylor", "single_gradient")
    }
    assert len(errors["taylor"]) == 2 and None not in errors["taylor"]
    assert errors["single_gradient"] == [None, None]  # refused: not plain sgd


def test_overrides_reach_the_run(tmp_path):
    result = unlearn(
        config_path("digits.py:smoke"),
        "--config.epochs=1",
        "--config.forget=class(label=3)",
        "--config.methods=('taylor(order=1)',)",
        f"--workdir={tmp_path / 'elsewhere'}",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    config, rows = check_workdir(tmp_path / "elsewhere")
    assert config["epochs"] == 1
    assert {row["forget"] for row in rows} == {"class(label=3)"}


MISTAKES = {
    "unknown field": (["--config.epoch=3"], "epoch"),
    "wrong type": (["--config.epochs=many"], "epochs"),
    "unknown method": (["--config.methods=('tailor',)"], "unknown method 'tailor'"),
    "unknown dataset": (["--config.dataset=mnits()"], "mnits"),
    "unknown model": (["--config.model=resnet()"], "unknown model"),
    "unknown option": (["--config.model=mlp(width=3)"], "width"),
    "id out of range": (["--config.forget=ids(ids=(5000,))"], "id 5000"),
    "repeated id": (["--config.forget=ids(ids=(5,5))"], "id 5 .*twice"),
    "no id": (["--config.forget=ids(ids=())"], "at least one example"),
    "everything": (["--config.forget=random(fraction=1.0)"], "every|all"),
    "missing data": (["--config.dataset=cifar10()"], "download_and_prepare"),
    "unknown schedule": (["--config.optimizer.schedule=step"], "unknown schedule"),
    "wrong hyper-parameter": (["--config.methods=('taylor(order=1.5)',)"], "whole number"),
    "wrong option type": (["--config.model=mlp(hidden=5)"], "does not work"),
    "unknown corruption option": (["--config.corruption=mislabel(foo=1)"], "foo"),
    "unknown optimiser": (["--config.optimizer.name=sdg"], "sdg"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, mistake):
    arguments, message = MISTAKES[mistake]
    result = unlearn(config_path("digits.py:smoke"), *arguments, cwd=tmp_path)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert len(last) < 500
    assert not (tmp_path / "runs" / "digits-smoke").exists()


def test_a_workdir_of_another_config_is_refused(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text("{}")
    result = unlearn(config_path("digits.py:smoke"), f"--workdir={tmp_path / 'w'}", cwd=tmp_path)
    assert result.returncode != 0
    assert "another config" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "w" / "records.jsonl").exists()


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = unlearn(
        config_path("digits.py:smoke"), f"--workdir={tmp_path / 'file' / 'w'}", cwd=tmp_path
    )
    assert result.returncode != 0
    assert "choose another --workdir" in result.stderr and "Traceback" not in result.stderr


def test_help_says_what_the_script_does(tmp_path):
    result = unlearn("--help", cwd=tmp_path)
    assert "--config=configs/digits.py" in result.stdout
    assert "runs/<config name>" in result.stdout


def load_config(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_state_their_command_and_have_a_smoke_form(path):
    module = load_config(path)
    commands = [
        line for line in module.__doc__.splitlines() if line.startswith("python experiments/")
    ]
    assert len(commands) == 1
    assert f"--config={path.relative_to(ROOT)}" in commands[0]
    assert "minute" in module.__doc__ or "second" in module.__doc__
    assert set(module.get_config("smoke")) == set(module.get_config())
    with pytest.raises(ValueError, match="unknown variant"):
        module.get_config("nonsense")


@pytest.mark.parametrize(
    "name",
    # The first stands for the other images.
    [
        name if name in ("cifar10", "imdb") else pytest.param(name, marks=pytest.mark.slow)
        for name in DATASETS
    ],
)
def test_real_data_smoke(tmp_path, name, real_data_dir):
    folder = real_data_dir(*DATASETS[name]).resolve()
    result = unlearn(config_path(f"{name}.py:smoke"), cwd=tmp_path, data_dir=folder)
    assert result.returncode == 0, result.stderr
    check_workdir(tmp_path / "runs" / f"{name}-smoke")
