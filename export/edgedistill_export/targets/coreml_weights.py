"""What Core ML can make of float16 weights: palettes, linear int8 and int4, and both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgedistill_export.mil.sdk import coremltools

__all__ = ["SCHEMES", "Scheme"]


@dataclass(frozen=True)
class _Palette:
    """Weights as indices into a table that k-means finds."""

    bits: int
    group: int = 0
    """Output channels that share a table; all of them if 0."""

    name = "compression::palettize_weights"
    joint = False

    def setting(self) -> Any:
        groups = {"granularity": "per_grouped_channel", "group_size": self.group}
        return coremltools.optimize.coreml.OpPalettizerConfig(
            mode="kmeans", nbits=self.bits, **(groups if self.group else {})
        )


@dataclass(frozen=True)
class _Linear:
    """Weights, or the tables of a palette if `joint`, as integers with scales, symmetric."""

    dtype: str
    block: int = 0
    """Input channels that share a scale; all those of an output channel if 0."""
    joint: bool = False

    name = "compression::linear_quantize_weights"

    def setting(self) -> Any:
        blocks: dict[str, Any] = {}
        if self.block:
            blocks = {"granularity": "per_block", "block_size": self.block}
        if self.joint:
            blocks = {"granularity": "per_tensor"}
        return coremltools.optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=self.dtype, **blocks
        )


@dataclass(frozen=True)
class Scheme:
    """A precision.

    Attributes:
        opset: The oldest that can hold it.
        half: Whether the program is float16 inside.
        steps: What is done to the weights.
    """

    opset: str = "iOS17"
    half: bool = True
    steps: Sequence[_Palette | _Linear] = field(default=())

    def pipeline(self, kept: Sequence[str]) -> Any:
        """The converter's passes, and at their end those that compress weights.

        Args:
            kept: Names of the weights that stay as they are.
        """
        passes = coremltools.PassPipeline.DEFAULT
        for step in self.steps:
            config = coremltools.optimize.coreml.OptimizationConfig(
                global_config=step.setting(), op_name_configs=dict.fromkeys(kept)
            )
            passes.append_pass(step.name)
            passes.set_options(step.name, {"config": config, "joint_compression": step.joint})
        return passes


SCHEMES: Mapping[str, Scheme] = {
    "fp32": Scheme(half=False),
    "fp16": Scheme(),
    "pal8": Scheme(steps=(_Palette(8),)),
    "pal6": Scheme(steps=(_Palette(6),)),
    "pal4": Scheme("iOS18", steps=(_Palette(4, group=16),)),
    "pal3": Scheme("iOS18", steps=(_Palette(3, group=16),)),
    "pal2": Scheme("iOS18", steps=(_Palette(2, group=16),)),
    "pal1": Scheme("iOS18", steps=(_Palette(1, group=16),)),
    "int8": Scheme(steps=(_Linear("int8"),)),
    "int4": Scheme("iOS18", steps=(_Linear("int4", block=32),)),
    "joint": Scheme("iOS18", steps=(_Palette(4, group=16), _Linear("int8", joint=True))),
}
"""By precision; the compressed ones start from float16."""
