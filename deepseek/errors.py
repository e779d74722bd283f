"""The exception tree: every error a user can cause says the value found, the value wanted and the next step.

DeepSeekError
├── ConfigError            (ValueError)       a recipe, YAML file or argument is wrong
├── DataError              (ValueError)       a file of data is missing, empty, corrupt or too small
│   └── TokenizerError                        the tokenizer can't be trained or does not fit
├── ModelError             (ValueError)       a model can't be built or called this way
├── BundleError            (ValueError)       a bundle is missing, damaged, unsafe or of another version
├── CheckpointError        (RuntimeError)     a checkpoint can't be written or read
├── StorageError           (OSError)          the disk refused: full, read-only, no permission
├── RunLockedError         (RuntimeError)     another process is writing to this folder
├── TrainingError          (RuntimeError)     training can't go on
│   ├── MemoryEstimateError                   the run would not fit in memory
│   └── NonFiniteLossError                    the loss is NaN or infinite
├── ExportError            (RuntimeError)     a model can't be exported
│   └── ParityError                           the exported model answers differently
├── QuantizationError      (ValueError)       a model can't be quantized this way
├── RequestError           (ValueError)       a request to the server is wrong (carries field and status)
└── MissingExtraError      (ImportError)      an optional stack is not installed

Not here: logging, retries and exit codes; the command line maps this tree to exit codes in `deepseek.cli`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeepSeekError(Exception):
    """Base of all our errors.

    `problem` says what is wrong, `found` and `wanted` the two values, `fix` what to do next.
    Each part is kept as an attribute, so that programs need not parse the message.
    """

    def __init__(self, problem: str, *, found: object = None, wanted: object = None, fix: str | None = None) -> None:
        self.problem = problem
        self.found = found
        self.wanted = wanted
        self.fix = fix
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.problem]
        if self.found is not None:
            parts.append(f"  found:  {self.found}")
        if self.wanted is not None:
            parts.append(f"  wanted: {self.wanted}")
        if self.fix is not None:
            parts.append(f"  next:   {self.fix}")
        return "\n".join(parts)

    def __str__(self) -> str:
        return self._message()


class ConfigError(DeepSeekError, ValueError):
    """A recipe, YAML file or argument is wrong; the message names the key and, for files, `file:line`."""


class DataError(DeepSeekError, ValueError):
    """A file of data is missing, empty, corrupt or too small; the message names file and line."""


class TokenizerError(DataError):
    """The tokenizer can't be trained on this data or does not fit the model."""


class ModelError(DeepSeekError, ValueError):
    """A model can't be built or called this way."""


class BundleError(DeepSeekError, ValueError):
    """A bundle is missing, damaged, unsafe or of another format version."""


class CheckpointError(DeepSeekError, RuntimeError):
    """A checkpoint can't be written or read. What was committed before is untouched."""


class StorageError(DeepSeekError, OSError):
    """The disk refused: full, read-only or no permission. Nothing was overwritten."""


class RunLockedError(DeepSeekError, RuntimeError):
    """Another process is writing to this folder; the message names its pid and host."""


class TrainingError(DeepSeekError, RuntimeError):
    """Training can't go on."""


class MemoryEstimateError(TrainingError):
    """The run would not fit in memory; raised before anything is allocated."""


class NonFiniteLossError(TrainingError):
    """The loss or the gradient is NaN or infinite; the weights of the last good step are kept."""


class ExportError(DeepSeekError, RuntimeError):
    """A model can't be exported to this format."""


class ParityError(ExportError):
    """The exported model answers differently from the original; nothing was written."""


class QuantizationError(DeepSeekError, ValueError):
    """A model can't be quantized this way."""


class RequestError(DeepSeekError, ValueError):
    """A request to the server is wrong. `field` is the name in the request, `status` the HTTP status."""

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        status: int = 400,
        found: object = None,
        wanted: object = None,
        fix: str | None = None,
    ) -> None:
        self.field = field
        self.status = status
        super().__init__(problem, found=found, wanted=wanted, fix=fix)


class MissingExtraError(DeepSeekError, ImportError):
    """An optional stack is not installed; the message is the install line.

    `extra` is None for a package that no extra of ours brings.
    """

    def __init__(self, package: str, extra: str | None) -> None:
        self.package = package
        self.extra = extra
        if extra is None:
            super().__init__(f"'{package}' is not installed", fix=f"pip install {package}")
            return
        super().__init__(
            f"'{package}' is not installed; it comes with the extra [{extra}]",
            fix=f"pip install 'deepseek-framework[{extra}]'",
        )


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to `limit` known names that look like `name`, best first, letter case ignored."""
    spelling = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), spelling, n=limit, cutoff=0.5)
    return [spelling[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"did you mean 'x' or 'y'?"`, or the list of known names where none is near."""
    choices = sorted(known)
    near = nearest(name, choices)
    if near:
        return "did you mean " + " or ".join(f"'{match}'" for match in near) + "?"
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"known names: {shown}"
