"""A pipeline: stages in a planned order, applied to one sample or to the samples of a batch.

Pure: what comes out depends on the samples, the stages, and (seed, epoch, index) alone, in any process and any order.
Not here: reading files (`deepseek.data.readers`) and loading in workers (`deepseek.data.loaders`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, overload

from deepseek.data.pipeline.collate import collate
from deepseek.data.pipeline.plan import plan
from deepseek.data.pipeline.randomness import batch_rng, sample_rng
from deepseek.data.pipeline.stage import BatchStage, Sample, SampleStage, Stage, StageGroup
from deepseek.errors import ConfigError, DataError, DeepSeekError
from deepseek.registry import STAGES, resolve

OnError = Literal["raise", "skip"]
_log = logging.getLogger(__name__)


class Pipeline:
    """Stages, ordered so that each finds its domain; the order is what `repr` shows.

    Called with one sample (a dict) it returns the sample; called with a list of samples it returns a batch, a dict of
    tensors: so it serves as `collate_fn`. A sample's random numbers follow from `seed`, its `epoch` (0 where it has
    none) and its `index` (its place in the list where it has none).

    `keep` names values that go into a batch as lists, such as "path". `on_error` "skip" leaves a sample that a stage
    refuses out of the batch, with a warning in the log; "raise" ends with DataError naming stage, sample and file.

    Raises ConfigError for stages that can't follow each other, naming the missing one.
    """

    def __init__(
        self,
        stages: Sequence[Stage | StageGroup],
        *,
        seed: int = 0,
        keep: Sequence[str] = (),
        on_error: OnError = "raise",
    ) -> None:
        if on_error not in get_args(OnError):
            raise ConfigError("unknown on_error policy", found=repr(on_error), wanted="'raise' or 'skip'")
        if not 0 <= seed < 2**64:
            raise ConfigError("seed is out of range", found=seed, wanted="0 to 2**64 - 1")
        self.written = tuple(stages)
        self.steps = plan(self.written)
        self.seed = seed
        self.keep = tuple(keep)
        self.on_error: OnError = on_error

    @overload
    def __call__(self, data: Mapping[str, Any]) -> Sample: ...

    @overload
    def __call__(self, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]: ...

    def __call__(self, data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Sample | dict[str, Any]:
        if isinstance(data, Mapping):
            return self._run([dict(data)], "raise")[0]
        return collate(self.apply(data), self.keep)

    def apply(self, samples: Sequence[Mapping[str, Any]]) -> list[Sample]:
        """Return the samples of a batch after all stages, not yet joined to tensors. Raises DataError."""
        done = self._run([dict(sample) for sample in samples], self.on_error)
        if not done and samples:
            raise DataError("no sample of the batch could be used", found=f"{len(samples)} samples, all skipped")
        return done

    def without_augmentation(self) -> Pipeline:
        """Return the pipeline for evaluation and serving: without the stages that are for training alone."""
        kept = [one for one in self.written if not (isinstance(one, Stage) and one.augments)]
        return Pipeline(kept, seed=self.seed, keep=self.keep, on_error=self.on_error)

    def to_config(self) -> list[dict[str, Any]]:
        """Return the stages as plain values, `{"name", setting: value}` each, for YAML; `from_config` reads them.

        Raises ConfigError for a stage that is no name of `deepseek.registry.STAGES`.
        """
        return [_stage_config(one) for one in self.written]

    @classmethod
    def from_config(cls, stages: Sequence[Mapping[str, Any]], **options: Any) -> Pipeline:
        """Return the pipeline of `to_config`'s values. Raises ConfigError for a wrong name or setting."""
        return cls([_stage_from_config(one) for one in stages], **options)

    def __repr__(self) -> str:
        lines = []
        for place, step in enumerate(self.steps, 1):
            road = step.takes if step.takes == step.gives else f"{step.takes} -> {step.gives}"
            together = ", whole batch" if isinstance(step, BatchStage) else ""
            lines.append(f"  {place}. {step!r}  [{road}{together}]")
        return "\n".join([f"Pipeline, seed {self.seed}", *(lines or ["  (no stages)"])])

    def _run(self, samples: list[Sample], on_error: OnError) -> list[Sample]:
        for place, sample in enumerate(samples):
            sample.setdefault("index", place)
        for number, step in enumerate(self.steps):
            if isinstance(step, BatchStage) and samples:
                indices = [sample["index"] for sample in samples]
                rng = batch_rng(self.seed, samples[0].get("epoch", 0), indices, number)
                try:
                    samples = step.apply_batch([_with_domain(sample, step) for sample in samples], rng)
                except Exception as error:
                    raise _explained(error, step, samples) from error
            elif isinstance(step, SampleStage):
                samples = self._each(step, number, samples, on_error)
        return samples

    def _each(self, step: SampleStage, number: int, samples: list[Sample], on_error: OnError) -> list[Sample]:
        done = []
        for sample in samples:
            rng = sample_rng(self.seed, sample.get("epoch", 0), sample["index"], number)
            try:
                done.append(step.apply(_with_domain(sample, step), rng))
            except Exception as error:
                explained = _explained(error, step, [sample])
                if on_error == "raise":
                    raise explained from error
                _log.warning("skipped a sample: %s", explained)
        return done


def _with_domain(sample: Sample, step: Stage) -> Sample:
    if step.takes not in sample:
        raise DataError(f"the sample has no '{step.takes}'", found=", ".join(sorted(sample)))
    return sample


def _explained(error: Exception, step: Stage, samples: Sequence[Sample]) -> DataError:
    """Return the error with its stage, its samples and their file."""
    which = ", ".join(str(sample["index"]) for sample in samples[:8]) + (", ..." if len(samples) > 8 else "")
    paths = [str(sample["path"]) for sample in samples if "path" in sample]
    where = f" ({paths[0]})" if paths else ""
    found = error.problem if isinstance(error, DeepSeekError) else f"{type(error).__name__}: {error}"
    if isinstance(error, DeepSeekError) and error.found is not None:
        found = f"{found}: {error.found}"
    return DataError(
        f"the stage {type(step).__name__} failed on sample{'s' if len(samples) > 1 else ''} {which}{where}",
        found=found,
        wanted=error.wanted if isinstance(error, DeepSeekError) else None,
        fix=error.fix if isinstance(error, DeepSeekError) else None,
    )


def _stage_config(one: Stage | StageGroup) -> dict[str, Any]:
    name = type(one).__name__
    if name not in STAGES or not dataclasses.is_dataclass(one):
        raise ConfigError("this stage has no name in YAML", found=name, fix="add it to deepseek.registry.STAGES")
    values = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    return {"name": name, **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}}


def _stage_from_config(settings: Mapping[str, Any]) -> Stage | StageGroup:
    values = dict(settings)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("a stage needs a name", found=repr(dict(settings)), wanted="{'name': 'Resample', ...}")
    stage: Any = resolve(STAGES, name, "stage")
    known = {field.name for field in dataclasses.fields(stage)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{name} has no setting '{key}'", wanted=", ".join(sorted(known)) or "no settings")
    made: Stage | StageGroup = stage(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )
    return made
