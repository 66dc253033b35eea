"""The report of a run: one self-contained page and its figures."""

from segmv3.report.page import write_classification_report, write_report
from segmv3.report.plots import Sample

__all__ = ["Sample", "write_classification_report", "write_report"]
