"""The size of a detector's input: to the pixel that of both stacks, 0 for no resizing, thin pictures refused."""

import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_det.models.input_size import floor_size, input_size, is_size, nearest_size
from norton_det.utils.errors import InputError

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.integers(1, 1500), st.integers(0, 1500))
def test_detectron2s_size(height, width, min_size, more):
    expected = ResizeShortestEdge.get_output_shape(height, width, min_size, min_size + more)
    assert nearest_size(height, width, min_size, min_size + more) == tuple(expected)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (128, 96), (37, 113), (64, 64), (300, 20), (200, 333)])
def test_torchvisions_size(height, width):
    for sizes in ((96, 160), (50, 1333), (117, 118)):
        resized, _ = GeneralizedRCNNTransform(*sizes, [0.0] * 3, [1.0] * 3).resize(torch.zeros(3, height, width))
        assert floor_size(height, width, *sizes) == tuple(resized.shape[1:])


@pytest.mark.parametrize("rounding", [nearest_size, floor_size])
def test_no_resizing_and_what_vanishes(rounding):
    assert input_size(4000, 1, 0, 1333, rounding) == (4000, 1)
    assert input_size(480, 640, 96, 160, rounding) == (96, 128)
    assert input_size(480, 960, 96, 160, rounding) == (80, 160)
    with pytest.raises(InputError, match="short side that is left at a long one of 1333, got 1x4000; crop it"):
        input_size(4000, 1, 800, 1333, rounding)


@pytest.mark.parametrize(
    ("sizes", "good"),
    [((800, 1333), True), ((0, 1333), True), ((9, 9), True), ((-1, 9), False), ((10, 9), False), ((0, 0), False)]
    + [((8.0, 9), False), ((True, 9), False), ((800, 32769), False)],
)
def test_sizes_that_can_be_asked_for(sizes, good):
    assert is_size(*sizes) is good
