"""`siglip-ext-serve`: a model behind HTTP."""

import sys
from collections.abc import Sequence

from modeling_siglip_ext.command_line import Parser, say


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit status."""
    parser = Parser(prog="siglip-ext-serve", description="Serve a SigLIP-family model over HTTP.")
    parser.parse_args(argv)
    return say(parser.prog, "not built yet")


if __name__ == "__main__":
    sys.exit(main())
