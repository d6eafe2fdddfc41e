"""The teacher's terms beside a bundle: licences, their texts, what its pipeline did besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgedistill.common.files import read_json, write_text
from edgedistill.teachers.licences import copy_texts, texts_in

__all__ = ["notes_of", "write_terms"]

NAMES = ("license_name", "license_link")


def write_terms(student: Path, teacher: dict[str, Any], folder: Path) -> None:
    """Copy texts of licences into a bundle, and write its card where there is something to say.

    Args:
        student: The student dir.
        teacher: What its student.json says of the teacher.
        folder: The bundle dir.
    """
    copy_texts(str(student), folder)
    notes, details = teacher.get("notes") or [], [key for key in NAMES if teacher.get(key)]
    licences = teacher.get("licences") or []
    if not (notes or details or licences or texts_in(student)):
        return
    front = [f"- {licence}" for licence in licences or ["other"]]
    front += [f"{key}: {json.dumps(teacher[key])}" for key in details]
    lines = ["---", "license:", *front, "tags:", "- edgedistill", "---"]
    lines += [f"A bundle of a student of {teacher.get('name')}.", "", *(f"- {n}" for n in notes)]
    write_text(folder / "README.md", "\n".join(lines).rstrip() + "\n")


def notes_of(student: Path) -> list[str]:
    """What a student lacks of its teacher's pipeline; of several students, what the first does."""
    places = (student, student / "student", student / "0", student / "students" / "0")
    file = next((p / "student.json" for p in places if (p / "student.json").is_file()), None)
    return [] if file is None else [str(n) for n in read_json(file)["teacher"].get("notes") or ()]
