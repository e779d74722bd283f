"""Files to files: a plan of steps over rows, run by processes or by Ray, exactly once."""

from deepseek.data.etl.plan import DataPipeline
from deepseek.data.etl.report import Progress, RunReport, StepCount

__all__ = ["DataPipeline", "Progress", "RunReport", "StepCount"]
