"""What can be chosen of an export."""

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
    """Choices of an export besides target and precision.

    Attributes:
        options: The target's own options, as text.
        prompts: What to compare on; by default the recipe's, the teacher's or those built in.
        calibration: What quantization is calibrated on, likewise.
        calibration_count: How many prompts that is.
        keep: By network, paths of the layers that quantization leaves in floating point.
        min_psnr: Leave further ones there, the costliest first by a sensitivity scan, until the
            PSNR of every sample is at least this, in dB, and the floor of the precision.
        max_size: Leave as many there as fit into so many MiB of weights.
        fused: Compile the whole student, its steps unrolled, as one graph.
        depth: Which of an elastic student's depths; "" is the whole.
        decoder: A decoder folder, as method `decoder` makes them, or the run dir of one, in place
            of the student's own.
        strict: Fail under the parity floor; else write the bundle with `passed` false.
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
        """What tells such a bundle from the plain one by name."""
        parts = [self.depth, "fused" if self.fused else "", self._decoder]
        return "".join(f"-{part}" for part in parts if part)

    @property
    def _decoder(self) -> str:
        """Name of the decoder: its run's, or its folder's."""
        if self.decoder is None:
            return ""
        folder = self.decoder.absolute()
        name = folder.parent.name if folder.name == "decoder" else folder.name
        return name if "decoder" in name else f"decoder-{name}"

    def _decoder_files(self) -> list[Path]:
        assert self.decoder is not None
        made = self.decoder / "decoder"  # where a run has it
        return sorted((made if made.is_dir() else self.decoder).iterdir())

    def sha256(self, student: Student, target: Target, precision: str, options: Options) -> str:
        """Hash over everything a bundle is made from, but for the versions of the SDKs."""
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
