"""The container file names what there is; there is no engine here to build it with."""

import configparser
import json
import re
from pathlib import Path

import pytest


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from modeling_siglip_ext.serving.__main__ import make_parser


REPOSITORY = Path(__file__).resolve().parents[2]
LINES = (REPOSITORY / "serving" / "Containerfile").read_text().replace("\\\n", " ").splitlines()


@pytest.fixture
def setup():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    return settings


def words(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]


def test_it_copies_all_that_the_wheel_is_made_of(setup):
    sources = {source for *given, _ in words("COPY") for source in given if "--from=build" not in given}
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []
    rooms = {line.split("=")[1].strip() for line in setup["options"]["package_dir"].split("\n") if line}
    settings = {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"}
    assert sources == rooms | settings | {"constraints.txt"}
    for source, target in ((given[0], given[-1]) for given in words("COPY") if len(given) == 2):
        assert target in ("/", f"/source/{source}")


def test_it_installs_an_extra_and_starts_a_command_that_there_are(setup):
    (extra,) = re.findall(r"\.whl\)\[(\w+)\]", "\n".join(LINES))
    assert extra in setup["options.extras_require"]
    (start,) = (json.loads(line.partition(" ")[2]) for line in LINES if line.startswith("ENTRYPOINT"))
    assert start[0] in setup["options.entry_points"]["console_scripts"]
    arguments = make_parser().parse_args([*start[1:], "/model"])
    assert (arguments.model, arguments.host, arguments.port) == ("/model", "0.0.0.0", 8000)
    assert ["8000"] in words("EXPOSE")


def test_it_does_not_run_as_root():
    assert words("USER") == [["server"]]
