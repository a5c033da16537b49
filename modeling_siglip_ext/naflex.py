"""The inputs of a NaFlex tower: patches of images of any shape, padded to one length (SigLIP 2, section 2.4.2)."""

import torch
from transformers.utils.import_utils import is_tracing

from .packing import Layout, pack_images


# their compilers make one program for each shape, and running it is what reading a value waits for; "meta" has none
UNREADABLE = {"meta", "xla", "tpu"}


def naflex_layout(
    patches: torch.Tensor,
    mask: torch.Tensor | None,
    spatial_shapes: torch.Tensor | None,
    patch_values: int,
    *,
    keep_padding: bool = False,
) -> Layout:
    """How the tokens of a batch lie in the tower: packed, padded, or without padding as they are.

    Args:
        patches: (B, L, patch_values).
        mask: True for an image's patches, (B, L).
        spatial_shapes: Rows and columns of patches of each image, (B, 2).
        keep_padding: Whether the states must stay (B, L, D).

    Returns:
        A packing; or None, where no image has padding; or a mask (B, L) of booleans, for states that stay padded:
        where that was asked for, and where the shapes cannot be read (while tracing, on the meta device, on XLA).

    Raises:
        ValueError: The inputs are malformed or contradict each other.
    """
    spatial_shapes = check_shapes(patches, mask, spatial_shapes, patch_values)
    length = patches.shape[1]
    if is_tracing(patches) or {patches.device.type, spatial_shapes.device.type} & UNREADABLE:
        return valid_patches(spatial_shapes, length).to(patches.device) if mask is None else mask.bool()
    grids = read_grids(mask, spatial_shapes, length)
    if all(height * width == length for height, width in grids):
        return None
    if keep_padding:
        return valid_patches(spatial_shapes, length).to(patches.device)
    return pack_images(grids, length, patches.device)


def check_shapes(
    patches: torch.Tensor, mask: torch.Tensor | None, spatial_shapes: torch.Tensor | None, patch_values: int
) -> torch.Tensor:
    """`spatial_shapes`; ValueError where shapes or types of the inputs are wrong."""
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
    return spatial_shapes


def read_grids(mask: torch.Tensor | None, spatial_shapes: torch.Tensor, length: int) -> list[tuple[int, int]]:
    """Rows and columns of each image, in one transfer with what the mask marks; ValueError where they contradict.

    A packing's shapes are these numbers, so the host must have them. Reading them from a device waits for all that is
    under way there; give `spatial_shapes` on the host to avoid it. Then a mask on the device is not compared.
    """
    columns = [spatial_shapes]
    if mask is not None and (spatial_shapes.device.type != "cpu" or mask.device.type == "cpu"):
        marked = mask.bool().to(spatial_shapes.device)
        contradicts = (marked != valid_patches(spatial_shapes, length)).any(dim=1)
        columns += [contradicts[:, None], marked.sum(dim=1, keepdim=True)]
    rows = torch.cat(columns, dim=1).tolist()
    for image, (height, width, *_) in enumerate(rows):
        if height < 1 or width < 1:
            raise ValueError(f"image {image} has a grid of {[height, width]} patches: rows and columns begin at 1")
        if height * width > length:
            raise ValueError(
                f"image {image} has a grid of {[height, width]} patches, but pixel_values hold {length} patches an "
                "image: raise max_num_patches of the image processor"
            )
    for image, (height, width, *of_mask) in enumerate(rows):
        if of_mask and of_mask[0]:
            raise ValueError(
                f"pixel_attention_mask of image {image} marks {of_mask[1]} patches and contradicts its spatial_shapes "
                f"{[height, width]}: the first rows x columns patches must be 1, the rest 0"
            )
    return [(height, width) for height, width, *_ in rows]


def valid_patches(spatial_shapes: torch.Tensor, length: int) -> torch.Tensor:
    """True for an image's patches, False for the padding after them; (B, length)."""
    return torch.arange(length, device=spatial_shapes.device) < spatial_shapes.prod(dim=1, keepdim=True)
