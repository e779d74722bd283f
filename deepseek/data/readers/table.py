"""The readers by the name that `open_reader(path, kind=...)` takes."""

from __future__ import annotations

from collections.abc import Mapping

_HERE = "deepseek.data.readers"

READERS: Mapping[str, str] = {
    "arrays": f"{_HERE}.arrays:Arrays",
    "audio": f"{_HERE}.audio_folder:AudioFiles",
    "audio_folder": f"{_HERE}.audio_folder:AudioFolder",
    "audio_text": f"{_HERE}.audio_folder:AudioText",
    "coco": f"{_HERE}.coco:Coco",
    "csv": f"{_HERE}.csv_table:CsvTable",
    "hdf5": "deepseek.data.loaders.h5_dataset:H5Dataset",
    "idx": f"{_HERE}.idx:Idx",
    "image_folder": f"{_HERE}.image_folder:ImageFolder",
    "images": f"{_HERE}.image_folder:ImageFiles",
    "jsonl": f"{_HERE}.jsonl:JsonLines",
    "kdconv": f"{_HERE}.kdconv:KdConv",
    "nifti": f"{_HERE}.nifti_folder:NiftiFolder",
    "segmentation": f"{_HERE}.segmentation:SegmentationFolder",
    "text": f"{_HERE}.text_lines:TextLines",
    "voc": f"{_HERE}.voc:PascalVoc",
}
"""Name of a kind of data set -> the reader of it, a class called with the path and its options."""
