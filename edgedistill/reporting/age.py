"""Whether bundles and figures are of the student that is there now, or of one before it.

A student changes under its bundles and figures when its training is resumed, or another one is
adopted at its place. Each of them holds the hash of its student; files of older versions do not,
and nothing is said of their age.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["KEY", "Outdated", "outdated"]

KEY = "student_sha256"
"""Key of the hash in eval.json, and in the rows of bench.json."""


@dataclass(frozen=True)
class Outdated:
    """Bundles and figures that were made from an older student.

    Attributes:
        bundles: Names of bundles.
        quality: Whether eval.json was.
        speed: Subjects of bench.json, named as there.
    """

    bundles: tuple[str, ...] = ()
    quality: bool = False
    speed: tuple[str, ...] = ()


def outdated(
    sha256: str,
    bundles: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    bench: Mapping[str, Any] | None,
) -> Outdated:
    """Find what was made from another student than the one of a hash.

    Args:
        sha256: `Student.sha256`.
        bundles: `name` and `student_sha256` of each bundle.
        evaluation: eval.json.
        bench: bench.json.
    """
    rows = {name: row for name, row in (bench or {}).items() if isinstance(row, Mapping)}
    return Outdated(
        bundles=tuple(bundle["name"] for bundle in bundles if _differs(bundle, sha256)),
        quality=_differs(evaluation or {}, sha256),
        speed=tuple(name for name, row in rows.items() if _differs(row, sha256)),
    )


def _differs(data: Mapping[str, Any], sha256: str) -> bool:
    return bool(data.get(KEY)) and data[KEY] != sha256
