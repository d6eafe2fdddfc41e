"""Core ML's compression of float16 weights: palettes, linear int8 and int4, and both."""

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
"""Layers whose weights are compressed; Core ML skips weights of up to 2048 numbers."""

_MIN_BLOCK = 8
"""Smallest block; smaller ones would need more for their scales than int4 saves, so there a
channel shares one."""


@dataclass(frozen=True)
class _Palette:
    """Compression of weights to indices into tables of numbers."""

    bits: int
    group: int = 0
    """Largest number of output channels that share a table; 0 is one table for each weight."""

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
    """Compression of weights, or of a palette's tables if `joint`, to integers with scales."""

    dtype: str
    block: int = 0
    """Largest number of input channels that share a scale; 0 is one scale for each output
    channel."""
    joint: bool = False

    name = "compression::linear_quantize_weights"

    @property
    def suffix(self) -> str:
        """Suffix that palettizing adds to the name of a weight."""
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
    """A precision of the target coreml.

    Attributes:
        opset: The oldest operator set that supports it.
        half: Whether the program is float16 inside.
        steps: Compressions of the weights, in order.
    """

    opset: str = "iOS17"
    half: bool = True
    steps: Sequence[_Palette | _Linear] = field(default=())

    def pipeline(self, weights: Mapping[str, nn.Module]) -> Any:
        """Return the converter's passes, followed by those that compress weights.

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
"""Schemes by precision; the compressed ones start from float16. With 3 bits and fewer, networks of
a few million weights fall below the parity floor; `--no-strict` still writes them."""
