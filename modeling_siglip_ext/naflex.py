"""The inputs of a NaFlex tower: patches of images of any shape, padded to one length (SigLIP 2, section 2.4.2)."""

import torch


def check_naflex_inputs(
    patches: torch.Tensor, mask: torch.Tensor | None, spatial_shapes: torch.Tensor | None, patch_values: int
) -> None:
    """Raise ValueError for NaFlex inputs that contradict each other.

    Shapes are always checked; values only where they are on the CPU, because reading them from an accelerator would
    make it wait. Tracing skips the values too.
    """
    if spatial_shapes is None:
        raise ValueError("a NaFlex tower needs spatial_shapes (B, 2): the rows and columns of patches per image")
    if patches.ndim != 3 or patches.shape[-1] != patch_values:
        raise ValueError(
            f"pixel_values are {tuple(patches.shape)}, a NaFlex tower takes patches (B, L, {patch_values}): use "
            "SiglipExtNaflexImageProcessor with the model's patch_size"
        )
    batch, length, _ = patches.shape
    if spatial_shapes.shape != (batch, 2) or spatial_shapes.is_floating_point():
        raise ValueError(
            f"spatial_shapes must be ({batch}, 2) integers, not {spatial_shapes.dtype} {tuple(spatial_shapes.shape)}"
        )
    if mask is not None and mask.shape != (batch, length):
        raise ValueError(f"pixel_attention_mask is {tuple(mask.shape)}, pixel_values need ({batch}, {length})")
    if torch.compiler.is_compiling() or spatial_shapes.device.type != "cpu":
        return
    tokens = spatial_shapes.prod(dim=1)
    wrong = (spatial_shapes < 1).any(dim=1) | (tokens > length)
    if wrong.any():
        image = int(wrong.nonzero()[0])
        raise ValueError(
            f"image {image} has a grid of {spatial_shapes[image].tolist()} patches, but pixel_values hold {length} "
            "patches an image: raise max_num_patches of the image processor"
        )
    if mask is None or mask.device.type != "cpu":
        return
    wrong = (mask.bool() != valid_patches(spatial_shapes, length)).any(dim=1)
    if wrong.any():
        image = int(wrong.nonzero()[0])
        raise ValueError(
            f"pixel_attention_mask of image {image} marks {int(mask[image].sum())} patches and contradicts its "
            f"spatial_shapes {spatial_shapes[image].tolist()}: the first rows x columns patches must be 1, the rest 0"
        )


def valid_patches(spatial_shapes: torch.Tensor, length: int) -> torch.Tensor:
    """True for an image's patches, False for the padding after them; (B, length)."""
    return torch.arange(length, device=spatial_shapes.device) < spatial_shapes.prod(dim=1, keepdim=True)
