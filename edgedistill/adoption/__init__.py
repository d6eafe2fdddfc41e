"""Students made elsewhere: recognised, given the step table of their kind, saved like our own."""

from __future__ import annotations

from edgedistill.adoption.adopting import adopt
from edgedistill.adoption.kinds import KINDS, Kind

__all__ = ["KINDS", "Kind", "adopt"]
