"""What Core ML can make of float16 weights: palettes, linear int8 and int4, and both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import gcd
from typing import Any

from torch import Tensor, nn

from edgedistill_export.mil.sdk import coremltools
from edgedistill_export.targets.coreml_palette import find_palette

__all__ = ["LAYERS", "SCHEMES", "WeightScheme"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""What has a weight to compress; Core ML leaves those up to 2048 numbers alone."""

_MIN_BLOCK = 8
"""Smaller blocks take more for their scales than int4 saves; there a channel shares one."""


@dataclass(frozen=True)
class _Palette:
    """Weights as indices into tables of numbers."""

    bits: int
    group: int = 0
    """Most output channels that share a table; 0 for one table a weight."""

    name = "compression::palettize_weights"
    joint = False
    suffix = ""

    def setting(self, layer: nn.Module) -> Any:
        groups: dict[str, Any] = {}
        if self.group and not isinstance(layer, nn.Embedding):
            size = gcd(_shape(layer)[0], self.group)
            groups = {"granularity": "per_grouped_channel", "group_size": size}
        return coremltools.optimize.coreml.OpPalettizerConfig(
            mode="custom", lut_function=partial(find_palette, bits=self.bits), **groups
        )


@dataclass(frozen=True)
class _Linear:
    """Weights, or the tables of a palette if `joint`, as integers with scales, symmetric."""

    dtype: str
    block: int = 0
    """Most input channels that share a scale; 0 for one scale an output channel."""
    joint: bool = False

    name = "compression::linear_quantize_weights"

    @property
    def suffix(self) -> str:
        """What palettizing has added to the name of a weight."""
        return "_palettized" if self.joint else ""

    def setting(self, layer: nn.Module) -> Any:
        blocks: dict[str, Any] = {"granularity": "per_tensor"} if self.joint else {}
        size = gcd(_shape(layer)[1], self.block)
        if self.block and size >= _MIN_BLOCK:
            blocks = {"granularity": "per_block", "block_size": size}
        return coremltools.optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=self.dtype, **blocks
        )


def _shape(layer: nn.Module) -> tuple[int, ...]:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


@dataclass(frozen=True)
class WeightScheme:
    """A precision.

    Attributes:
        opset: The oldest that can hold it.
        half: Whether the program is float16 inside.
        steps: What is done to the weights.
    """

    opset: str = "iOS17"
    half: bool = True
    steps: Sequence[_Palette | _Linear] = field(default=())

    def pipeline(self, weights: Mapping[str, nn.Module]) -> Any:
        """The converter's passes, and at their end those that compress weights.

        Args:
            weights: The layers to compress, by their weights' names in the program.
        """
        passes = coremltools.PassPipeline.DEFAULT
        for step in self.steps:
            config = coremltools.optimize.coreml.OptimizationConfig(
                op_name_configs={
                    f"{name}{step.suffix}": step.setting(layer) for name, layer in weights.items()
                }
            )
            passes.append_pass(step.name)
            passes.set_options(step.name, {"config": config, "joint_compression": step.joint})
        return passes


SCHEMES: Mapping[str, WeightScheme] = {
    "fp32": WeightScheme(half=False),
    "fp16": WeightScheme(),
    "pal8": WeightScheme(steps=(_Palette(8),)),
    "pal6": WeightScheme(steps=(_Palette(6),)),
    "pal4": WeightScheme("iOS18", steps=(_Palette(4, group=16),)),
    "pal3": WeightScheme("iOS18", steps=(_Palette(3, group=16),)),
    "pal2": WeightScheme("iOS18", steps=(_Palette(2, group=16),)),
    "pal1": WeightScheme("iOS18", steps=(_Palette(1, group=16),)),
    "int8": WeightScheme(steps=(_Linear("int8"),)),
    "int4": WeightScheme("iOS18", steps=(_Linear("int4", block=32),)),
    "joint": WeightScheme("iOS18", steps=(_Palette(4, group=16), _Linear("int8", joint=True))),
}
"""By precision; the compressed ones start from float16. With 3 bits and fewer, networks of a few
million weights fall under the parity floor, and `--no-strict` writes them all the same."""
