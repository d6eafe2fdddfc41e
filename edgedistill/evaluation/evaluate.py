"""eval.json: teacher, student and other subjects on the same captions and noise.

    schema_version    2
    reference         what FD and KID compare with: "data", or "teacher" for its own samples
    student_sha256    hash of the student that was evaluated (`Student.sha256`); not for several
    about             what the figures are, and what they compare with
      features        {"name", "size", "words"} of the feature network; size is D of N x D
      reference       {"name", "samples"}
      floor           {"fd", "kid", "samples"} of two disjoint halves of the reference, that many
                      in each: the least to be asked for. None without pictures
      classifier      {"trained_on", "samples", "held_out", "accuracy"}: its own, on held-out
                      pictures. None without one
      memory          {"name", "training", "total", "quantile", "features", "rmse"}: training
                      pictures looked through, and the distances below which a sample is a copy
      seed            of the noise
      notes           lines on what a figure is worth, or why it is missing
    SUBJECT           teacher, student, bundle:NAME, teacher@K (the teacher at K calls),
                      teacher@K SOLVER (by a better solver than its own)
      calls           of a network, one sample
      fd, kid, samples, fd_ratio (to the teacher's)
      text_image_score, retrieval_top1, diversity and their ratios: with a CLIP model and captions
      unseen, open, pairs   the same of other captions
      to_teacher      {"rmse", "psnr", "perceptual", "samples"}: from the teacher's pictures at
                      equal noise and captions, numbers of a picture from 0 to 1; 200 dB is equal
      spread          {"fd_interval", "kid_interval", "precision", "recall", "density", "coverage",
                      "cmmd", "samples"}: half the 95 % intervals, from the samples
                      (`half_interval`), quality and variety apart (`manifold`), and with a CLIP
                      model the distance of Jayasumana et al. (`clip_distance`)
      classes         {"accuracy", "agreement", "samples"}: share of samples that the classifier
                      puts in the class asked for, and in the class of the teacher's sample
      memory          {"memorization", "memorization_pixels", "nearest_rmse", "samples"}: share of
                      samples nearer to a training picture than most of those are to each other
                      (`memory.QUANTILE`), by features and by pixels; the median pixel distance

Planar students have the figures of `planar.planar_figures`, and to_teacher. No figure is NaN or
infinite; such a figure ends the evaluation with an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.draw.subjects import Subject
from edgedistill.evaluation.against import (
    NOTHING,
    Against,
    Extras,
    as_rmse,
    features_of_pictures,
    small,
)
from edgedistill.evaluation.classifier import Classifier, agreement
from edgedistill.evaluation.examples import Example, nearest_examples, worst_examples
from edgedistill.evaluation.features import Eye
from edgedistill.evaluation.fidelity import Reference, clip_distance
from edgedistill.evaluation.figures import (
    check_finite,
    fidelity_figures,
    ratios,
    spread_figures,
    text_figures,
    to_teacher_figures,
)
from edgedistill.evaluation.memory import memorization, nearest
from edgedistill.evaluation.planar import planar_figures
from edgedistill.networks.clip import Features
from edgedistill.teachers.families.mixture import Mixture

__all__ = ["SCHEMA", "Examples", "Extras", "evaluate_pictures", "evaluate_planar"]

SCHEMA = 2
SHARE = 3
"""Divisor of the sample count for captions of other kinds than "seen"."""
PAIRS = 2**28
"""Largest size, in bytes, of the teacher's pictures that are kept to compare others with."""

Progress = Callable[[str, int, int], None]
Pictures = NDArray[np.uint8]
Captions = Sequence[str] | int


@dataclass(frozen=True)
class Examples:
    """Example pictures of an evaluation: see `examples`."""

    nearest: list[Example]
    worst: list[Example]


def evaluate_planar(
    subjects: Sequence[Subject],
    mixture: Mixture,
    samples: int,
    seed: int,
    progress: Progress,
    guidance: float = 1.0,
) -> dict[str, Any]:
    """Compute figures of planar subjects against their mixture, by subject name.

    A mixture with labels is asked for classes as often as its weights say, and its truth is that
    of the guidance scale.
    """
    result: dict[str, Any] = {"schema_version": SCHEMA}
    first = None
    cond = mixture.draw_with_labels(samples, torch.Generator().manual_seed(seed))[1]
    label = cond.get("label")
    asked: Captions = samples if label is None else [mixture.prompts[c] for c in label.tolist()]
    for subject in subjects:
        progress(subject.name, 0, samples)
        drawn = subject.draw(asked, seed, partial(_tell, progress, subject.name, 0, samples))
        generator = torch.Generator().manual_seed(seed)
        points = torch.from_numpy(drawn)
        figures = planar_figures(points, mixture, generator, label, guidance)
        result[subject.name] = {"calls": subject.calls, **figures}
        if first is None:
            first = drawn
        else:
            rmse = float(np.sqrt(np.square(drawn.astype(np.float64) - first).mean()))
            result[subject.name]["to_teacher"] = {"rmse": rmse, "samples": samples}
    check_finite(result)
    return result


def evaluate_pictures(
    subjects: Sequence[Subject],
    captions: dict[str, list[str]],
    eye: Eye,
    statistics: Reference | None,
    samples: int,
    seed: int,
    progress: Progress,
    extras: Extras = NOTHING,
) -> tuple[dict[str, Any], Examples]:
    """Compute figures by subject, as the head of this file says.

    Args:
        subjects: Subjects, the teacher first.
        captions: Captions as from `prompt_sets`; empty for subjects without prompts. "seen" gives
            the subject's own figures, each other kind a section inside it, from fewer samples.
        eye: The feature network.
        statistics: Statistics of the real data in these features, where they were computed before.
            With neither these nor data, FD and KID compare with the teacher's samples, drawn with
            the next seed so that the teacher itself has figures.
        samples: Number of pictures a subject draws for "seen".
        seed: Seed of the pictures.
        progress: Called with (subject, pictures drawn, pictures to draw).
        extras: Other references to compare with.
    """
    whole = _Evaluation(subjects[0], captions, eye, samples, seed, progress)
    whole.compare(statistics, extras)
    for subject in subjects:
        whole.measure(subject)
    check_finite(whole.result)
    return whole.result, whole.examples


class _Evaluation:
    """One evaluation in progress."""

    against: Against

    def __init__(
        self,
        teacher: Subject,
        captions: dict[str, list[str]],
        eye: Eye,
        samples: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self.teacher, self.eye, self.seed, self.progress = teacher, eye, seed, progress
        self.samples = samples
        kinds = list(captions) or ["seen"]
        counts = {kind: max(2, samples // (1 if kind == "seen" else SHARE)) for kind in kinds}
        self.total = sum(counts.values())
        self.asked: dict[str, Captions] = {**counts}
        for kind, lines in captions.items():
            self.asked[kind] = [lines[i % len(lines)] for i in range(counts[kind])]
        seen = self.asked["seen"]
        self.lines = [""] * seen if isinstance(seen, int) else list(seen)
        self.examples = Examples([], [])
        self.result: dict[str, Any] = {"schema_version": SCHEMA}
        self._theirs: Pictures | None = None
        self._their_classes: list[str] = []

    def compare(self, statistics: Reference | None, extras: Extras) -> None:
        """Prepare the references that samples are compared with."""
        tell = partial(_tell, self.progress, "reference", 0, self.total)

        def draw() -> Pictures:
            tell(0)
            return self.teacher.draw(self.asked["seen"], self.seed + 1, tell)

        self.against = Against(
            self.eye, statistics, extras, draw, self.lines, self.samples, self.seed
        )
        self.result["reference"] = "teacher" if self.against.own else "data"
        self.result["about"] = self.against.about()

    def measure(self, subject: Subject) -> None:
        """Compute all figures of one subject."""
        done, figures, beside = 0, dict[str, dict[str, Any]](), dict[str, Any]()
        self.progress(subject.name, 0, self.total)
        for kind, asked in self.asked.items():
            tell = partial(_tell, self.progress, subject.name, done, self.total)
            drawn = subject.draw(asked, self.seed, tell)
            done += len(drawn)
            images = features_of_pictures(self.eye, f"{subject.name}'s samples", drawn)
            figures[kind] = self._of_set(kind, images, asked)
            if kind == "seen":
                beside = self._beside(subject, drawn, images)
        mine = {"calls": subject.calls, **figures.pop("seen"), **figures, **beside}
        self.result[subject.name] = mine
        first = self.result[self.teacher.name]
        ratios(mine, first)
        for kind in figures:
            ratios(mine[kind], first[kind])

    def _of_set(self, kind: str, images: Tensor, asked: Captions) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if kind != "pairs":  # the data hold no pictures of two concepts
            found = fidelity_figures(images, self.against.statistics, self.against.features)
        if isinstance(self.eye, Features) and not isinstance(asked, int):
            found |= text_figures(images, self.eye, asked)
        return {**found, "samples": len(images)}

    def _beside(self, subject: Subject, drawn: Pictures, images: Tensor) -> dict[str, Any]:
        """Compute figures against the teacher's pictures, classes and training pictures."""
        found: dict[str, Any] = {}
        of = self.against.features
        spread = spread_figures(images, self.against.statistics, of)
        if of is not None and isinstance(self.eye, Features):
            spread["cmmd"] = clip_distance(images, of)
        if spread:
            found["spread"] = {**spread, "samples": len(images)}
        if self._theirs is None:
            self._theirs = drawn[: max(2, PAIRS // drawn[0].nbytes)]
        elif drawn.shape[1:] == self._theirs.shape[1:]:
            few = drawn[: len(self._theirs)]
            found["to_teacher"] = to_teacher_figures(few, self._theirs, self.eye)
            if _is_student(subject):
                self.examples.worst.extend(worst_examples(few, self._theirs, self.lines))
        if self.against.classifier is not None:
            found["classes"] = self._classes(self.against.classifier, drawn)
        if self.against.nearness:
            found["memory"] = self._memory(subject, drawn, images)
        return found

    def _classes(self, classifier: Classifier, drawn: Pictures) -> dict[str, Any]:
        found, asked = classifier(drawn), self.against.names
        figures: dict[str, Any] = {"accuracy": agreement(found, asked)}
        if self._their_classes:
            figures["agreement"] = agreement(found, self._their_classes)
        else:
            self._their_classes = found
        return {**figures, "samples": len(found)}

    def _memory(self, subject: Subject, drawn: Pictures, images: Tensor) -> dict[str, Any]:
        data, shown = self.against.extras.data, small(drawn)
        assert data is not None
        seen, pixels = (self.against.nearness[space] for space in ("features", "pixels"))
        gaps, index = nearest(images, seen.training)
        pixel_gaps, _ = nearest(shown, pixels.training)
        if _is_student(subject) and drawn.shape[1:] == data.pictures.shape[1:]:
            copies = (gaps <= seen.threshold).tolist()
            words = (self.lines, data.captions)
            self.examples.nearest.extend(
                nearest_examples(drawn, data.pictures, index.tolist(), copies, *words)
            )
        return {
            "memorization": memorization(gaps, seen.own),
            "memorization_pixels": memorization(pixel_gaps, pixels.own),
            "nearest_rmse": as_rmse(pixel_gaps.median().item(), shown),
            "samples": len(drawn),
        }


def _is_student(subject: Subject) -> bool:
    return subject.name == "student"


def _tell(progress: Progress, name: str, before: int, total: int, drawn: int) -> None:
    progress(name, before + drawn, total)
