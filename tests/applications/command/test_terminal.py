"""Terminals of any width, colours, pipes, completion, interrupts, and answers without jax."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from made_commands import made_files, run

from jaxspec.applications.command.output import Answer, console_for, plain, table
from jaxspec.applications.command.progress import Stages
from jaxspec.applications.command.session import _print


@pytest.fixture
def files():
    return made_files()


ROOT = Path(__file__).resolve().parents[3]
ESCAPE = "\x1b"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def start(*arguments, **options):
    """Start the command in a process of its own, as the installed script does."""
    code = (
        "import signal, sys; sys.argv[0] = 'jaxspec'\n"
        # Where the tests run in the background, children would ignore interrupts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from jaxspec.applications.command import main\n"
        "try:\n    main()\n"
        "finally:\n    print('jax imported:', 'jax' in sys.modules, file=sys.stderr)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize("width", [60, 100, 200])
def test_tables_fit_the_width_and_ids_stay_complete(files, width):
    env = {"COLUMNS": str(width)}
    for one in (
        ["match", files / "market.jax", files / "mine.npz", "--explain", "east"],
        ["market", "list", files / "market.jax"],
        ["market", "info", files / "market.jax"],
        ["inspect", files / "north.safetensors"],
    ):
        printed = run(*one, env=env).stdout
        lines = printed.splitlines()
        assert max(map(len, lines)) <= width, (one, max(lines, key=len))
        if one[0] == "match":
            assert all(re.search(rf"\b{name}\b", printed) for name in ("north", "east", "south"))


def test_a_long_id_is_folded_in_a_narrow_terminal_and_never_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = "".join(chr(97 + i % 26) for i in range(90))
    stream = Terminal()
    rows = [(1, name, "0.123", "0.1234", "3 of 3")]
    headings = [("rank", "right"), ("learnware", "left"), ("score", "right"), ("MMD^2", "right")]
    console_for(stream).print(table([*headings, ("classes", "left")], rows, fold=1))
    lines = re.sub(rf"{ESCAPE}\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60
    assert name in "".join(re.findall(r"[a-z]{10,}", "\n".join(lines[2:])))
    assert "0.1234" in lines[2]


def test_no_color_means_no_escape_sequences(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for setting, escaped in ((None, True), ("1", False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if setting:
            monkeypatch.setenv("NO_COLOR", setting)
        stream = Terminal()
        console_for(stream).print(table([("rank", "right")], [(1,)]))
        assert (ESCAPE in stream.getvalue()) is escaped


def test_nothing_in_a_file_steers_the_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    console_for(stream).print(table([("id", "left")], [("\x1b[31m[bold]evil\n",)], fold=0))
    assert ESCAPE not in stream.getvalue()
    assert "\\x1b[31m[bold]evil\\n" in stream.getvalue()


def test_a_pipe_gets_lines_of_any_length_without_spaces_at_their_ends(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)

    def render(console):
        console.print(table([("id", "left"), ("n", "right")], [("x" * 300, 1), ("y", 2)], fold=0))
        console.print(plain("- " + "words " * 50 + "end"))

    _print(Answer({}, render), [], as_json=False, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "x" * 300 in lines[2]
    assert not [line for line in lines if line != line.rstrip()]


def test_completion_knows_commands_and_options():
    def completed(words):
        env = {
            "_JAXSPEC_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        return run(env=env).stdout.split()

    assert set(completed("jaxspec market ")) >= {"create", "add", "list", "rollback"}
    assert sorted(completed("jaxspec ma")) == ["market", "match"]
    assert "--explain" in completed("jaxspec match --ex")
    script = run(env={"_JAXSPEC_COMPLETE": "source_bash"}).stdout
    assert "complete -o default -F _jaxspec_completion jaxspec" in script


def test_every_command_has_examples_in_its_help():
    for one in (
        *(["space", name] for name in ("create", "show")),
        *(["market", name] for name in ("create", "add", "update", "remove", "list", "info")),
        *(["market", name] for name in ("verify", "history", "rollback", "compact")),
        *([name] for name in ("specify", "inspect", "match", "batch", "demo")),
        ["index", "build"],
    ):
        printed = run(*one, "--help").stdout
        assert f"Examples:\n    jaxspec {' '.join(one)}" in printed or one[-1] == "rollback"
        assert f"    jaxspec {' '.join(one)}" in printed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["match", "--no-such-option"], 2),
        (["match", "no-market", "no-user.npz"], 3),
        (["space", "create", "n", "no-file.npz", "-o", "x"], 3),
    ],
)
def test_help_and_wrong_arguments_are_answered_without_jax(arguments, code, tmp_path):
    process = start(*arguments, cwd=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "jax imported: False" in errors
    assert "Traceback" not in errors


def test_the_library_is_complete_in_the_process_of_the_command():
    code = (
        "import sys; sys.argv[0] = 'jaxspec'\n"
        "import jaxspec as js\n"
        "assert 'jax' not in sys.modules\n"
        "assert callable(js.specify) and callable(js.match) and js.stream.__name__\n"
        "from jaxspec import *\n"
        "assert set(js.__all__) <= set(vars(js)), set(js.__all__) - set(vars(js))\n"
        "assert not hasattr(js, 'nothing_of_this_name')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_an_interrupt_ends_with_130_and_leaves_no_file(files, tmp_path):
    process = start(
        "specify", files / "made.space.safetensors", files / "north.npz",
        "-o", tmp_path / "new.safetensors", "--progress",
    )  # fmt: skip
    stopper = threading.Timer(90, process.kill)
    stopper.start()
    try:
        for line in process.stderr:
            if "Specifying" in line:
                process.send_signal(signal.SIGINT)
                break
        printed, errors = process.communicate(timeout=60)
    finally:
        stopper.cancel()
    assert process.returncode == 130, errors
    assert "jaxspec: interrupted" in errors
    assert "Traceback" not in errors
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_ends_the_command_without_a_traceback(files):
    process = start("space", "show", files / "made.space.safetensors")
    process.stdout.close()  # as `| head -1` does
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert errors == "jax imported: True\n"


def test_progress_is_printed_in_a_pipe_only_if_asked_for(capsys):
    for shown, lines in ((None, []), (False, []), (True, ["jaxspec: Counting"])):
        stages = Stages(shown)
        with stages.stage("Counting") as advance:
            advance(1, 2)
        stages.close()
        assert capsys.readouterr().err.splitlines() == lines


def test_progress_in_a_terminal_shows_what_is_done_and_is_removed(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("jaxspec.applications.command.progress.DELAY_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    stages = Stages(None)
    with stages.stage("Counting learnwares") as advance:
        stages._timer.join()
        advance(3, 7)
        stages._display.refresh()
    stages.close()
    assert "Counting" in stream.getvalue()
    assert "3/7" in stream.getvalue()
    assert stream.getvalue().endswith(f"{ESCAPE}[2K{ESCAPE}[?25h\r")  # erased; a cursor again
