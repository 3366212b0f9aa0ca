"""Figures and the report page, from run folders alone."""

from vitrail.report.page import write_report

__all__ = ["write_report"]
