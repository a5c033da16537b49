"""The page at `/`, as a person uses it, in headless Chromium."""

import os
from pathlib import Path

import numpy as np
import pytest

from support.chromium import CHROMIUM, browser
from support.images import noise
from support.serving import data_uri, png, until


# SCREENSHOT=FILE keeps what the page looks like
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

DROP = """(async () => {
  const canvas = document.createElement("canvas");
  canvas.width = 40; canvas.height = 30;
  canvas.getContext("2d").fillRect(5, 5, 20, 20);
  const blob = await new Promise(done => canvas.toBlob(done));
  const data = new DataTransfer();
  data.items.add(new File([blob], "drawn.png", {type: "image/png"}));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
})()"""
BARS = """[...document.querySelectorAll("#bars .row")].map(row => [
  row.children[0].textContent, row.querySelector(".bar").style.width, row.children[2].textContent])"""


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.open(server.url)
        yield page


def classify(page, labels: str) -> list:
    page.run(f"document.getElementById('labels').value = {labels!r}")
    page.run("document.getElementById('bars').replaceChildren()")
    page.run("document.getElementById('go').click()")
    until(lambda: page.run("!document.getElementById('go').disabled"))
    return page.run(BARS)


def message(page) -> str:
    return page.run("document.getElementById('message').textContent")


def ready(page) -> bool:
    return page.run("!document.getElementById('go').disabled && document.querySelector('#drop img') !== null")


def test_a_person_chooses_a_picture_and_sees_bars(page, server, tmp_path):
    picture = noise(60, 40)
    (tmp_path / "picture.png").write_bytes(png(picture))
    page.choose("#file", tmp_path / "picture.png")
    until(lambda: ready(page))
    assert classify(page, "a cat") == []
    assert "API key" in message(page)
    page.run(f"document.getElementById('key').value = {server.key!r}")
    bars = classify(page, "a cat\n\n  a dog \na cat\n<b>bold</b>")
    assert message(page) == ""
    assert sorted(label for label, _, _ in bars) == ["<b>bold</b>", "a cat", "a dog"]
    wanted = server.post("/v1/classify", images=data_uri(png(picture)), labels=["a cat", "a dog", "<b>bold</b>"]).json
    wanted = wanted["data"][0]["labels"]
    assert [label for label, _, _ in bars] == [row["label"] for row in wanted]
    shown = [float(width.rstrip("%")) for _, width, _ in bars]
    np.testing.assert_allclose(shown, [100 * row["score"] for row in wanted], atol=1e-3)
    assert bars[0][2] == f"{100 * wanted[0]['score']:.1f} %"
    page.run("document.getElementById('function').value = 'softmax'")
    page.run("document.getElementById('template').value = 'a {}'")
    against = classify(page, "a cat\na dog")
    assert sum(float(width.rstrip("%")) for _, width, _ in against) == pytest.approx(100, abs=1e-3)
    page.run("document.getElementById('template').value = 'nothing'")
    assert classify(page, "a cat") == []
    assert "{}" in message(page)
    page.run("document.getElementById('template').value = 'a {}'")


def test_a_picture_can_be_dropped(page, server):
    page.run(f"document.getElementById('key').value = {server.key!r}")
    page.run(DROP)
    until(lambda: ready(page))
    until(lambda: page.run("document.querySelector('#drop img').naturalWidth") == 40)
    assert len(classify(page, "a cat\na dog")) == 2


def test_errors_are_told(page, server):
    page.run(f"document.getElementById('key').value = {server.key!r}")
    page.run(DROP)
    until(lambda: ready(page))
    assert classify(page, "") == []
    assert "labels" in message(page)


def test_nothing_comes_from_elsewhere_and_nothing_is_thrown(page):
    refused = ("401 (Unauthorized)", "400 (Bad Request)")  # of the tests above
    assert [problem for problem in page.problems if not any(status in str(problem) for status in refused)] == []
    names = page.run("performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)")
    assert set(names) <= {page.run("location.origin")}


def test_what_it_looks_like(page, server, tmp_path):
    """Of a size that a README can take."""
    page.run(f"document.getElementById('key').value = {server.key!r}")
    picture = Path(os.environ.get("PICTURE", tmp_path / "picture.png"))
    if not picture.exists():
        picture.write_bytes(png(noise(200, 150)))
    page.choose("#file", picture)
    until(lambda: ready(page))
    assert classify(page, "a cat\na dog\na bicycle")
    shot = page.screenshot()
    assert len(shot) < 300_000
    if "SCREENSHOT" in os.environ:
        Path(os.environ["SCREENSHOT"]).write_bytes(shot)
