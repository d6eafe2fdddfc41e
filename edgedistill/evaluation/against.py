"""References of an evaluation: features of real pictures, a classifier, training pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.evaluation.classifier import Classifier, train_classifier
from edgedistill.evaluation.data import Data
from edgedistill.evaluation.features import Eye, shrunk
from edgedistill.evaluation.fidelity import Reference, floor_of
from edgedistill.evaluation.figures import LEAST
from edgedistill.evaluation.memory import QUANTILE, Nearness

__all__ = ["NOTHING", "Against", "Extras", "as_rmse", "features_of_pictures", "small"]

SMALL = 32
"""Largest side in pixels of pictures whose pixels are compared with training pictures'."""

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Extras:
    """References other than the pictures that subjects draw.

    Attributes:
        data: Real pictures. FD and KID compare with them, and nearest neighbours are among them.
        memory_only: Whether the data serve for nearest neighbours only, since the captions asked
            for are not those of the data.
        label: Function from a caption to its class, for teachers that have classes.
    """

    data: Data | None = None
    memory_only: bool = False
    label: Callable[[str], str | None] | None = None


NOTHING = Extras()


class Against:
    """Everything that an evaluation compares samples with.

    Args:
        eye: The feature network.
        statistics: Statistics of the real data in these features, where they were computed before.
        extras: Other references.
        draw: Function that draws the teacher's samples of another seed; called only if needed.
        lines: Captions of those samples.
        samples: Number of samples a subject draws.
        seed: Seed of the evaluation.

    Attributes:
        own: Whether the reference is the teacher's own samples.
        features: Features of the reference, (M, D); None where only its statistics are known.
        statistics: Statistics of the reference.
        nearness: Training pictures by "features" and by "pixels"; empty where none are known.
        names: Classes of `lines`, for a teacher that has classes.
        classifier: Classifier of these classes.
        notes: Lines on the reliability of a figure, or why it is missing.
    """

    def __init__(
        self,
        eye: Eye,
        statistics: Reference | None,
        extras: Extras,
        draw: Callable[[], Pictures],
        lines: Sequence[str],
        samples: int,
        seed: int,
    ) -> None:
        self.eye, self.extras, self._draw = eye, extras, draw
        self.samples, self.seed, self.notes = samples, seed, list[str]()
        data = extras.data
        found = None if data is None else features_of_pictures(eye, "the data", data.pictures)
        self.nearness = self._nearness(found)
        self.features = None if extras.memory_only else found
        self.own = self.features is None and statistics is None
        if self.own:
            self.features = features_of_pictures(eye, "the reference", self._samples)
        if statistics is None:
            assert self.features is not None
            statistics = Reference.of(self.features)
        self.statistics = statistics
        label = extras.label
        self.names = [str(label(line)) for line in lines] if label else []
        self.trained_on = "data"
        self.classifier = self._classifier()

    @cached_property
    def _samples(self) -> Pictures:
        return self._draw()

    def _nearness(self, features: Tensor | None) -> dict[str, Nearness]:
        data = self.extras.data
        if data is None or features is None:
            self.notes.append("No training pictures are known, so no copies are looked for.")
            return {}
        spaces = {"features": features, "pixels": small(data.pictures)}
        found = {name: Nearness.of(values) for name, values in spaces.items()}
        usable = {name: value for name, value in found.items() if value is not None}
        if len(usable) < len(found):
            self.notes.append("Fewer than 3 different training pictures: no memorization figure.")
            return {}
        if data.total > len(data.pictures):
            count = len(data.pictures)
            self.notes.append(
                f"Of {data.total} training pictures {count}, chosen at random, are compared."
            )
        return usable

    def _classifier(self) -> Classifier | None:
        label = self.extras.label
        if label is None:
            return None
        names = self.names
        found = self._of_data(label, set(names))
        if found is None:
            self.trained_on = "the teacher's samples"
            found = train_classifier(self._samples, names, self.seed)
        if found is None:
            self.notes.append(
                f"No classifier: {len(names)} samples of {len(set(names))} classes are too few to "
                "train one; raise evaluate.samples."
            )
        return found

    def _of_data(self, label: Callable[[str], str | None], wanted: set[str]) -> Classifier | None:
        """Train a classifier on the data's pictures, if they show all requested classes."""
        data = self.extras.data
        if data is None:
            return None
        classes = [label(caption) for caption in data.captions]
        rows = [i for i, name in enumerate(classes) if name in wanted]
        if {classes[i] for i in rows} != wanted:
            return None
        return train_classifier(data.pictures[rows], [str(classes[i]) for i in rows], self.seed)

    def about(self) -> dict[str, Any]:
        """Return the facts about references for eval.json."""
        size = len(self.statistics.mean)
        floor = None
        if self.features is not None:
            floor = floor_of(self.features, self.samples, self.seed)
        if self.own:
            self.notes.append(
                "FD and KID compare with the teacher's own samples of another seed: they say how "
                "near the student is to its teacher, not how good either is."
            )
        if self.samples < LEAST * size:
            self.notes.append(
                f"FD of {self.samples} samples in {size} features is too large, in every row "
                "alike: compare it within this table, and with the floor."
            )
        return {
            "features": {"name": self.eye.name, "size": size, "words": self.eye.words},
            "reference": self._reference(),
            "floor": None if floor is None else asdict(floor),
            "classifier": self._of_classifier(),
            "memory": self._of_memory(),
            "seed": self.seed,
            "notes": [self.eye.words, *self.notes],
        }

    def _reference(self) -> dict[str, Any]:
        data, name = self.extras.data, "statistics that come with the teacher"
        if self.own:
            name = "the teacher's own samples"
        elif data is not None and not self.extras.memory_only:
            name = data.name
        return {"name": name, "samples": None if self.features is None else len(self.features)}

    def _of_classifier(self) -> dict[str, Any] | None:
        made = self.classifier
        if made is None:
            return None
        return {
            "trained_on": self.trained_on,
            "samples": made.samples,
            "held_out": made.held_out,
            "accuracy": made.accuracy,
        }

    def _of_memory(self) -> dict[str, Any] | None:
        data = self.extras.data
        if data is None or not self.nearness:
            return None
        pixels = self.nearness["pixels"]
        return {
            "name": data.name,
            "training": len(data.pictures),
            "total": data.total,
            "quantile": QUANTILE,
            "features": self.nearness["features"].threshold,
            "rmse": as_rmse(pixels.threshold, pixels.training),
        }


def features_of_pictures(eye: Eye, whose: str, pictures: Pictures) -> Tensor:
    """Compute features (N, D); a FloatingPointError names whose features are not finite."""
    found = eye.images(pictures)
    if not bool(found.isfinite().all()):
        raise FloatingPointError(f"features of {whose} are not finite: {eye.name}")
    return found


def small(pictures: Pictures) -> Tensor:
    """Return pixels (N, D) in [-1, 1] of reduced pictures, for comparison."""
    return shrunk(pictures, SMALL).flatten(1)


def as_rmse(distance: float, rows: Tensor) -> float:
    """Convert a Euclidean distance of rows of `small` to the RMSE of pixels in [0, 1]."""
    return float(distance / 2 / rows.shape[1] ** 0.5)
