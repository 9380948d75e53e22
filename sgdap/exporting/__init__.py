"""Files that other runtimes run, checked there, and small ones of our own."""

from sgdap.exporting.file import export
from sgdap.exporting.packing import pack, unpack
from sgdap.exporting.report import ExportReport

__all__ = ["ExportReport", "export", "pack", "unpack"]
