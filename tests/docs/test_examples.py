"""The examples run as a reader would run them, and recommend a model close to the best."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
LINE = re.compile(
    r"^user .*: recommended .*, right on ([\d.]+)% of \d+ \w+; best .*, ([\d.]+)%; "
    r"average ([\d.]+)%$"
)
WITHIN = 3.0  # points of accuracy between the recommended and the best model


@pytest.mark.parametrize("name", ["scikit_learn_table", "text_embeddings", "flax_pictures"])
def test_an_example_recommends_a_model_close_to_the_best_and_far_above_the_average(name, capsys):
    pytest.importorskip("sklearn")
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Market(")
    lines = [LINE.match(line) for line in printed[1:]]
    assert len(lines) >= 3
    assert all(lines), printed
    recommended, best, average = np.array([line.groups() for line in lines], float).T
    assert (recommended >= best - WITHIN).all()
    assert (recommended > average).all()
    assert (recommended - average).mean() >= 5


def test_every_example_is_run_by_the_test_above():
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {"scikit_learn_table", "text_embeddings", "flax_pictures"}
