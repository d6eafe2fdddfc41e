"""Students made elsewhere: recognised, given the step table of their kind, saved like our own."""

from __future__ import annotations

from edgedistill.adopt.adopting import adopt
from edgedistill.adopt.kinds import KINDS, Kind

__all__ = ["KINDS", "Kind", "adopt"]
