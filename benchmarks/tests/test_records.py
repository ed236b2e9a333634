"""Records of measurements: they name commit, machine and jax version, and keep earlier cases."""

import json

import jax
import numpy as np

from benchmarks import records


def test_a_record_names_commit_machine_and_jax_version(tmp_path):
    path = tmp_path / "new folder" / "record.json"
    records.write_record(path, {"figure": np.float32(0.5)})
    found = json.loads(path.read_text())
    assert found["machine"]["jax"] == jax.__version__
    assert found["machine"]["processor"]
    assert isinstance(found["commit"], str)
    assert found["figure"] == 0.5


def test_cases_of_earlier_runs_stay_with_their_commit(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    monkeypatch.setattr(records, "commit", lambda: "first")
    records.merge_results(path, {"a": 1, "b": 2})
    monkeypatch.setattr(records, "commit", lambda: "second")
    records.merge_results(path, {"b": 3}, settings={"quick": True})
    found = json.loads(path.read_text())
    assert found["results"] == {"a": 1, "b": 3}
    assert found["commits"] == {"a": "first", "b": "second"}
    assert found["settings"] == {"quick": True}


def test_tables_are_markdown_with_aligned_columns(capsys):
    records.print_table("title", ["name", "value"], [["x", 1234], ["long", None], ["y", 0.12345]])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "title"
    assert {len(line) for line in lines[2:]} == {len(lines[2])}
    assert "1,234" in lines[4]
    assert "0.123" in lines[6]


def test_milliseconds_have_three_digits_or_more():
    assert records.milliseconds(None) is None
    assert records.milliseconds(0.0012345) == "1.234"
    assert records.milliseconds(1.5) == "1,500.0"
