"""The order of a pipeline's stages: each runs where its domain is, as near to the written order as that allows.

`Pipeline([Resample(), SpecAugment(), FeatureExtract(type="mfcc")])` is written with masking before features; the mask
works on spectrograms, which only come about inside FeatureExtract, so it runs between its two halves.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepseek.data.pipeline.stage import ROADS, Domain, Stage, StageGroup
from deepseek.errors import ConfigError

_MAKERS = {
    Domain.SPECTROGRAM: "FeatureExtract(type='log_mel')",
    Domain.FEATURES: "FeatureExtract(type='log_mel')",
    Domain.PIXELS: "Normalize()",
    Domain.TOKENS: "Tokenize(tokenizer)",
}


def plan(written: Sequence[Stage | StageGroup]) -> tuple[Stage, ...]:
    """Return the stages in the order they run. Raises ConfigError where a stage's domain never comes about."""
    left: list[Stage] = []
    for one in written:
        if isinstance(one, StageGroup):
            left += one.stages()
        elif isinstance(one, Stage):
            left.append(one)
        else:
            raise ConfigError(
                "this is no stage of a pipeline",
                found=one.__name__ + ", a class" if isinstance(one, type) else repr(one),
                wanted="an instance such as Resample(target_sr=16000)",
            )
    _check_makers(left)
    _check_roads(left)
    ordered: list[Stage] = []
    while left:
        ready = next((stage for stage in left if _is_ready(stage, left)), None)
        if ready is None:
            raise ConfigError("the stages wait for one another", found=", ".join(map(repr, left)))
        ordered.append(ready)
        left = [stage for stage in left if stage is not ready]
    return tuple(ordered)


def _is_ready(stage: Stage, left: Sequence[Stage]) -> bool:
    """Return whether the sample is in the stage's domain now and, if the stage leaves it, nobody else waits there."""
    others = [other for other in left if other is not stage]
    if any(_converts(other) and other.gives == stage.takes for other in others):
        return False
    return not _converts(stage) or not any(not _converts(other) and other.takes == stage.takes for other in others)


def _converts(stage: Stage) -> bool:
    return stage.takes != stage.gives


def _check_makers(stages: Sequence[Stage]) -> None:
    """Refuse two stages that make the same domain, or that leave the same one."""
    for side in ("takes", "gives"):
        seen: dict[Domain, Stage] = {}
        for stage in filter(_converts, stages):
            domain: Domain = getattr(stage, side)
            if domain in seen:
                raise ConfigError(
                    f"two stages {'make' if side == 'gives' else 'use up'} the {domain.name.lower()}",
                    found=f"{seen[domain]!r} and {stage!r}",
                    wanted="one of them",
                )
            seen[domain] = stage


def _check_roads(stages: Sequence[Stage]) -> None:
    """Refuse a stage whose domain is neither the first one in use on its road nor made by another stage."""
    for road in ROADS:
        on_road = [stage for stage in stages if stage.takes in road]
        made = {stage.gives for stage in on_road if _converts(stage)}
        starts = sorted({stage.takes for stage in on_road} - made, key=road.index)
        for domain in starts[1:]:
            stage = next(stage for stage in on_road if stage.takes == domain)
            raise ConfigError(
                f"{stage!r} works on {domain.name.lower()}, which no stage makes",
                found=f"samples that are {starts[0].name.lower()} for {_first(on_road, starts[0])!r}",
                fix=f"add {_MAKERS[domain]}",
            )


def _first(stages: Sequence[Stage], domain: Domain) -> Stage:
    return next(stage for stage in stages if stage.takes == domain)
