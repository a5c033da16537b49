"""Near-duplicates against brute force: all cosines in float64, and scipy's connected components of all pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch.nn.functional import normalize

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.embedding_blocks import open_blocks
from modeling_siglip_ext.embedding_parts import Notes, write_part
from modeling_siglip_ext.evaluation import find_duplicates
from modeling_siglip_ext.evaluation.metrics import connected, duplicates
from modeling_siglip_ext.files import write_json


@pytest.fixture(autouse=True, scope="module")
def small():
    """Several tiles, blocks, passes and merges with a few rows, and the bound with few dimensions."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TILE": 8, "BLOCK": 16, "HELD": 32, "SAMPLE": 48, "LEAST_WIDTH": 32}.items():
            patch.setattr(duplicates, name, value)
        patch.setattr(connected, "EDGES", 5)
        yield


def brute_force(embeds: torch.Tensor, threshold: float) -> list[tuple[list[int], int, float]]:
    """Groups with their pairs and least cosine, from all cosines."""
    unit = normalize(embeds.double(), dim=1)
    cosines = (unit @ unit.T).triu(1)
    hit = torch.ones_like(cosines).triu(1).bool() & (cosines >= threshold) & unit.isfinite().all(1)[:, None]
    _, label = connected_components(csr_matrix(hit.numpy()), directed=False)
    groups = [np.flatnonzero(label == one) for one in range(label.max() + 1)]
    return [
        (rows.tolist(), int(hit[rows].sum()), cosines[rows][hit[rows]].min().item())
        for rows in sorted(groups, key=lambda rows: rows[0])
        if len(rows) > 1
    ]


def check(embeds: torch.Tensor, threshold: float) -> None:
    found, expected = find_duplicates(embeds, threshold), brute_force(embeds, threshold)
    assert [(group.rows, group.pairs) for group in found.groups] == [(rows, pairs) for rows, pairs, _ in expected]
    for group, (_, _, least) in zip(found.groups, expected):
        assert group.least_cosine == pytest.approx(least, abs=1e-6)
    assert found.pairs == sum(pairs for _, pairs, _ in expected)


@given(st.integers(1, 90), st.sampled_from([-0.503, -0.003, 0.501, 0.973]), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_groups_equal_brute_force(count, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    check(torch.randint(-2, 3, (count, 3), generator=generator) + 0.1, threshold)


@given(st.integers(1, 150), st.sampled_from([0.3, 0.7, 0.9, 0.95]), st.floats(0.05, 0.6), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_the_bound_misses_nothing(count, threshold, noise, seed):
    """Clusters of noisy copies in 64 dimensions, a few of them longer than the others, as real embeddings are."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(count // 4 + 1, 64, generator=generator) * torch.linspace(3, 0.2, 64)
    noisy = torch.randn(count, 64, generator=generator) * noise
    check(centers[torch.randint(len(centers), (count,), generator=generator)] + noisy, threshold)


def test_the_bound_is_used_where_it_pays_and_holds():
    rows = normalize(torch.randn(600, 256), dim=1)
    bound = duplicates.choose_bound(rows, 0.95)
    assert bound.rotation is not None
    assert bound.rotation.shape[1] < 128
    folded = bound.of(rows)
    assert (folded @ folded.T >= rows @ rows.T - 1e-6).all()
    assert duplicates.choose_bound(rows, 0.01).rotation is None


def test_copies_of_one_vector_are_one_group_whose_pairs_are_counted():
    rows = torch.randn(300, 40)
    rows[50:250] = rows[7]
    (group,) = find_duplicates(rows, 1.0).groups
    assert group.rows == [7, *range(50, 250)]
    assert group.pairs == 201 * 200 // 2
    assert group.least_cosine == pytest.approx(1)


@pytest.mark.parametrize("threshold", [-1, 0, 1])
def test_rows_without_a_direction_are_in_no_group(threshold):
    rows = torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [0.0, 0.0], [1.0, 0.0], [torch.inf, 0.0], [0.0, 0.0]])
    found = find_duplicates(rows, threshold)
    assert [group.rows for group in found.groups] == [[0, 3]]
    assert found.without_direction == [1, 2, 4, 5]
    nothing = find_duplicates(torch.full((3, 4), torch.nan), threshold)
    assert nothing.groups == []
    assert nothing.without_direction == [0, 1, 2]


def test_arrays_are_taken_as_encode_images_gives_them():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    expected = find_duplicates(rows)
    assert find_duplicates(rows.numpy()) == expected
    assert find_duplicates(rows.double().requires_grad_()).groups[0].rows == [0, 2]
    for other in (rows[0], rows[None].numpy()):
        with pytest.raises(ValueError, match=r"embeddings are \(rows, D\), got shape"):
            find_duplicates(other)


def test_lengths_and_half_precision_do_not_matter():
    rows = torch.randn(60, 64)
    rows[30:] = rows[:30] * 5
    found = find_duplicates(rows.half(), 0.999)
    assert [group.rows for group in found.groups] == [[row, row + 30] for row in range(30)]


@pytest.mark.parametrize("threshold", [1.01, -1.5, float("nan")])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    with pytest.raises(ValueError, match="a cosine is between -1 and 1"):
        find_duplicates(torch.eye(3), threshold)


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
@pytest.mark.parametrize("part_rows", [1, 7, 30, 500])
def test_stored_blocks_are_the_rows_of_the_folder(tmp_path, form, part_rows):
    rows = torch.randn(60, 4).half()
    write_json(tmp_path / store.SETTINGS, {"rows": 60, "part_rows": part_rows, "form": form})
    for part, first in enumerate(range(0, 60, part_rows)):
        path, block = tmp_path / f"part-{part:05d}.{form}", rows[first : first + part_rows]
        errors = {0: "broken"} if part == 1 else {}
        write_part(path, first, block, Notes(errors, [str(first + place) for place in range(len(block))]))
    stored = open_blocks(tmp_path)
    assert stored.names == [str(row) for row in range(60)]
    assert stored.errors == ({part_rows: "broken"} if part_rows < 60 else {})
    for start in (0, 29, 59):
        found = list(stored.blocks(start, 8))
        assert torch.equal(torch.cat([block for _, block in found]), rows[start:])
        assert [place for place, _ in found] == [start + sum(len(b) for _, b in found[:n]) for n in range(len(found))]
    assert find_duplicates(stored, 0.9) == find_duplicates(rows, 0.9)


def test_a_folder_that_is_cut_short_is_named(tmp_path):
    write_json(tmp_path / store.SETTINGS, {"rows": 6, "part_rows": 3, "form": "parquet"})
    write_part(tmp_path / "part-00000.parquet", 0, torch.randn(3, 4))
    with pytest.raises(FileNotFoundError, match="lacks 1 of 2 parts"):
        open_blocks(tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"part-00001\.parquet is damaged"):
        open_blocks(tmp_path)
    write_part(tmp_path / "part-00001.parquet", 3, torch.randn(2, 4))
    with pytest.raises(ValueError, match="holds 5 of 6 rows"):
        open_blocks(tmp_path)
