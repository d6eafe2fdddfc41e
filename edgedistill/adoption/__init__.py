"""Adopt students made elsewhere: recognise them, give them a step table, save them as our own."""

from __future__ import annotations

from edgedistill.adoption.adopting import adopt
from edgedistill.adoption.kinds import KINDS, SOLVERS, Kind

__all__ = ["KINDS", "SOLVERS", "Kind", "adopt"]
