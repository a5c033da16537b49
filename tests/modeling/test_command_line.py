"""The design of the three command lines, on a small one."""

import argparse
import errno
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from modeling_siglip_ext.command_line import Parser, Switch, add_command, command_line, main, underscored


ERRORS = {
    "value": ValueError("two\nlines"),
    "file": FileNotFoundError("no such folder"),
    "import": ImportError("install siglip-ext[eval]"),
    "full": OSError(errno.ENOSPC, "No space left on device", "out/model"),
}


def run(arguments: argparse.Namespace) -> int | None:
    if arguments.fail is not None:
        raise ERRORS[arguments.fail]
    print(vars(arguments)["output_dir"], arguments.batch_size, arguments.words)
    return arguments.status


def register(commands) -> None:
    parser = add_command(commands, "from-jax", run, summary="Does it.", examples="example:\n  prog from-jax x")
    parser.add_argument("words", nargs="*", help="anything")
    parser.add_argument("--output_dir", default="out", help="folder")
    parser.add_argument("--batch_size", type=int, default=8, help="inputs at once")
    parser.add_argument("--fail", choices=ERRORS)
    parser.add_argument("--status", type=int, help="returned")
    add_command(commands, "to-jax", run, summary="Undoes it.", description="Undoes it, at length.")


@pytest.fixture
def tool():
    parser = command_line("siglip-ext-tool", "What it is for.", [SimpleNamespace(register=register)])
    return lambda *words: main(parser, words)


def refused(tool, capsys, *words: str) -> str:
    """What is said of bad input: one line, after which the status is 2."""
    with pytest.raises(SystemExit) as stop:
        tool(*words)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.startswith("siglip-ext-tool: error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["from-jax", "--output_dri", "x"], "unknown option '--output_dri': did you mean '--output_dir'?"),
        (["--verson"], "unknown option '--verson': did you mean '--version'?"),
        (["from-jax", "--batch-sise=3"], "unknown option '--batch_sise=3': did you mean '--batch_size'?"),
        (["from-jax", "--zzzzzz"], "unknown option '--zzzzzz'; known: --help, --output_dir, --batch_size"),
        (["from-jax", "--output", "x"], "unknown option '--output'"),  # no abbreviations
        (["to-jax", "stray"], "unknown argument 'stray'"),
        (["from-jx"], "unknown command 'from-jx': did you mean 'from-jax'?"),
        (["zzzzzz"], "unknown command 'zzzzzz'; known: from-jax, to-jax"),
        (["from-jax", "--batch_size", "many"], "--batch_size: invalid int value: 'many'"),
        (["from-jax", "--batch_size"], "--batch_size: expected one argument"),
        (["from-jax", "--fail", "never"], "--fail: invalid choice: 'never'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_words_are_one_line_and_status_2(tool, capsys, words, message):
    assert message in refused(tool, capsys, *words)


@pytest.mark.parametrize("name", ["--output-dir", "--output_dir"])
def test_dashes_and_underscores_are_the_same_and_values_keep_theirs(tool, capsys, name):
    assert tool("from-jax", f"{name}=a-b/c_d", "--batch-size", "3", "one-word") == 0
    assert tool("from-jax", name, "a-b/c_d", "--batch_size=3", "one-word") == 0
    assert capsys.readouterr().out == "a-b/c_d 3 ['one-word']\n" * 2


def test_only_names_of_options_change():
    words = ["from-jax", "--a-b=c-d", "-x-y", "e-f", "--g-h", "i-j", "--", "--k-l"]
    assert underscored(words) == ["from-jax", "--a_b=c-d", "-x-y", "e-f", "--g_h", "i-j", "--", "--k-l"]


def test_the_version_is_the_distributions(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        tool("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"siglip-ext-tool {version('siglip-ext')}\n"


def test_the_version_stands_once():
    import modeling_siglip_ext

    assert modeling_siglip_ext.__version__ == version("siglip-ext")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("value", "two lines"),
        ("file", "no such folder"),
        ("import", "install siglip-ext[eval]"),
        ("full", "the disk is full: [Errno 28] No space left on device: 'out/model'"),
    ],
)
def test_what_a_command_refuses_is_one_line_and_status_2(tool, capsys, kind, message):
    assert tool("from-jax", "--fail", kind) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"siglip-ext-tool: error: {message}\n")


def test_a_fault_of_the_program_is_not_hidden(tool, monkeypatch):
    monkeypatch.setitem(ERRORS, "value", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        tool("from-jax", "--fail", "value")


def test_a_command_chooses_its_status(tool):
    assert tool("from-jax", "--status", "1") == 1
    assert tool("from-jax") == 0


def test_help_says_defaults_and_leaves_examples_as_they_are(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        tool("from-jax", "--help")
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert "inputs at once (default: 8)" in said
    assert "returned (default" not in said
    assert "example:\n  prog from-jax x" in said


def test_words_are_those_of_the_process_by_default(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["prog", "from-jax", "--output-dir", "here"])
    assert main(command_line("tool", "", [SimpleNamespace(register=register)])) == 0
    assert capsys.readouterr().out.startswith("here 8")


@pytest.mark.parametrize(("word", "value"), [("--trim_it", True), ("--no_trim_it", False), ("--no-trim-it", False)])
def test_a_switch_is_taken_with_dashes_and_underscores(word, value):
    parser = Parser(prog="tool")
    parser.add_argument("--trim_it", action=Switch)
    assert parser.parse_args(underscored([word])).trim_it is value
    assert "--no_trim_it" in parser.format_help()
