"""Image processors on PIL alone (no torchvision): square resize for fixed resolution, patches for NaFlex.

They write the stock `image_processor_type`, because the stock processors read the same settings: a saved folder then
loads where this package is not installed.
"""

from functools import lru_cache
from typing import Any, TypeGuard

import numpy as np
from PIL import Image
from transformers import Siglip2ImageProcessorPil
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from .configuration_siglip_ext import SiglipExtVisionConfig
from .image_budget import is_naflex


# patch size and number of patches that the stock Siglip2Processor puts in the place of any other
STOCK_PATCHES = (16, 256)


class SiglipExtImageProcessor(PilBackend):
    """Images of any mode and size to `pixel_values` (B, 3, height, width) in [-1, 1]; the aspect ratio is not kept.

    Bicubic resizing, as the stock SigLIP processor; SigLIP 2 wants `resample=PILImageResampling.BILINEAR`.

    Example:

    ```python
    >>> from PIL import Image
    >>> from modeling_siglip_ext import SiglipExtImageProcessor
    >>> processor = SiglipExtImageProcessor(size={"height": 64, "width": 64})
    >>> processor(Image.new("L", (100, 50)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 64, 64])

    ```"""

    resample = PILImageResampling.BICUBIC
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    size = {"height": 224, "width": 224}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def process_image(self, image: ImageInput, *args: Any, **kwargs: Any) -> np.ndarray:
        # what is an RGB image of PIL gets its size here, in C and without the interpreter's lock; the base class would
        # turn the large image into an array, back into PIL's form and again into an array, which takes as long again
        size: SizeDict = kwargs.get("size") or SizeDict()
        resample = kwargs.get("resample")
        if is_plain(image) and kwargs.get("do_resize") and size.height and size.width and isinstance(resample, int):
            image = image.resize((size.width, size.height), resample)
        return super().process_image(image, *args, **kwargs)

    def resize(self, image: np.ndarray, size: SizeDict, *args: Any, **kwargs: Any) -> np.ndarray:
        right = image.shape[-2:] == (size.height, size.width)
        return image if right else super().resize(image, size, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_processor_type": "SiglipImageProcessor"}


class SiglipExtNaflexImageProcessor(Siglip2ImageProcessorPil):
    """Images to NaFlex patches: `pixel_values` (B, L, p·p·3), `pixel_attention_mask` (B, L), `spatial_shapes` (B, 2).

    The aspect ratio is kept and the image made as large as `max_num_patches` allows (SigLIP 2, section 2.4.2).
    """

    do_convert_rgb = True

    def process_image(self, image: ImageInput, *args: Any, **kwargs: Any) -> np.ndarray:
        # the resizing of `_preprocess`, done here for the reason given in SiglipExtImageProcessor
        if not kwargs.get("do_resize"):
            return super().process_image(image, *args, **kwargs)
        patches, resample = (kwargs["patch_size"], kwargs["max_num_patches"]), kwargs.get("resample")
        if is_plain(image) and isinstance(resample, int):
            height, width = naflex_size(image.height, image.width, *patches)
            return super().process_image(image.resize((width, height), resample), *args, **kwargs)
        array = super().process_image(image, *args, **kwargs)
        height, width = naflex_size(*array.shape[-2:], *patches)
        return self.resize(array, SizeDict(height=height, width=width), resample)

    # sizes are right by now; the base class would copy each image's patches four times
    def _preprocess(  # ty: ignore[incompatible-method-override]  # settings by name, as every processor's
        self,
        images: list[np.ndarray],
        *,
        patch_size: int,
        max_num_patches: int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        if do_rescale:
            images = [self.rescale(image, rescale_factor) for image in images]
        if do_normalize:
            images = [self.normalize(image, image_mean, image_std) for image in images]
        grids = np.array([image.shape[-2:] for image in images]) // patch_size
        patches = np.zeros((len(images), max_num_patches, patch_size**2 * images[0].shape[0]), images[0].dtype)
        for row, image, (height, width) in zip(patches, images, grids.tolist()):
            cut = image.reshape(-1, height, patch_size, width, patch_size).transpose(1, 3, 2, 4, 0)
            row[: height * width].reshape(cut.shape)[:] = cut
        mask = (np.arange(max_num_patches) < grids.prod(axis=1, keepdims=True)).astype(np.int32)
        data = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grids}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        settings = {**super().to_dict(), "image_processor_type": "Siglip2ImageProcessor"}
        if patch_settings(self) != STOCK_PATCHES:
            # where no processor is saved with it, AutoProcessor would take the stock one by the model's type
            settings["processor_class"] = "SiglipProcessor"
        return settings


def is_plain(image: ImageInput) -> TypeGuard[Image.Image]:
    """Whether it is an image of PIL that needs no conversion to RGB."""
    return isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info


@lru_cache(maxsize=4096)  # it searches for the scale, and images of one source have few sizes
def naflex_size(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Height and width in pixels of an image of this size in at most so many patches, by the original's rule."""
    return get_image_size_for_max_num_patches(height, width, patch_size, max_num_patches)


def patch_settings(image_processor: Any) -> tuple[int, int]:
    """Patch size and number of patches of a NaFlex image processor, ours or a stock one."""
    return image_processor.patch_size, image_processor.max_num_patches


# of a processor, what the other kind takes, too
SHARED = ("resample", "image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "do_convert_rgb")


def image_processor_for(
    config: SiglipExtVisionConfig, **settings: Any
) -> SiglipExtImageProcessor | SiglipExtNaflexImageProcessor:
    """The image processor of a tower: to its image size, or to as many patches as its position grid has."""
    if config.naflex:
        patches: dict[str, Any] = {"patch_size": config.patch_size, "max_num_patches": config.num_patches}
        return SiglipExtNaflexImageProcessor(**patches, **settings)
    side = config.image_size or config.grid_size * config.patch_size
    return SiglipExtImageProcessor(size={"height": side, "width": side}, **settings)


def fit_image_processor(image_processor: Any, config: SiglipExtVisionConfig) -> Any:
    """An image processor of the kind that a tower takes, with the values and the resampling of the given one.

    One of that kind already is given back as it is.

    Args:
        image_processor: ours or a stock one, for NaFlex or for one image size.
        config: of the tower.
    """
    if is_naflex(image_processor) == config.naflex:
        return image_processor
    found = {name: getattr(image_processor, name, None) for name in SHARED}
    return image_processor_for(config, **{name: value for name, value in found.items() if value is not None})
