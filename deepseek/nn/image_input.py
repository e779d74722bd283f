"""What a network is called with: checks of images, and an example. Not here: reading, scaling and cropping of pictures.

The checks run in eager code alone, as those of `checks` do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepseek.errors import ModelError
from deepseek.nn.checks import check_floats, check_shape


def check_image(name: str, image: Tensor, num_channels: int, minimum: int = 1) -> None:
    """Check images (batch, num_channels, height, width) of floats, both sides at least `minimum`. Raises ModelError."""
    if torch.compiler.is_compiling():
        return
    check_shape(name, image, ("batch", num_channels, "height", "width"))
    check_floats(name, image, "for bytes: image.float() / 255, then subtract the mean and divide by the deviation")
    if min(image.shape[-2:]) < minimum:
        raise ModelError(
            f"{name} is too small",
            found=f"{image.shape[-2]} x {image.shape[-1]} pixels",
            wanted=f"at least {minimum} x {minimum}",
            fix="resize the image",
        )


def check_batch_statistics(name: str, image: Tensor, stride: int) -> None:
    """Check that batch norm, in training, finds two values a channel after downsampling by `stride`.

    One value has no variance. Raises ModelError.
    """
    if torch.compiler.is_compiling():
        return
    batch, height, width = image.shape[0], image.shape[-2], image.shape[-1]
    if batch * math.ceil(height / stride) * math.ceil(width / stride) < 2:
        raise ModelError(
            f"{name} is too small to train on: batch norm needs two values a channel, the last feature map has one",
            found=f"{batch} image of {height} x {width} pixels",
            wanted=f"two images, or more than {stride} pixels",
        )


def example_image(num_channels: int, image_size: int, batch_size: int, like: Tensor) -> Tensor:
    """Return normal noise (batch_size, num_channels, image_size, image_size), the same every time.

    Its device and number format are those of `like`.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn((batch_size, num_channels, image_size, image_size), generator=generator).to(like)
