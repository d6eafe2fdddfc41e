"""What Core ML can make of weights: palettes, linear int8 and int4, and both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgedistill_export.mil.sdk import coremltools

__all__ = ["SCHEMES", "Scheme"]

_Compress = Callable[[Any, Sequence[str]], Any]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A precision.

    Attributes:
        opset: The oldest that can hold it.
        compress: (program, names of the weights to leave alone) -> program.
    """

    opset: str = "iOS17"
    compress: _Compress = lambda model, kept: model  # noqa: E731


def _config(setting: Any, kept: Sequence[str]) -> Any:
    return coremltools.optimize.coreml.OptimizationConfig(
        global_config=setting, op_name_configs=dict.fromkeys(kept)
    )


def _palette(bits: int, **setting: Any) -> _Compress:
    def compress(model: Any, kept: Sequence[str]) -> Any:
        palettizer = coremltools.optimize.coreml.OpPalettizerConfig(
            mode="kmeans", nbits=bits, **setting
        )
        return coremltools.optimize.coreml.palettize_weights(model, _config(palettizer, kept))

    return compress


def _linear(**setting: Any) -> _Compress:
    def compress(model: Any, kept: Sequence[str]) -> Any:
        quantizer = coremltools.optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", **setting
        )
        return coremltools.optimize.coreml.linear_quantize_weights(model, _config(quantizer, kept))

    return compress


SCHEMES: Mapping[str, Scheme] = {
    "fp16": Scheme(),
    "fp32": Scheme(),
    "pal8": Scheme(compress=_palette(8)),
    "pal6": Scheme(compress=_palette(6)),
    "int8": Scheme(compress=_linear(dtype="int8")),
}
"""By precision; all but fp32 start from float16."""
