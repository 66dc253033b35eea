"""The reports of a run and of an evaluation: self-contained pages, and figures."""

from segmv3.report.page import write_classification_report, write_report
from segmv3.report.ranking import write_evaluation_page
from segmv3.report.samples import Sample

__all__ = ["Sample", "write_classification_report", "write_evaluation_page", "write_report"]
