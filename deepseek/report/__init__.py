"""The run report: one self-contained `report.html` that says what a run did, with its numbers and charts.

It reads what the road left in the run folder and measures nothing itself.
"""

from deepseek.report.page import render_report

__all__ = ["render_report"]
