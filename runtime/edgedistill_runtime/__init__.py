"""Draw with an edgedistill bundle on the device: numpy, ONNX Runtime, tokenizers, never torch."""

from edgedistill_runtime.manifest import BundleError, Manifest
from edgedistill_runtime.pipeline import Pipeline, Result
from edgedistill_runtime.router import Router
from edgedistill_runtime.steps import StepTable

__all__ = ["BundleError", "Manifest", "Pipeline", "Result", "Router", "StepTable"]
__version__ = "0.1.0"
