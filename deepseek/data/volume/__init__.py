"""Volumes: NIfTI and raw files, windows of CT, patches for training and for sliding over a whole volume."""

from deepseek.data.volume.nifti import Volume, read_nifti, read_nifti_mask
from deepseek.data.volume.patches import RandomPatch, patch_corners, sliding_patches, stitch
from deepseek.data.volume.raw import read_raw
from deepseek.data.volume.window import Window, window

__all__ = [
    "RandomPatch",
    "Volume",
    "Window",
    "patch_corners",
    "read_nifti",
    "read_nifti_mask",
    "read_raw",
    "sliding_patches",
    "stitch",
    "window",
]
