"""`siglip-ext-eval`: the evaluations of the SigLIP papers, and embeddings for search."""

import sys
from collections.abc import Sequence

from modeling_siglip_ext.command_line import command_line
from modeling_siglip_ext.command_line import main as run_command
from modeling_siglip_ext.memory import keep_freed_memory

from .commands import caption, card, duplicates, embed, locate, probe, report, retrieval, threshold, zero_shot


COMMANDS = (zero_shot, retrieval, probe, threshold, caption, locate, embed, duplicates, card, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = command_line(
        "siglip-ext-eval",
        "The evaluations of the SigLIP papers, and embeddings for search.",
        COMMANDS,
        epilog="Under torchrun the processes share the inputs. A run that was stopped goes on where it was.",
    )
    if argv is None:  # a process of its own
        keep_freed_memory()
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
