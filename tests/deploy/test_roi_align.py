"""RoIAlign as a sum of rows equals torchvision's operator, at the borders too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from norton_det.deploy import roi_align as pooling
from norton_det.deploy.roi_align import pool_regions

EDGES = torch.tensor(
    [
        [0, 0, 320, 240],  # all of it
        [-9, -9, 3, 3],  # over the border
        [310, 230, 330, 260],
        [10, 10, 10, 10],  # empty
        [10.3, 10, 11, 239],  # thin
        [319, 0, 320, 240],
        [5, 5, 6, 6],
        [-50, -50, -20, -20],  # outside
        [4, 0, 12, 236],  # tall
        [0, 7, 318, 15],  # wide
    ]
)


@pytest.fixture(scope="module")
def regions():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([300.0, 220.0])
    return torch.cat([torch.cat([corner, corner + torch.rand(60, 2, generator=generator) * 90], 1), EDGES])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_equals_torchvision(regions, aligned, sampling, size, monkeypatch):
    monkeypatch.setattr(pooling, "ENTRIES", 9000)  # several pieces
    map_ = torch.randn(1, 8, 60, 80, generator=torch.Generator().manual_seed(1))
    index = torch.cat([torch.zeros(len(regions), 1), regions], 1)
    expected = roi_align(map_, index, size, 0.25, sampling, aligned)
    found = pool_regions(map_, regions, size, 0.25, sampling, aligned)
    assert found.shape == (len(regions), 8, *size)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


SIDES = st.floats(-40, 140, width=32)


@settings(max_examples=settings.default.max_examples // 2)
@given(
    st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=6),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.sampled_from((1 / 4, 1 / 7, 1 / 32)),
    st.integers(0, 4),
    st.booleans(),
)
def test_any_boxes_on_any_map(corners, cells, size, scale, sampling, aligned):
    left, top, right, bottom = torch.tensor(corners).unbind(1)
    boxes = torch.stack([left.minimum(right), top.minimum(bottom), left.maximum(right), top.maximum(bottom)], 1)
    map_ = torch.randn(1, 3, *cells, generator=torch.Generator().manual_seed(0))
    expected = roi_align(map_, [boxes], size, scale, sampling, aligned)
    torch.testing.assert_close(
        pool_regions(map_, boxes, size, scale, sampling, aligned), expected, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", [0, 2])
def test_gradients_of_several_images(regions, sampling, dtype, monkeypatch):
    monkeypatch.setattr(pooling, "ENTRIES", 9000)
    maps = torch.randn(3, 8, 60, 80, generator=torch.Generator().manual_seed(1)).to(dtype)
    index = torch.cat([torch.arange(len(regions))[:, None] % 3, regions], 1)
    weight = torch.randn(len(regions), 8, 7, 7, generator=torch.Generator().manual_seed(2))
    outputs, gradients = [], []
    for pool in (roi_align, pool_regions):
        given = maps.clone().requires_grad_()
        pooled = pool(given.float() if pool is roi_align else given, index, (7, 7), 0.25, sampling, True)
        (pooled * weight).sum().backward()
        outputs.append(pooled.detach())
        gradients.append(given.grad)
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-5, rtol=1e-4)
    assert gradients[1].dtype == dtype and gradients[1].abs().max() > 1
    close = {"atol": 2e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
    torch.testing.assert_close(gradients[1], gradients[0], **close)


@pytest.mark.parametrize("sampling", [0, 2])
def test_slender_regions_cost_nothing_but_themselves(sampling, monkeypatch):
    """How many entries the sums have: two slender regions among many add to them, and do not multiply them."""
    entries = []
    real = torch.nn.functional.embedding_bag

    def counted(bags, *args, **options):
        entries.append(bags.numel())
        return real(bags, *args, **options)

    monkeypatch.setattr(pooling.functional, "embedding_bag", counted)
    map_ = torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(1))
    corner = 700 * torch.rand(256, 2, generator=torch.Generator().manual_seed(0))
    plain = torch.cat([corner, corner + 30], 1)
    slender = plain.clone()
    slender[:2] = torch.tensor([[10.0, 10, 770, 22], [10, 10, 22, 770]])
    for boxes in (plain, slender):
        index = torch.cat([torch.zeros(256, 1), boxes], 1)
        expected = roi_align(map_, index, (7, 7), 0.25, sampling, True)
        found = pool_regions(map_, boxes, (7, 7), 0.25, sampling, True)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        entries.append(0)
    split = entries.index(0)
    assert sum(entries[split:]) < 2 * sum(entries[:split])


def test_regions_get_no_gradient():
    map_ = torch.randn(1, 4, 9, 9, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 30, 30]], requires_grad=True)
    pool_regions(map_, boxes, (7, 7), 0.25, 2, True).sum().backward()
    assert boxes.grad is None and map_.grad.sum() > 48


def test_no_regions():
    for dtype in (torch.float32, torch.bfloat16):
        found = pool_regions(torch.randn(1, 4, 9, 9, dtype=dtype), torch.zeros(0, 4), (7, 7), 0.25, 2, True)
        assert found.shape == (0, 4, 7, 7)


def test_a_map_of_one_cell():
    map_ = torch.full((1, 2, 1, 1), 3.0)
    found = pool_regions(map_, torch.tensor([[0.0, 0, 32, 32]]), (2, 2), 1 / 32, 2, False)
    torch.testing.assert_close(found, torch.full((1, 2, 2, 2), 3.0))


def test_bfloat16(regions):
    map_ = torch.randn(1, 8, 60, 80, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = pool_regions(map_, regions, (7, 7), 0.25, 2, True)
    torch.testing.assert_close(found, pool_regions(map_.float(), regions, (7, 7), 0.25, 2, True))
