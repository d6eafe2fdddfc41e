"""eval.json: teacher, student and what else is asked for, on the same captions and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from edgedistill.evaluate.pictures import Features, Reference, frechet_distance
from edgedistill.evaluate.planar import planar_figures
from edgedistill.evaluate.subjects import Subject
from edgedistill.files import read_json
from edgedistill.teachers import Teacher
from edgedistill.teachers.mixture import Mixture

__all__ = ["SCHEMA", "evaluate_pictures", "evaluate_planar", "prompt_sets"]

SCHEMA = 1
SHARE = 3
"""Captions of other kinds than "seen" get a third as many samples."""
Progress = Callable[[str, int, int], None]


def prompt_sets(teacher: Teacher, prompts: Sequence[str] | None) -> dict[str, list[str]]:
    """Captions by kind: "seen" in training, and others where the teacher ships them.

    "unseen" holds combinations of caption and style that were never trained, "open" captions that
    many pictures answer, "pairs" two concepts in one caption.

    Args:
        teacher: Its folder's prompts.json is read.
        prompts: The user's own captions instead.

    Returns:
        Nothing for a teacher that takes no prompts.

    Raises:
        ValueError: If there are prompts for such a teacher, or none for another.
    """
    if not teacher.prompts:
        if prompts is not None:
            raise ValueError(f"--prompts: teacher {teacher.name!r} takes no prompts")
        return {}
    if prompts is not None:
        return {"seen": list(prompts)}
    file = Path(teacher.path) / "prompts.json"
    if not file.is_file():
        raise ValueError(f"{teacher.path} ships no prompts.json; name a file with --prompts")
    shipped = read_json(file)
    kinds = {"seen": "train", "unseen": "unseen", "open": "open", "pairs": "pairs"}
    return {kind: shipped[key] for kind, key in kinds.items() if key in shipped}


def evaluate_planar(
    subjects: Sequence[Subject], mixture: Mixture, samples: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Figures of planar subjects against their mixture, by subject name."""
    result: dict[str, Any] = {"schema_version": SCHEMA}
    for subject in subjects:
        drawn = subject.draw(samples, seed, partial(_tell, progress, subject.name, 0, samples))
        generator = torch.Generator().manual_seed(seed)
        figures = planar_figures(torch.from_numpy(drawn), mixture, generator)
        result[subject.name] = {"calls": subject.calls, **figures}
    return result


def evaluate_pictures(
    subjects: Sequence[Subject],
    captions: dict[str, list[str]],
    features: Features,
    reference: Reference | None,
    samples: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """FD and text-image score by subject, with ratios to the first subject (the teacher).

    Args:
        subjects: The teacher first.
        captions: As from `prompt_sets`; without any, there is FD alone. "seen" gives the figures
            of the subject itself, each other kind a section inside it, from fewer samples.
        features: The CLIP model.
        reference: Statistics of the real data; None measures FD against the teacher's samples,
            drawn with the next seed so that the teacher itself has an FD.
        samples: Pictures a subject draws for "seen".
        seed: Their seed.
        progress: (subject, pictures drawn, pictures to draw).
    """
    result: dict[str, Any] = {"schema_version": SCHEMA, "reference": "data"}
    kinds = list(captions) or ["seen"]
    counts = {kind: max(2, samples // (1 if kind == "seen" else SHARE)) for kind in kinds}
    total = sum(counts.values())
    wanted: dict[str, Sequence[str] | int] = {**counts}
    for kind, lines in captions.items():
        wanted[kind] = [lines[i % len(lines)] for i in range(counts[kind])]
    if reference is None:
        drawn = subjects[0].draw(
            wanted["seen"], seed + 1, partial(_tell, progress, "reference", 0, total)
        )
        reference = Reference.of(features.images(drawn))
        result["reference"] = "teacher"
    for subject in subjects:
        done = 0
        sections: dict[str, Any] = {}
        for kind, asked in wanted.items():
            tell = partial(_tell, progress, subject.name, done, total)
            drawn = subject.draw(asked, seed, tell)
            done += counts[kind]
            # There are no real pictures of two concepts to be near to.
            near = None if kind == "pairs" else reference
            sections[kind] = _figures(drawn, asked, features, near)
        result[subject.name] = {
            "calls": subject.calls,
            **sections.pop("seen"),
            **sections,
        }
    first = result[subjects[0].name]
    for subject in subjects:
        mine = result[subject.name]
        _ratios(mine, first)
        for kind in kinds:
            if kind != "seen":
                _ratios(mine[kind], first[kind])
    return result


def _tell(progress: Progress, name: str, before: int, total: int, drawn: int) -> None:
    progress(name, before + drawn, total)


def _figures(
    drawn: NDArray[Any],
    lines: Sequence[str] | int,
    features: Features,
    reference: Reference | None,
) -> dict[str, float]:
    images = features.images(drawn)
    fd = {} if reference is None else {"fd": frechet_distance(Reference.of(images), reference)}
    if isinstance(lines, int):
        return {**fd, "samples": lines}
    texts = features.texts(lines)
    normal = torch.nn.functional.normalize(images, dim=-1)
    retrieved = _retrieval(normal, texts, lines)
    return {
        **fd,
        "text_image_score": features.score(images, texts),
        "retrieval_top1": retrieved,
        **_diversity(normal, lines),
        "samples": len(lines),
    }


def _retrieval(images: torch.Tensor, texts: torch.Tensor, lines: Sequence[str]) -> float:
    """Share of pictures whose own caption is the nearest of all captions asked for."""
    unique = list(dict.fromkeys(lines))
    first = [lines.index(line) for line in unique]
    bank = torch.nn.functional.normalize(texts[first], dim=-1)
    nearest = (images @ bank.T).argmax(1)
    own = torch.tensor([unique.index(line) for line in lines])
    return (nearest == own).double().mean().item()


def _diversity(images: torch.Tensor, lines: Sequence[str]) -> dict[str, float]:
    """Mean of 100 (1 - cosine) over all pairs of pictures of one caption; {} if none has two."""
    alike: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        alike.setdefault(line, []).append(i)
    gaps = [
        100 * (1 - images[i] @ images[j]) for of in alike.values() for i, j in combinations(of, 2)
    ]
    return {"diversity": torch.stack(gaps).mean().item()} if gaps else {}


def _ratios(mine: dict[str, Any], first: dict[str, Any]) -> None:
    if "fd" in mine:
        mine["fd_ratio"] = mine["fd"] / first["fd"]
    if "text_image_score" in mine:
        mine["text_image_ratio"] = mine["text_image_score"] / first["text_image_score"]
    if first.get("diversity"):
        mine["diversity_ratio"] = mine["diversity"] / first["diversity"]
