"""Pipelines: stages that declare their domain, planned into an order, deterministic for each sample."""

from deepseek.data.pipeline.collate import collate
from deepseek.data.pipeline.pipeline import Pipeline
from deepseek.data.pipeline.stage import BatchStage, Domain, Sample, SampleStage, Stage, StageGroup

__all__ = ["BatchStage", "Domain", "Pipeline", "Sample", "SampleStage", "Stage", "StageGroup", "collate"]
