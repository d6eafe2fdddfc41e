"""Core ML programs, read from the saved package and run without a Mac."""

from edgedistill_export.mil.interpreter import Interpreter
from edgedistill_export.mil.reader import read_package

__all__ = ["Interpreter", "read_package"]
