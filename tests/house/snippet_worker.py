"""Run snippets one after the other, each in a fork of this process, which has imported everything once.

A fork begins as a process that has just been started: nothing but imports has happened here. Our own commands are
called by their entry points; what else a line of bash says is left to bash.

Usage: snippet_worker.py < SNIPPETS, a JSON list of [language, code]
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import modeling_siglip_ext.conversion.__main__
import modeling_siglip_ext.evaluation.__main__
import modeling_siglip_ext.training.__main__  # noqa: F401 - all before the forks


COMMANDS = {entry.name: entry for entry in entry_points(group="console_scripts")}
FOR_BASH = set("|&;<>$`")  # more than a command and its words


def in_a_fork(run: Callable[[], int | None]) -> None:
    """Ends this process, too, if the fork does not end well."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = run()
        sys.stdout.flush()
        os._exit(code or 0)  # taking all that was imported to pieces takes two seconds
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        sys.exit(f"ended with status {status}")


def call(words: list[str]) -> int | None:
    sys.argv = words
    return COMMANDS[words[0]].load()(words[1:])


def run_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    print(f"$ {line}", flush=True)
    if words[0].startswith("siglip-ext-") and not FOR_BASH & set(line):
        in_a_fork(lambda: call(words))
    else:
        subprocess.run(["bash", "-euc", line], check=True)


def of_one_shell(code: str) -> bool:
    """Whether lines belong together: one that goes on in the next, or starts what the next speak of."""
    return any(line.rstrip().endswith(("&", "|")) for line in code.splitlines())


def main() -> None:
    for language, code in json.load(sys.stdin):
        if language == "bash" and of_one_shell(code):
            subprocess.run(["bash", "-euc", code], check=True)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run_line(line)
        else:
            print(code, flush=True)
            in_a_fork(lambda code=code: exec(code, {"__name__": "__main__"}))


if __name__ == "__main__":
    main()
