"""Converts one checkpoint into several folders, one import for all; prints the exit statuses.

python worker_targets.py CHECKPOINT FOLDER...
"""

import sys

from modeling_siglip_ext.conversion.__main__ import main


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        print(main(["from-jax", sys.argv[1], folder]), flush=True)
