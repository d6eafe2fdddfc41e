"""Grids of pictures, as they are saved."""

import numpy as np
import pytest
import torch
from PIL import Image

from edgedistill.common.pictures import GAP, grid, save_samples, to_uint8


def drawn(count, height=8, width=12):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_single_picture_is_saved_as_it_is(tmp_path):
    picture = drawn(1)
    save_samples(tmp_path / "one.png", picture)
    found = np.asarray(Image.open(tmp_path / "one.png"))
    np.testing.assert_array_equal(found, to_uint8(picture)[0])


@pytest.mark.parametrize(("count", "columns", "rows"), [(2, 2, 1), (8, 8, 1), (9, 8, 2)])
def test_several_pictures_have_frames(count, columns, rows):
    pictures = to_uint8(drawn(count))
    found = grid(pictures)
    assert found.size == (columns * (12 + GAP) + GAP, rows * (8 + GAP) + GAP)
    first = np.asarray(found)[GAP : GAP + 8, GAP : GAP + 12]
    np.testing.assert_array_equal(first, pictures[0])
