"""Removing duplicates from a stream: texts come block by block, each is kept or dropped at once, the first one stays.

A text is dropped where it is alike to one kept before it, so how the stream is cut into blocks changes nothing. The
similarity is estimated from sketches of 128 bytes (`minhash`), since the texts themselves are gone. A state is written
to one safetensors file and goes on from there. Not here: texts all at hand, with clusters and true similarity
(`duplicates`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

import deepseek.files as files
from deepseek.data.cooker.dedup.duplicates import DISTANCE, FIRST_SLACK, THRESHOLD, Method
from deepseek.data.cooker.dedup.exact import HASH_BYTES, exact_hashes
from deepseek.data.cooker.dedup.growing import Growing
from deepseek.data.cooker.dedup.minhash import PLACES, choose_bands
from deepseek.data.cooker.dedup.minhash_index import MinHashIndex
from deepseek.data.cooker.dedup.ngrams import Features, NGrams
from deepseek.data.cooker.dedup.parallel import map_blocks
from deepseek.data.cooker.dedup.simhash import majority_bits
from deepseek.data.cooker.dedup.simhash_index import SimHashIndex
from deepseek.data.cooker.dedup.sketches import alike, sketches_of
from deepseek.errors import ConfigError, DataError

_FORMAT = "deepseek.dedup.1"
_BLOCK = 1024


class DedupState:
    """The texts kept so far, as codes.

    `method`, `threshold`, `distance` and the n-grams are those of `find_duplicates`. A million short texts take about
    300 MB with SimHash at its default distance. Raises ConfigError for a wrong setting.
    """

    def __init__(
        self,
        method: Method = "simhash",
        threshold: float = THRESHOLD,
        *,
        distance: int = DISTANCE,
        ngrams: NGrams | None = None,
        workers: int | None = None,
    ) -> None:
        if method not in get_args(Method):
            raise ConfigError("unknown method", found=repr(method), wanted=", ".join(get_args(Method)))
        self.method: Method = method
        self.threshold = threshold
        self.ngrams = NGrams() if ngrams is None else ngrams
        self.workers = workers
        self.seen = 0
        self.distance = distance
        self._exact: set[bytes] = set()
        self._codes = SimHashIndex(distance)
        self._bands = MinHashIndex(choose_bands(threshold))
        self._sketches = Growing(np.zeros((0, PLACES), dtype=np.uint8))

    def __len__(self) -> int:
        """How many kept texts later ones are compared with."""
        return len(self._exact) if self.method == "exact" else len(self._sketches)

    def add(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which of `texts` to keep, bool (texts,), and remember those. Blocks of thousands are quickest."""
        self.seen += len(texts)
        if self.method == "exact":
            return np.array([self._is_new(digest) for digest in exact_hashes(texts)], dtype=np.bool_)
        masks = [self._add_block(texts[start : start + _BLOCK]) for start in range(0, len(texts), _BLOCK)]
        return np.concatenate(masks) if masks else np.zeros(0, dtype=np.bool_)

    def _is_new(self, digest: bytes) -> bool:
        if digest in self._exact:
            return False
        self._exact.add(digest)
        return True

    def _add_block(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        keep = np.ones(len(texts), dtype=np.bool_)
        parts = map_blocks(lambda block: self._codes_of(self.ngrams.features(block)), texts, self.workers, 1024)
        keys = np.concatenate([part[0] for part in parts])
        sketches = np.concatenate([part[1] for part in parts])
        some = np.flatnonzero(np.concatenate([part[2] for part in parts]))  # a text without features stays
        keys, sketches = keys[some], sketches[some]
        stored, queried = self._search(keys)
        good = alike(self._sketches.rows, stored, sketches, queried, self.threshold)
        fresh = np.ones(len(some), dtype=np.bool_)
        fresh[queried[good]] = False
        for place in range(len(some)):
            if not fresh[place]:
                continue
            rest = np.flatnonzero(fresh[place + 1 :] & self._near(keys[place], keys[place + 1 :])) + place + 1
            if len(rest):
                good = alike(sketches, np.full(len(rest), place), sketches, rest, self.threshold)
                fresh[rest[good]] = False
        (self._codes if self.method == "simhash" else self._bands).add(keys[fresh])
        self._sketches.append(sketches[fresh])
        keep[some] = fresh
        return keep

    def _codes_of(self, features: Features) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.bool_]]:
        """Return keys to search by, sketches, and which texts have features."""
        signature, sketches = sketches_of(features)
        keys = majority_bits(features) if self.method == "simhash" else self._bands.keys_of(signature)
        return keys, sketches, np.diff(features.offsets) > 0

    def _search(self, keys: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.method == "simhash":
            return self._codes.search(keys, self.distance + FIRST_SLACK)[:2]
        return self._bands.search(keys)

    def _near(self, key: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which of `keys` the method proposes for `key`."""
        if self.method == "simhash":
            return self._codes.near(keys ^ key, self.distance + FIRST_SLACK)
        equal: NDArray[np.bool_] = (keys == key).any(axis=1)
        return equal

    def save(self, path: str | Path) -> None:
        """Write the state, atomically. Raises StorageError when the disk refuses."""
        from safetensors.numpy import save_file

        digests = np.frombuffer(b"".join(sorted(self._exact)), dtype=np.uint8).reshape(-1, HASH_BYTES)
        arrays = {
            "exact": digests,
            "codes": self._codes.codes,
            "bands": self._bands.keys,
            "sketches": self._sketches.rows,
        }
        with files.atomic_path(Path(path)) as temporary:
            save_file({name: np.ascontiguousarray(rows) for name, rows in arrays.items()}, temporary, self._metadata())

    def _metadata(self) -> dict[str, str]:
        settings = {
            "method": self.method,
            "threshold": self.threshold,
            "distance": self.distance,
            "words": self.ngrams.words,
            "characters": self.ngrams.characters,
            "seen": self.seen,
        }
        return {"format": _FORMAT, "settings": json.dumps(settings)}

    @classmethod
    def load(cls, path: str | Path, workers: int | None = None) -> DedupState:
        """Return the state that `save` wrote. Raises DataError for a file that is missing, damaged or another thing."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as handle:
                metadata = handle.metadata() or {}
                arrays = {name: handle.get_tensor(name) for name in handle.keys()}
            settings = json.loads(metadata["settings"])
            if metadata["format"] != _FORMAT:
                raise DataError(f"{path} is of another format", found=metadata["format"], wanted=_FORMAT)
            grams = NGrams(int(settings["words"]), int(settings["characters"]))
            threshold, distance = float(settings["threshold"]), int(settings["distance"])
            state = cls(settings["method"], threshold, distance=distance, ngrams=grams, workers=workers)
            state.seen = int(settings["seen"])
            state._restore(arrays)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path} is no state of a search for duplicates",
                found=f"{type(error).__name__}: {error}",
                wanted="a file that DedupState.save wrote",
                fix="remove it and start over",
            ) from error
        return state

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
            "exact": (np.uint8, (HASH_BYTES,)),
            "codes": (np.uint64, ()),
            "bands": (np.uint16, (self._bands.bands.number,)),
            "sketches": (np.uint8, (PLACES,)),
        }
        for name, (dtype, shape) in wanted.items():
            if arrays[name].dtype != dtype or arrays[name].shape[1:] != shape or arrays[name].ndim != len(shape) + 1:
                raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
        counts = {"simhash": len(arrays["codes"]), "minhash": len(arrays["bands"]), "exact": 0}
        if len(arrays["sketches"]) != counts[self.method]:
            raise ValueError(f"{len(arrays['sketches'])} sketches for {counts[self.method]} texts")
        self._exact = {row.tobytes() for row in arrays["exact"]}
        self._codes.add(arrays["codes"])
        self._bands.add(arrays["bands"])
        self._sketches = Growing(arrays["sketches"])
