"""Constant folding and node removal by ONNX Runtime, in standard operators only."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort

from edgedistill_export import onnx_files

__all__ = ["optimise"]


def optimise(source: Path) -> onnx.ModelProto:
    """The optimised model of a file, with the type of every tensor; writes beside `source`.

    Only the basic level is kept. The extended one puts in operators that no other engine reads and
    made no difference on CPUs; the full one fixes a convolution layout for one kind of CPU, which
    the runtime therefore picks when it loads, on the device (25 to 35 % faster, 0.1 s).
    """
    path = source.with_suffix(".optimised.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if onnx_files.data_file(source).exists():
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name",
            onnx_files.data_file(path).name,
        )
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    model = onnx_files.read(path)
    _keep_used_domains(model)
    return model


def _keep_used_domains(model: onnx.ModelProto) -> None:
    """ONNX Runtime declares every operator set it knows; other engines refuse some of them."""
    used = {node.domain for node in model.graph.node}
    domains = [domain for domain in model.opset_import if domain.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(domains)
