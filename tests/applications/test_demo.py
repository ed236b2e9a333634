"""The demo and the command, on a market that is small enough for every run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxspec.applications import demo
from jaxspec.applications.command.output import cannot_write
from jaxspec.applications.demo_data import load_fashion_contexts
from jaxspec.applications.heads import direct_accuracy, hidden_features, predict, train_heads
from jaxspec.applications.scenario import draw_market
from jaxspec.matching import match

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data():
    return load_fashion_contexts()


@pytest.fixture(scope="module")
def draw(data):
    """Two developers and users in each of the eleven contexts, with few pictures."""
    rng = np.random.default_rng(0)
    names = (data.class_names, data.context_names)
    return draw_market(data.labels, data.contexts, *names, rng, developer_size=200, test_size=300)


def test_nobody_tests_on_labelled_examples_and_the_probe_is_nobodys(draw):
    for user in (*draw.users, *draw.strangers):
        assert not set(user.rows) & set(user.test_rows)
    taken = set()
    for one in (*draw.developers, *draw.users, *draw.strangers):
        taken |= set(one.rows)
    assert not set(draw.probe_rows) & taken


def test_label_spaces_of_developers_overlap_and_strangers_share_no_group(draw):
    first, second = (set(one.space.names) for one in draw.developers[:2])
    assert 0 < len(first & second) < len(first)
    assert not set(draw.strangers[0].space.names) & (first | second)


def test_a_user_with_ten_examples_per_class_finds_a_model_better_than_the_average(data, draw):
    parameters = train_heads(data.features, draw.developers, epochs=6)
    space = demo.make_space(data.features, draw.probe_rows)
    specs = demo.specify_developers(space, draw, parameters, data.features)
    market = demo.Market(space, specs)
    users = demo.make_users(space, draw.users[:6], data.features)
    found = match(market, users)
    gains = []
    for user, answer in zip(draw.users, found, strict=False):
        accuracy = {}
        for model, developer in enumerate(draw.developers):
            chances = predict(parameters, model, data.features[user.test_rows])
            right = direct_accuracy(
                chances, developer.space.names, user.test_labels, user.space.names
            )
            accuracy[developer.name] = right.mean()
        best = answer.top_k(1)[0][0]
        gains.append(accuracy[best] - np.mean(list(accuracy.values())))
        assert accuracy[best] > max(accuracy.values()) - 0.05
    assert np.mean(gains) > 0.2


def test_probabilities_of_a_head_follow_from_its_hidden_features(data, draw):
    parameters = train_heads(data.features, draw.developers[:2], epochs=1)
    rows = data.features[:50]
    hidden = hidden_features(parameters, 1, rows)
    last = parameters["params"]["layers_3"]
    logits = hidden @ np.asarray(last["kernel"][1]) + np.asarray(last["bias"][1])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predict(parameters, 1, rows), expected, atol=1e-5)


def run_command(*arguments, cwd):
    code = "from jaxspec.applications.command import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100"},
    )


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run_command("demo", "--output", "file/inside", cwd=tmp_path)
    assert done.returncode == 2
    assert "--output" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Training" not in done.stdout


def test_wrong_arguments_end_with_status_two_and_one_message(tmp_path):
    done = run_command("demo", "--user", "40", cwd=tmp_path)
    assert done.returncode == 2
    assert "--user" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_folder_is_reported_in_words(tmp_path):
    assert cannot_write(tmp_path / "new") == ""
    (tmp_path / "file").write_text("")
    assert "file" in cannot_write(tmp_path / "file")


def test_the_package_is_found_from_the_parent_folder_of_the_checkout(tmp_path):
    """A folder `jaxspec` without an `__init__` must not hide the installed package.

    An editable install is a path entry (`pyproject.toml`), which comes after the current folder,
    and a regular package wins over a folder without `__init__` wherever it stands in the path.
    """
    (tmp_path / "jaxspec").mkdir()
    code = "import jaxspec; print(jaxspec.Gaussian.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "Gaussian", done.stderr
