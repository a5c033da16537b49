"""Resizing against what it is defined by: scipy's zoom, images and patches resized together."""

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch.nn.functional import interpolate

from modeling_siglip_ext.conversion.resize import (
    resize_kernel,
    stretch_text_positions,
    to_conv,
    to_linear,
)


@pytest.mark.parametrize("target", [20, 32])
def test_an_enlarged_patch_under_the_enlarged_kernel_gives_the_same_vector(target):
    """FlexiViT, equation 4: enlarging loses nothing, so the equality is exact."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    patches = torch.randn(5, 3, 16, 16, generator=generator, dtype=torch.float64)
    enlarged = interpolate(patches, size=(target, target), mode="bilinear", align_corners=False)
    expected = torch.einsum("dchw,bchw->bd", kernel, patches)
    actual = torch.einsum("dchw,bchw->bd", resize_kernel(kernel, target), enlarged)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_a_reduced_kernel_is_the_pseudo_inverse_of_resizing():
    """`resample_patchemb` with its matrix written out: one column for every pixel of the patch."""
    kernel = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    basis = torch.eye(256, dtype=torch.float64).reshape(256, 1, 16, 16)
    matrix = interpolate(basis, size=(14, 14), mode="bilinear", align_corners=False).reshape(256, 196).numpy()
    expected = np.einsum("ij,dcj->dci", np.linalg.pinv(matrix), kernel.reshape(2, 3, 256).numpy())
    np.testing.assert_allclose(resize_kernel(kernel, 14).reshape(2, 3, 196).numpy(), expected, atol=1e-10)


def test_the_same_size_changes_nothing():
    kernel = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(resize_kernel(kernel, 8), kernel, rtol=0, atol=1e-6)


def test_text_positions_are_stretched_as_scipy_zooms():
    table = torch.randn(16, 5)
    expected = zoom(table.double().numpy(), (64 / 16, 1), order=1)
    np.testing.assert_allclose(stretch_text_positions(table, 64).numpy(), expected, atol=1e-5)


def test_a_convolution_as_a_linear_layer_on_flattened_patches():
    kernel = torch.randn(6, 3, 4, 4)
    image = torch.randn(1, 3, 8, 8)
    expected = torch.conv2d(image, kernel, stride=4)[0].flatten(1).T
    patches = image[0].unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 3, 4, 0).reshape(4, -1)
    torch.testing.assert_close(patches @ to_linear(kernel).T, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(to_conv(to_linear(kernel)), kernel)
