"""The report: runs side by side in one HTML file that opens offline; its figures also as PNG and SVG."""

from evalsuite.report.build import page, write

__all__ = ["page", "write"]
