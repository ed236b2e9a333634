"""Every error is one line that says what to do, with its exit code, and with --json a document."""

import builtins
import json
import shutil
import sys

import numpy as np
import pytest
from made_commands import NAMES, made_files, run, task

import jaxspec as js
from jaxspec.applications import command
from jaxspec.applications.command.errors import CommandError, report


@pytest.fixture
def files():
    return made_files()


def refused(*arguments, code, says):
    """Run a command that must fail with one line that holds these words, in both forms."""
    result = run(*arguments, code=code)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("jaxspec: ")
    for words in says:
        assert words in lines[0], lines[0]
    assert result.stdout == ""
    result = run(*arguments, "--json", code=code)
    error = json.loads(result.stderr)["error"]
    assert error["exit_code"] == code
    assert result.stdout == ""
    return error


def test_missing_files_and_files_of_another_kind_are_refused_by_name(files, tmp_path):
    space, spec = files / "made.space.safetensors", files / "north.safetensors"
    output = tmp_path / "x"
    error = refused("inspect", tmp_path / "no.safetensors", code=3, says=["no.safetensors"])
    assert error["kind"] == "file"
    refused("match", files / "market.jax", tmp_path / "no.npz", code=3, says=["no.npz"])
    refused("match", spec, files / "mine.npz", code=3, says=["folder of a market"])
    refused("match", files / "market.jax", spec, code=3, says=["UserSpecification"])
    refused("inspect", files / "mine.npz", code=3, says=["mine.npz"])
    refused("specify", spec, files / "north.npz", "-o", output, code=3, says=["Space"])
    refused("market", "create", output, space, space, code=3, says=["Specification"])
    refused("market", "create", output, space, tmp_path, code=3, says=["Specification"])
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(files, tmp_path):
    data = bytearray((files / "north.safetensors").read_bytes())
    data[-5] ^= 255
    (tmp_path / "bad.safetensors").write_bytes(data)
    refused("inspect", tmp_path / "bad.safetensors", code=3, says=["checksum"])
    (tmp_path / "cut.npz").write_bytes((files / "mine.npz").read_bytes()[:90])
    ask = ["match", files / "market.jax"]
    refused(*ask, tmp_path / "cut.npz", code=3, says=["cut.npz", "damaged"])
    np.savez(tmp_path / "objects.npz", features=np.ones((3, 4)), labels=np.array(["a"] * 3, object))
    refused(*ask, tmp_path / "objects.npz", code=3, says=["never read", "dtype=str"])


TABLE = ["a,b,c,d,kind", "1,2,3,4,cat", "2,3,4,5,dog", "3,4,,6,cat"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("3,4,,6,cat", ["row 3", "'c'", "missing"]),
        ("3,4,NaN,6,cat", ["row 3", "'c'", "missing"]),
        ("3,4,inf,6,cat", ["row 3", "'c'", "finite"]),
        ("3,4,much,6,cat", ["row 3", "'c'", "'much'", "--ignore"]),
        ("3,4,5,6,", ["row 3", "'kind'", "label"]),
        ("3,4,5", ["row 3", "5 entries", "got 3"]),
    ],
)
def test_entries_of_a_table_that_cannot_be_used_are_named_by_row_and_column(
    files, tmp_path, row, says
):
    table = tmp_path / "t.csv"
    table.write_text("\n".join([*TABLE[:3], row]))
    refused("match", files / "market.jax", table, "--labels", "kind", code=3, says=says)


def test_labels_that_do_not_fit_are_explained(files, tmp_path):
    market = files / "market.jax"
    Z, labels = task(20, 0.9, 30)
    np.savez(tmp_path / "numbers.npz", features=Z, labels=labels)
    refused("match", market, tmp_path / "numbers.npz", code=3, says=["--class-names"])
    run("match", market, tmp_path / "numbers.npz", "--class-names", "bird,cat,dog")
    np.savez(tmp_path / "none.npz", features=Z)
    refused("match", market, tmp_path / "none.npz", code=3, says=["--labels"])
    np.savez(tmp_path / "strange.npz", features=Z, labels=np.array(NAMES)[labels])
    ask = ["match", market, tmp_path / "strange.npz", "--class-names"]
    refused(*ask, "bird,cat", code=3, says=["'dog'", "none of the classes"])
    refused(
        "match", market, files / "mine.csv", "--labels", "sort", code=2, says=["'sort'", "kind"]
    )
    np.savez(tmp_path / "wide.npz", features=Z[:, :3], labels=labels, class_names=NAMES)
    refused("match", market, tmp_path / "wide.npz", code=3, says=["wide.npz", "features"])


def test_wrong_use_has_exit_code_two(files, tmp_path):
    space, spec = files / "made.space.safetensors", files / "north.safetensors"
    market, data, output = files / "market.jax", files / "mine.npz", tmp_path / "x.safetensors"
    refused("match", market, data, "-k", 0, code=2, says=["-k"])
    refused("match", market, data, "--colour", code=2, says=["--colour", "match --help"])
    refused("match", market, code=2, says=["USER"])
    refused("match", market, data, "--explain", "nobody", code=2, says=["nobody"])
    refused("match", market, data, "--method", "luck", code=2, says=["--method", "luck"])
    refused("specify", space, data, code=2, says=["--output"])
    make = ["specify", space, data, "-o", output]
    refused(*make, "--about", "licence", code=2, says=["--about", "name=value"])
    refused(*make, "--user", "--about", "a=b", code=2, says=["--about", "--user"])
    refused(*make[:-1], spec, code=2, says=["exists", "--force"])
    refused(*make[:-1], spec / "below", code=2, says=["--output"])
    add = ["market", "create", tmp_path / "m", space, spec]
    refused(*add, "--id-from", "luck", code=2, says=["--id-from"])
    refused(*add, "--precision", "int3", code=2, says=["--precision"])
    shutil.copy(spec, tmp_path / "north.safetensors")
    refused(*add, tmp_path / "north.safetensors", code=2, says=["'north'", "--id-from path"])
    assert [one.name for one in tmp_path.iterdir()] == ["north.safetensors"]


def test_ids_that_are_taken_or_unknown_are_refused_and_nothing_changes(files, tmp_path):
    market = shutil.copytree(files / "market.jax", tmp_path / "market.jax")
    refused("market", "add", market, files / "north.safetensors", code=3, says=["'north'"])
    refused("market", "remove", market, "nobody", code=3, says=["'nobody'"])
    shutil.copy(files / "north.safetensors", tmp_path / "new.safetensors")
    refused("market", "update", market, tmp_path / "new.safetensors", code=3, says=["'new'"])
    assert len(js.Market.load(market)) == 3


def test_a_damaged_market_does_not_verify(files, tmp_path):
    market = shutil.copytree(files / "market.jax", tmp_path / "market.jax")
    largest = max(
        (one for one in market.rglob("*") if one.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 255
    largest.write_bytes(data)
    refused("market", "verify", market, code=3, says=["market.jax"])


def test_debug_prints_the_traceback(capsys):
    try:
        raise CommandError("it went wrong")
    except CommandError as error:
        assert report(error, ["match", "--debug"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("jaxspec: it went wrong\n")


def test_errors_of_no_known_kind_say_where_to_look(capsys):
    assert report(ZeroDivisionError("division by zero"), []) == 1
    assert "--debug" in capsys.readouterr().err
    assert report(KeyboardInterrupt(), []) == 130


def test_a_missing_extra_is_named(monkeypatch):
    for name in [one for one in sys.modules if one.startswith("jaxspec.applications.command.")]:
        monkeypatch.delitem(sys.modules, name)
    imports = builtins.__import__

    def without_typer(name, *rest, **options):
        if name.partition(".")[0] == "typer":
            raise ModuleNotFoundError("No module named 'typer'", name="typer")
        return imports(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_typer)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert "typer is not installed" in str(ended.value)
    assert "jaxspec-learnware[command]" in str(ended.value)
