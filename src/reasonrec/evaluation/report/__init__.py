"""The report: one self-contained HTML file over a finished run."""

from reasonrec.evaluation.report.records import RunRecords, load_run
from reasonrec.evaluation.report.render import write_report

__all__ = ["RunRecords", "load_run", "write_report"]
