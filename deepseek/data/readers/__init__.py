"""Readers: what lies on disk as samples, each read when it is asked for; `open_reader` chooses by content."""

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

if TYPE_CHECKING:
    from deepseek.data.readers.arrays import Arrays
    from deepseek.data.readers.audio_folder import AudioFiles, AudioFolder, AudioText
    from deepseek.data.readers.coco import Coco
    from deepseek.data.readers.csv_table import CsvTable
    from deepseek.data.readers.idx import Idx, read_idx
    from deepseek.data.readers.image_folder import ImageFiles, ImageFolder
    from deepseek.data.readers.jsonl import JsonLines
    from deepseek.data.readers.kdconv import KdConv, kdconv_chats
    from deepseek.data.readers.nifti_folder import NiftiFolder
    from deepseek.data.readers.opening import open_reader
    from deepseek.data.readers.reader import Reader
    from deepseek.data.readers.regions import decode_rle, fill_polygon
    from deepseek.data.readers.segmentation import SegmentationFolder
    from deepseek.data.readers.table import READERS
    from deepseek.data.readers.text_lines import TextLines
    from deepseek.data.readers.voc import PascalVoc

__all__ = [
    "READERS",
    "Arrays",
    "AudioFiles",
    "AudioFolder",
    "AudioText",
    "Coco",
    "CsvTable",
    "Idx",
    "ImageFiles",
    "ImageFolder",
    "JsonLines",
    "KdConv",
    "NiftiFolder",
    "PascalVoc",
    "Reader",
    "SegmentationFolder",
    "TextLines",
    "decode_rle",
    "fill_polygon",
    "kdconv_chats",
    "open_reader",
    "read_idx",
]

_HERE = "deepseek.data.readers"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "READERS": f"{_HERE}.table:READERS",
        "Arrays": f"{_HERE}.arrays:Arrays",
        "AudioFiles": f"{_HERE}.audio_folder:AudioFiles",
        "AudioFolder": f"{_HERE}.audio_folder:AudioFolder",
        "AudioText": f"{_HERE}.audio_folder:AudioText",
        "Coco": f"{_HERE}.coco:Coco",
        "CsvTable": f"{_HERE}.csv_table:CsvTable",
        "Idx": f"{_HERE}.idx:Idx",
        "ImageFiles": f"{_HERE}.image_folder:ImageFiles",
        "ImageFolder": f"{_HERE}.image_folder:ImageFolder",
        "JsonLines": f"{_HERE}.jsonl:JsonLines",
        "KdConv": f"{_HERE}.kdconv:KdConv",
        "NiftiFolder": f"{_HERE}.nifti_folder:NiftiFolder",
        "PascalVoc": f"{_HERE}.voc:PascalVoc",
        "Reader": f"{_HERE}.reader:Reader",
        "SegmentationFolder": f"{_HERE}.segmentation:SegmentationFolder",
        "TextLines": f"{_HERE}.text_lines:TextLines",
        "decode_rle": f"{_HERE}.regions:decode_rle",
        "fill_polygon": f"{_HERE}.regions:fill_polygon",
        "kdconv_chats": f"{_HERE}.kdconv:kdconv_chats",
        "open_reader": f"{_HERE}.opening:open_reader",
        "read_idx": f"{_HERE}.idx:read_idx",
    },
)
