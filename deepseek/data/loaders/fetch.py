"""One batch: its samples read, with a policy for those that fail, and joined. The same in a worker and without one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from deepseek.data.pipeline import collate
from deepseek.errors import ConfigError, DataError, DeepSeekError

OnError = Literal["raise", "skip", "retry"]
Progress = Callable[[int], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ErrorPolicy:
    """What happens to a sample that can't be read, and to a worker that dies or hangs.

    "raise" ends with DataError. "skip" leaves the sample out of its batch, with a warning in the log; a lost worker
    is still an error. "retry" reads the sample again, or starts a new worker, up to `retries` times, with a pause of
    `backoff` seconds that doubles each time.
    """

    on_error: OnError = "raise"
    retries: int = 2
    backoff: float = 0.1

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            raise ConfigError("unknown on_error policy", found=repr(self.on_error), wanted="'raise', 'skip' or 'retry'")
        if self.retries < 0 or not 0.0 <= self.backoff <= 3600.0:
            raise ConfigError(
                "retries or backoff is out of range",
                found=f"retries={self.retries}, backoff={self.backoff}",
                wanted="retries at least 0, backoff 0 to 3600 seconds",
            )

    @property
    def attempts(self) -> int:
        """How often something is tried in all."""
        return 1 + (self.retries if self.on_error == "retry" else 0)


class Made(NamedTuple):
    """A batch and the indices of samples that were left out of it."""

    batch: Any
    skipped: tuple[int, ...] = ()


class BatchMaker:
    """Reads samples of `reader` (a Reader, or anything with `__getitem__`) and joins them by `collate_fn`.

    Samples that are dicts get `index` and `epoch`. `collate_fn` takes the list of samples; None stands for the
    pipeline's `collate` for dicts, and torch's `default_collate` for anything else.
    """

    def __init__(self, reader: Any, collate_fn: Callable[[list[Any]], Any] | None, policy: ErrorPolicy) -> None:
        is_reader = hasattr(reader, "read")
        if not hasattr(reader, "__len__") or not (is_reader or hasattr(reader, "__getitem__")):
            raise ConfigError(
                "this is no data set",
                found=type(reader).__name__,
                wanted="a path, or an object with __len__ and read(index) or __getitem__(index)",
            )
        self._read: Callable[[int], Any] = reader.read if is_reader else reader.__getitem__
        self._read_many: Callable[[list[int]], list[Any]] | None = getattr(
            reader, "read_many" if is_reader else "__getitems__", None
        )
        self._collate = collate_fn
        self._policy = policy

    def make(self, epoch: int, indices: Sequence[int], progress: Progress) -> Made:
        """Return the batch of the samples `indices`. `progress` is told each sample before it is read, -1 after.

        Raises DataError naming the sample, or what `collate_fn` raises.
        """
        found, skipped = self._samples(indices, progress)
        progress(-1)
        if not found:
            raise DataError("no sample of the batch could be read", found=f"{len(skipped)} samples, all skipped")
        if isinstance(found[0][1], Mapping):
            samples: list[Any] = [{**sample, "index": index, "epoch": epoch} for index, sample in found]
        else:
            samples = [sample for _, sample in found]
        return Made(self._join(samples), tuple(skipped))

    def _samples(self, indices: Sequence[int], progress: Progress) -> tuple[list[tuple[int, Any]], list[int]]:
        if self._read_many is not None:
            try:
                return list(zip(indices, self._read_many(list(indices)), strict=True)), []
            except Exception as error:
                _log.debug("a batch can't be read at once (%s); reading one by one to find the sample", error)
        read, samples, skipped = self._read, [], []
        for index in indices:
            progress(index)
            try:
                samples.append((index, read(index)))
            except Exception as error:
                if self._policy.on_error == "skip":
                    _log.warning("skipped a sample: %s", explained(error, f"sample {index} can't be read"))
                    skipped.append(index)
                else:
                    samples.append((index, self._read_again(index, error)))
        return samples, skipped

    def _read_again(self, index: int, error: Exception) -> Any:
        """Read a sample after it failed with `error`, as often as policy allows. Raises DataError."""
        for attempt in range(1, self._policy.attempts):
            _log.warning("sample %d can't be read, trying again: %s", index, error)
            time.sleep(self._policy.backoff * 2 ** (attempt - 1))
            try:
                return self._read(index)
            except Exception as another:
                error = another
        raise explained(error, f"sample {index} can't be read") from error

    def _join(self, samples: list[Any]) -> Any:
        if self._collate is not None:
            return self._collate(samples)
        if isinstance(samples[0], Mapping):
            return collate(samples)
        from torch.utils.data import default_collate

        return default_collate(samples)


def explained(error: Exception, what: str) -> DataError:
    """Return `error` as a DataError whose problem begins with `what`; what an error of ours says is kept."""
    if isinstance(error, DeepSeekError):
        return DataError(f"{what}: {error.problem}", found=error.found, wanted=error.wanted, fix=error.fix)
    return DataError(what, found=f"{type(error).__name__}: {error}")
