"""`siglip-ext-serve`: a model behind HTTP."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from modeling_siglip_ext.command_line import Parser, Switch
from modeling_siglip_ext.command_line import main as run_command

from .settings import MIB, EncoderSettings, Limits, ServerSettings


PROG = "siglip-ext-serve"
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def make_parser() -> Parser:
    defaults, limits = EncoderSettings(""), Limits()
    parser = Parser(
        prog=PROG,
        description="Serve embeddings and labels of images and texts over HTTP, in OpenAI's shape.",
        epilog="It listens on this machine only unless --host says otherwise. It prints its address when it is ready.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('siglip-ext')}")
    parser.add_argument("model", metavar="MODEL", help="name on the Hub, or a folder")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that the model brings")
    parser.add_argument("--served_name", help="the model's name for clients; MODEL by default")
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on")
    where.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    where.add_argument("--device", help="where to compute, or several with commas between; the accelerator if any")
    where.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=defaults.dtype)
    where.add_argument("--backend", choices=("onnx", "openvino", "aoti"), help="of an exported MODEL, on the CPU")
    where.add_argument("--workers", type=int, default=1, help="processes a device: on a GPU, 2 keep it busy")
    batches = parser.add_argument_group("batches")
    text = "images in a batch; texts come twice as many (default: 32; on a CPU, where batches gain little, 16)"
    batches.add_argument("--max_batch", type=int, help=text)
    batches.add_argument("--max_queue", type=int, default=limits.queue, help="items that may wait; then comes a 429")
    batches.add_argument("--max_num_patches", type=int, help="for NaFlex: patches of an image")
    batches.add_argument("--upscale", action=Switch, default=True, help="for NaFlex: enlarge small images")
    batches.add_argument("--batch_tokens", type=int, help="for NaFlex: patches in one forward pass")
    guarded = parser.add_argument_group("what it takes")
    guarded.add_argument("--api_key_file", type=Path, help="keys, one a line, one of which a request must have")
    guarded.add_argument("--label_sets", type=Path, help='JSON of label sets by name: {"animals": ["cat", "dog"]}')
    guarded.add_argument("--allow_urls", action="store_true", help="fetch images, from public addresses only")
    guarded.add_argument("--max_body", type=float, default=limits.body / MIB, help="MiB of a request")
    guarded.add_argument("--max_pixels", type=int, default=defaults.max_pixels, help="of an image")
    guarded.add_argument("--max_items", type=int, default=limits.items, help="texts and images of a request")
    guarded.add_argument("--max_labels", type=int, default=limits.labels, help="of a request, times templates")
    guarded.add_argument("--shutdown_seconds", type=int, default=300, help="to finish what was accepted")
    return parser


def read_keys(path: Path | None) -> tuple[bytes, ...]:
    """
    Raises:
        OSError: the file cannot be read.
        ValueError: there is no key in it.
    """
    if path is None:
        return ()
    keys = tuple(line.strip() for line in path.read_bytes().splitlines() if line.strip())
    if not keys:
        raise ValueError(f"--api_key_file {path} has no key in it: write one a line")
    return keys


def check_positive(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name} {value} must be positive")


def settings_of(arguments: argparse.Namespace) -> ServerSettings:
    """
    Raises:
        OSError, ValueError: a file that cannot be read, or a number that cannot be.
    """
    from .labels import read_label_sets  # needs what `run` has looked for

    given = arguments
    check_positive(given, ("workers", "max_batch", "max_queue", "max_num_patches", "batch_tokens", "max_body"))
    check_positive(given, ("max_pixels", "max_items", "max_labels", "shutdown_seconds"))
    if not 0 <= given.port < 65536:
        raise ValueError(f"--port {given.port} is none: it lies within 0 and 65535")
    body = int(given.max_body * MIB)
    devices = given.device.split(",") if given.device else [None]
    count = len(devices) * given.workers
    encoder = EncoderSettings(
        model=given.model,
        revision=given.revision,
        trust_remote_code=given.trust_remote_code,
        dtype=given.dtype,
        backend=given.backend,
        threads=max(1, (os.cpu_count() or 1) // count) if count > 1 else None,
        max_num_patches=given.max_num_patches,
        upscale=given.upscale,
        batch_tokens=given.batch_tokens,
        max_pixels=given.max_pixels,
    )
    encoders = [encoder.on(device) for device in devices for _ in range(given.workers)]
    # small ones share the cores better: one is computed while clients of the last have their answers and ask again
    max_batch = given.max_batch or (16 if encoders[0].on_cpu else 32)
    return ServerSettings(
        encoders=tuple(replace(one, batch_images=max_batch) for one in encoders),
        name=given.served_name or given.model,
        host=given.host,
        port=given.port,
        max_batch=max_batch,
        keys=read_keys(given.api_key_file),
        label_sets=read_label_sets(given.label_sets) if given.label_sets else {},
        allow_urls=given.allow_urls,
        shutdown_seconds=given.shutdown_seconds,
        limits=Limits(
            body=body,
            held=max(Limits.held, 2 * body),  # a request of that size finds room
            items=min(given.max_items, given.max_queue),  # more would never find room
            labels=given.max_labels,
            queue=given.max_queue,
        ),
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve until told to stop."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} cannot be imported: install siglip-ext[serve]")
    settings = settings_of(arguments)
    from .run import serve

    serve(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
