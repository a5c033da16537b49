"""The index beside embeddings: what it finds against all products, and whose it is."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext import search_index
from modeling_siglip_ext.embedding_parts import Notes, write_part
from modeling_siglip_ext.files import write_json
from modeling_siglip_ext.search_index import check_kind, open_index, write_index


pytest.importorskip("faiss")
ROWS = normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), dim=1)
QUERIES = normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), dim=1).numpy()
UNREADABLE = (7, 299)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return nn.Linear(3, 3)


def fill(folder, model, name: str | None = "file {}") -> None:
    """Embeddings in three parts, two of them missing."""
    settings = {"weights": store.weights_fingerprint(model), "dtype": "float32", "model": "some/model"}
    write_json(folder / store.SETTINGS, {**settings, "rows": 300, "part_rows": 128, "form": "parquet"})
    rows = ROWS.clone()
    rows[list(UNREADABLE)] = torch.nan
    for number, first in enumerate(range(0, 300, 128)):
        last = min(300, first + 128)
        errors = {row - first: "broken" for row in UNREADABLE if first <= row < last}
        names = [] if name is None else [name.format(row) for row in range(first, last)]
        write_part(store.part_path(folder, number, "parquet"), first, rows[first:last], Notes(errors, names))


def expected(count: int) -> list[list[int]]:
    cosines = QUERIES.astype(np.float64) @ ROWS.numpy().T.astype(np.float64)
    cosines[:, UNREADABLE] = -2
    return np.argsort(-cosines, axis=1)[:, :count].tolist()


@pytest.mark.parametrize("kind", ["Flat", "HNSW32", "IVF4,Flat"])
def test_the_nearest_rows_are_found(kind, tmp_path, model):
    fill(tmp_path, model)
    assert write_index(tmp_path, kind)
    index = open_index(tmp_path, model)
    found = index.search(QUERIES, 4)
    exact = expected(4)
    if kind == "Flat":
        assert [[one.row for one in matches] for matches in found] == exact
    assert sum(len({one.row for one in matches} & set(rows)) for matches, rows in zip(found, exact)) > 10
    for matches, query in zip(found, QUERIES):
        for one in matches:
            assert one.name == f"file {one.row}"
            assert one.score == pytest.approx(float(ROWS[one.row].numpy() @ query), abs=1e-6)
    rows = {one.row for one in open_index(tmp_path, model).search(QUERIES[:1], 1000)[0]}
    assert not rows & set(UNREADABLE)
    assert not write_index(tmp_path, kind), "nothing has changed"


def test_it_is_refused_by_other_weights(tmp_path, model):
    fill(tmp_path, model, name=None)
    with pytest.raises(FileNotFoundError, match="with --index"):
        open_index(tmp_path, model)
    write_index(tmp_path)
    assert open_index(tmp_path, model).search(QUERIES, 1)[0][0].name is None
    for other in (nn.Linear(3, 3), nn.Linear(3, 3).to(torch.bfloat16)):
        with pytest.raises(ValueError, match=r"other weights or precision \(some/model, float32, [0-9a-f]{32}; here"):
            open_index(tmp_path, other)


def test_it_follows_the_embeddings_and_is_whole_until_then(tmp_path, model, monkeypatch):
    fill(tmp_path, model)
    write_index(tmp_path)
    before = open_index(tmp_path, model).search(QUERIES, 3)
    notes = Notes(names=[f"new {row}" for row in range(44)])
    write_part(tmp_path / "part-00002.parquet", 256, -ROWS[256:], notes)
    with monkeypatch.context() as patch:
        patch.setattr(search_index, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_index(tmp_path)
    assert open_index(tmp_path, model).search(QUERIES, 3) == before
    assert write_index(tmp_path)
    after = open_index(tmp_path, model).search(-ROWS[299:].numpy(), 1)[0][0]
    assert (after.name, after.row) == ("new 43", 299)
    assert len(list(tmp_path.glob("_index*"))) == 3
    assert len(store.read(tmp_path)[0]) == 300, "readers of the folder pass over the index"


def test_what_cannot_be_indexed_is_said_in_one_line(tmp_path, model, monkeypatch):
    fill(tmp_path, model)
    with pytest.raises(ValueError, match=r"FAISS makes no index 'nonsense' of 300 embeddings: .*nonsense"):
        write_index(tmp_path, "nonsense")
    with pytest.raises(ValueError, match=r"no index 'IVF4096,Flat' of 300 embeddings: .*4096"):
        write_index(tmp_path, "IVF4096,Flat")
    assert not list(tmp_path.glob("_index*"))
    write_index(tmp_path)
    next(tmp_path.glob("_index-*.faiss")).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"is damaged.*with --index"):
        open_index(tmp_path, model)
    for kind in ("Flat", "IVF4096,PQ96", "PQ7", "OPQ16,IVF256,PQ16"):
        check_kind(kind)  # PQ's numbers suit some widths and others not
    for kind in ("nonsense", "", "IVFx", "LSH"):
        with pytest.raises(ValueError, match=f"FAISS knows no index '{kind}' of inner products: take Flat"):
            check_kind(kind)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'siglip-ext\[search\]'"):
        open_index(tmp_path, model)


def test_queries_of_another_shape(tmp_path, model):
    fill(tmp_path, model)
    write_index(tmp_path)
    index = open_index(tmp_path, model)
    for queries in (QUERIES[0], QUERIES[:, :5], QUERIES[None]):
        with pytest.raises(ValueError, match=r"must have the shape \(n, 8\), got"):
            index.search(queries, 1)
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        index.search(QUERIES, 0)


def test_training_takes_rows_from_all_over(tmp_path, model, monkeypatch):
    fill(tmp_path, model)
    monkeypatch.setattr(search_index, "TRAINED_ON", 30)
    rows = search_index.sample(search_index.open_blocks(tmp_path))
    np.testing.assert_array_equal(rows, ROWS[::10].numpy())
