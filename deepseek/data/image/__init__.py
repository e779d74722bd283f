"""Images: decoding, geometry with masks and boxes, colour, mixing; each stage and its plain function on tensors."""

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.data.image.affine import RandomAffine, affine_matrix, warp_affine, warp_affine_nearest
    from deepseek.data.image.boxes import clip_and_select, move_boxes
    from deepseek.data.image.color import (
        ColorJitter,
        Grayscale,
        adjust_brightness,
        adjust_contrast,
        adjust_hue,
        adjust_saturation,
        grayscale,
    )
    from deepseek.data.image.crop import (
        CenterCrop,
        RandomCrop,
        RandomResizedCrop,
        crop_image,
        random_part,
        resized_crop,
    )
    from deepseek.data.image.decode import read_image, read_mask, write_image
    from deepseek.data.image.elastic import (
        RandomElasticDeformation,
        elastic_deform,
        elastic_deform_mask,
        random_field,
    )
    from deepseek.data.image.erase import RandomErasing
    from deepseek.data.image.flip import HorizontalFlip, VerticalFlip, horizontal_flip, vertical_flip
    from deepseek.data.image.mix import CutMix, MixUp
    from deepseek.data.image.mosaic import Mosaic
    from deepseek.data.image.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, normalize_image
    from deepseek.data.image.resize import Letterbox, Resize, letterbox_image, resize_image, resize_nearest

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CenterCrop",
    "ColorJitter",
    "CutMix",
    "Grayscale",
    "HorizontalFlip",
    "Letterbox",
    "MixUp",
    "Mosaic",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomElasticDeformation",
    "RandomErasing",
    "RandomResizedCrop",
    "Resize",
    "VerticalFlip",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "affine_matrix",
    "clip_and_select",
    "crop_image",
    "elastic_deform",
    "elastic_deform_mask",
    "grayscale",
    "horizontal_flip",
    "letterbox_image",
    "move_boxes",
    "normalize_image",
    "random_field",
    "random_part",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_nearest",
    "resized_crop",
    "vertical_flip",
    "warp_affine",
    "warp_affine_nearest",
    "write_image",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "IMAGENET_MEAN": "deepseek.data.image.normalize:IMAGENET_MEAN",
        "IMAGENET_STD": "deepseek.data.image.normalize:IMAGENET_STD",
        "CenterCrop": "deepseek.data.image.crop:CenterCrop",
        "ColorJitter": "deepseek.data.image.color:ColorJitter",
        "CutMix": "deepseek.data.image.mix:CutMix",
        "Grayscale": "deepseek.data.image.color:Grayscale",
        "HorizontalFlip": "deepseek.data.image.flip:HorizontalFlip",
        "Letterbox": "deepseek.data.image.resize:Letterbox",
        "MixUp": "deepseek.data.image.mix:MixUp",
        "Mosaic": "deepseek.data.image.mosaic:Mosaic",
        "Normalize": "deepseek.data.image.normalize:Normalize",
        "RandomAffine": "deepseek.data.image.affine:RandomAffine",
        "RandomCrop": "deepseek.data.image.crop:RandomCrop",
        "RandomElasticDeformation": "deepseek.data.image.elastic:RandomElasticDeformation",
        "RandomErasing": "deepseek.data.image.erase:RandomErasing",
        "RandomResizedCrop": "deepseek.data.image.crop:RandomResizedCrop",
        "Resize": "deepseek.data.image.resize:Resize",
        "VerticalFlip": "deepseek.data.image.flip:VerticalFlip",
        "adjust_brightness": "deepseek.data.image.color:adjust_brightness",
        "adjust_contrast": "deepseek.data.image.color:adjust_contrast",
        "adjust_hue": "deepseek.data.image.color:adjust_hue",
        "adjust_saturation": "deepseek.data.image.color:adjust_saturation",
        "affine_matrix": "deepseek.data.image.affine:affine_matrix",
        "clip_and_select": "deepseek.data.image.boxes:clip_and_select",
        "crop_image": "deepseek.data.image.crop:crop_image",
        "elastic_deform": "deepseek.data.image.elastic:elastic_deform",
        "elastic_deform_mask": "deepseek.data.image.elastic:elastic_deform_mask",
        "grayscale": "deepseek.data.image.color:grayscale",
        "horizontal_flip": "deepseek.data.image.flip:horizontal_flip",
        "letterbox_image": "deepseek.data.image.resize:letterbox_image",
        "move_boxes": "deepseek.data.image.boxes:move_boxes",
        "normalize_image": "deepseek.data.image.normalize:normalize_image",
        "random_field": "deepseek.data.image.elastic:random_field",
        "random_part": "deepseek.data.image.crop:random_part",
        "read_image": "deepseek.data.image.decode:read_image",
        "read_mask": "deepseek.data.image.decode:read_mask",
        "resize_image": "deepseek.data.image.resize:resize_image",
        "resize_nearest": "deepseek.data.image.resize:resize_nearest",
        "resized_crop": "deepseek.data.image.crop:resized_crop",
        "vertical_flip": "deepseek.data.image.flip:vertical_flip",
        "warp_affine": "deepseek.data.image.affine:warp_affine",
        "warp_affine_nearest": "deepseek.data.image.affine:warp_affine_nearest",
        "write_image": "deepseek.data.image.decode:write_image",
    },
)
