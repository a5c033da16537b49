"""The one design of the three command lines: a file a command, one line and exit status 2 for bad input.

A command is a module with `register(commands)`, which adds its parser with `add_command`, and `run(arguments)`, which
does the work and returns the exit status (None is 0). Options are declared with underscores and taken with dashes too.
"""

import argparse
import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import dropwhile
from typing import Any, NoReturn, Protocol


Run = Callable[[argparse.Namespace], int | None]
Subparsers = argparse._SubParsersAction
BAD_INPUT = 2
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large",
}


class Command(Protocol):
    """A module that is a command."""

    def register(self, commands: Subparsers) -> None: ...


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Leaves examples as they are written, and says defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or isinstance(action.default, bool) or action.nargs == 0
        return action.help if plain else super()._get_help_string(action)


class Switch(argparse.BooleanOptionalAction):
    """`--name` and `--no_name`; argparse's own says `--no-name`, and knows no other."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.option_strings = underscored(self.option_strings)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not (option_string or "").startswith("--no_"))


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and names the nearest of what it knows for what it does not."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": HelpFormatter, **kwargs})

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            owner = getattr(parsed, "parser", self)
            options = [option for action in owner._actions for option in action.option_strings]
            self.error(unknown_word(unknown[0], options, "argument" if not unknown[0].startswith("-") else "option"))
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, Subparsers) and value not in action.choices:
            raise argparse.ArgumentError(None, unknown_word(value, action.choices, "command"))
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog.split()[0]}: error: {message}\n")


def unknown_word(word: str, known: Iterable[str], kind: str) -> str:
    """What to say of a word that is none of the known ones: the nearest one, or all of them."""
    names = [name for name in known if not name.startswith("-") or name.startswith("--")]
    near = difflib.get_close_matches(word.partition("=")[0], names, n=1)
    if near:
        return f"unknown {kind} {word!r}: did you mean {near[0]!r}?"
    return f"unknown {kind} {word!r}" + ("" if kind == "argument" else f"; known: {', '.join(names)}")


def refuse_unused(arguments: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Options that somebody gave and nothing reads are no more ignored in silence than mistyped ones.

    Args:
        names: of options that are None unless given.
        why: in words that follow "has no effect".

    Raises:
        ValueError: one was given.
    """
    for name in names:
        if getattr(arguments, name, None) is not None:
            raise ValueError(f"--{name} has no effect {why}: leave it out")


def underscored(words: Iterable[str]) -> list[str]:
    """Words of a command line with the names of options in underscores: `--max-steps=3` is `--max_steps=3`."""
    result, options = [], True
    for word in words:
        options = options and word != "--"
        name, equals, value = word.partition("=")
        result.append(name[:2] + name[2:].replace("-", "_") + equals + value if options and word[:2] == "--" else word)
    return result


def add_command(
    commands: Subparsers, name: str, run: Run, *, summary: str, description: str | None = None, examples: str = ""
) -> Parser:
    """A new command; its parser, to be given arguments.

    Args:
        commands: what `register` is given.
        name: with dashes.
        run: called with the arguments; returns the exit status, None for 0.
        summary: one line for the list of commands.
        description: for its own help; the summary where it is not given.
        examples: below the arguments.
    """
    parser = commands.add_parser(name, help=summary, description=description or summary, epilog=examples)
    parser.set_defaults(run=run, parser=parser)
    return parser


def command_line(prog: str, description: str, commands: Iterable[Command], epilog: str = "") -> Parser:
    """The parser of a command line with its commands and `--version`."""
    parser = Parser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('siglip-ext')}")
    registered = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands:
        command.register(registered)
    return parser


def say(prog: str, message: object, status: int = BAD_INPUT) -> int:
    """Say in one line what was wrong; returns the exit status."""
    print(f"{prog}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return status


def refused(prog: str, error: Exception) -> int:
    """`say` what an error says, and what a full disk means."""
    what = DISK.get(error.errno or 0) if isinstance(error, OSError) else None
    message = of_worker(str(error))
    return say(prog, message if what is None else f"{what}: {message}")


def of_worker(message: str) -> str:
    """What was raised in a worker of a DataLoader, without the traceback that torch puts before it."""
    _, traceback, rest = message.rpartition("Traceback (most recent call last):\n")
    if not traceback or not message.startswith("Caught "):
        return message
    lines = dropwhile(lambda line: line.startswith(" "), rest.split("\n"))
    return "\n".join(lines).partition(": ")[2]


def main(parser: Parser, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the command that they name; returns the exit status.

    What the user caused is one line on stderr and status 2.
    """
    words = underscored(sys.argv[1:] if argv is None else argv)
    if words and words[0].startswith("-") and words[0] not in parser._option_string_actions:
        parser.error(unknown_word(words[0], parser._option_string_actions, "option"))
    arguments = parser.parse_args(words)
    try:
        return arguments.run(arguments) or 0
    except (OSError, ValueError, ImportError) as error:
        return refused(parser.prog, error)
