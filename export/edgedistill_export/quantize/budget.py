"""Find layers to keep in floating point for a budget: scan, choose, build, measure, correct."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from edgedistill.common.progress import Progress
from edgedistill.networks.fake_quant import SCHEMES
from edgedistill.students.folder import Student
from edgedistill_export.prompts import calibration_prompts
from edgedistill_export.quantize.scan import Scan, keep_for_psnr, keep_for_size, predicted, scan

__all__ = ["Budget", "scan_file", "scheme_of"]

Keep = Mapping[str, frozenset[str]]

_PROMPTS = 8
_ATTEMPTS = 4
_MARGIN_DB = 0.5


def scheme_of(precision: str) -> str:
    """Return the fake-quantization scheme of a target's precision; ValueError if there is none."""
    scheme = {"int8-dynamic": "int8", "int8-hybrid": "int8"}.get(precision, precision)
    if scheme not in SCHEMES:
        raise ValueError(
            f"--min-psnr and --max-size need a quantized precision, not {precision}: "
            f"--precision {', '.join(SCHEMES)}"
        )
    return scheme


def scan_file(student: Student, scheme: str) -> Path:
    """Return the file of a student's scan, beside the student."""
    return student.path.parent / f"sensitivity-{scheme}.json"


class Budget:
    """Proposes layers to keep in floating point until the bundle meets the budget.

    Args:
        student: The student.
        precision: The target's precision.
        min_psnr: PSNR of the worst sample to reach, in dB.
        max_size: Largest size of all weights in MiB.
        progress: Progress callback of the scan, if one is made.

    Raises:
        ValueError: If two budgets are given, or the precision has no scan.
    """

    def __init__(
        self,
        student: Student,
        precision: str,
        min_psnr: float | None,
        max_size: float | None,
        progress: Progress | None = None,
    ) -> None:
        if min_psnr is not None and max_size is not None:
            raise ValueError("name one budget, --min-psnr or --max-size, not both")
        for name, value in (("--min-psnr", min_psnr), ("--max-size", max_size)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} {value:g}: a number above 0 expected")
        self.min_psnr, self.max_size = min_psnr, max_size
        self.reached: float | None = None
        if min_psnr is not None or max_size is not None:
            self.scan = _scanned(student, scheme_of(precision), progress)

    def proposals(self, fixed: Keep) -> Iterator[Keep]:
        """Yield layers to keep, including `fixed`; the next if `reached` is set and too low."""
        if self.max_size is not None:
            yield _joined(fixed, keep_for_size(self.scan, self.max_size))
        elif self.min_psnr is None:
            yield fixed
        else:
            aim = self.min_psnr
            for _ in range(_ATTEMPTS):
                keep = keep_for_psnr(self.scan, aim)
                yield _joined(fixed, keep)
                if self.reached is None or self.reached >= self.min_psnr:
                    return
                # The scan predicts the mean; the worst sample lies this far below it.
                gap = predicted(self.scan, keep) - self.reached
                aim = self.min_psnr + gap + _MARGIN_DB


def _scanned(student: Student, scheme: str, progress: Progress | None) -> Scan:
    """Return the scan beside the student, made anew if it belongs to another student."""
    file = scan_file(student, scheme)
    if file.is_file():
        with suppress(ValueError):  # a scan of an older release
            found = Scan.read(file)
            if found.student == student.sha256:
                return found
    made = scan(student, scheme, calibration_prompts(student, _PROMPTS), progress)
    made.write(file)
    return made


def _joined(a: Keep, b: Keep) -> Keep:
    return {g: a.get(g, frozenset()) | b.get(g, frozenset()) for g in sorted({*a, *b})}
