"""Duplicates and near-duplicates among texts: exact hash, SimHash and MinHash, at once or in a stream."""

from deepseek.data.cooker.dedup.duplicates import Duplicates, find_duplicates
from deepseek.data.cooker.dedup.exact import Normalization, exact_hashes
from deepseek.data.cooker.dedup.minhash import minhash
from deepseek.data.cooker.dedup.ngrams import NGrams
from deepseek.data.cooker.dedup.quality import QualityReport, QualityRow, measure_quality
from deepseek.data.cooker.dedup.simhash import simhash
from deepseek.data.cooker.dedup.simhash_index import SimHashIndex
from deepseek.data.cooker.dedup.state import DedupState

__all__ = [
    "DedupState",
    "Duplicates",
    "NGrams",
    "Normalization",
    "QualityReport",
    "QualityRow",
    "SimHashIndex",
    "exact_hashes",
    "find_duplicates",
    "measure_quality",
    "minhash",
    "simhash",
]
