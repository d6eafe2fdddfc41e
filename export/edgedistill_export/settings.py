"""Settings of an export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgedistill.students.folder import Student
from edgedistill_export.targets import Options, Target
from edgedistill_runtime.manifest import sha256

__all__ = ["ExportSettings"]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an export besides target and precision.

    Attributes:
        options: The target's own options, as text.
        prompts: Prompts to compare on; by default the recipe's, the teacher's or built-in ones.
        calibration: Prompts to calibrate quantization on, with the same default.
        calibration_count: Number of prompts to calibrate on.
        keep: Paths of layers that stay in floating point, by network.
        min_psnr: Keep further layers, the costliest first by a sensitivity scan, until the PSNR of
            every sample is at least this, in dB, and at least the floor of the precision.
        max_size: Keep as many layers as fit into this size of all weights, in MiB.
        fused: Compile the whole student, its steps unrolled, as one graph.
        depth: Depth of an elastic student; "" is the whole student.
        decoder: A decoder folder of method `decoder`, or its run dir, in place of the student's
            own decoder.
        strict: Fail below the parity floor; otherwise write the bundle with `passed` false.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    prompts: Sequence[str] | None = None
    calibration: Sequence[str] | None = None
    calibration_count: int = 32
    keep: Mapping[str, frozenset[str]] = field(default_factory=dict)
    min_psnr: float | None = None
    max_size: float | None = None
    fused: bool = False
    depth: str = ""
    decoder: Path | None = None
    strict: bool = True

    @property
    def suffix(self) -> str:
        """Suffix of the bundle's name for other settings than the plain ones."""
        parts = [self.depth, "fused" if self.fused else "", self._decoder]
        return "".join(f"-{part}" for part in parts if part)

    @property
    def _decoder(self) -> str:
        """Name of the decoder: that of its run or of its folder."""
        if self.decoder is None:
            return ""
        folder = self.decoder.absolute()
        name = folder.parent.name if folder.name == "decoder" else folder.name
        return name if "decoder" in name else f"decoder-{name}"

    def _decoder_files(self) -> list[Path]:
        assert self.decoder is not None
        made = self.decoder / "decoder"  # the folder in a run dir
        return sorted((made if made.is_dir() else self.decoder).iterdir())

    def sha256(self, student: Student, target: Target, precision: str, options: Options) -> str:
        """Hash everything a bundle is made from, except the versions of SDKs."""
        named = {
            "student": student.sha256,
            "target": [target.name, precision, options.model_dump(mode="json")],
            "prompts": self.prompts and list(self.prompts),
            "calibration": [self.calibration and list(self.calibration), self.calibration_count],
            "keep": {name: sorted(paths) for name, paths in sorted(self.keep.items())},
            "budget": [self.min_psnr, self.max_size],
            "fused": self.fused,
            "depth": self.depth,
            "decoder": self.decoder and [sha256(f) for f in self._decoder_files()],
        }
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
