"""Train the `portraits` teacher: `python examples/portraits/train.py`.

Stages that are done are skipped and an interrupted one goes on from its checkpoint. `touch PAUSE`
in the output folder makes it wait, and removing the file lets it go on. With --snapshot it writes
the averaged weights of the last checkpoint to snapshot/, from which another machine goes on, and
the classifier beside it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # examples/, for common and portraits

from common import snapshots, stages
from portraits import classifier, data, latents, measure, teacher

HERE = Path(__file__).resolve().parent
SNAPSHOT = HERE / "snapshot"


def _render(work: Path) -> None:
    data.prepare(work, data.TEST, 2_000)
    data.prepare(work, data.TRAIN, data.COUNT)


def _words(work: Path) -> None:
    if not _kept("tokenizer", work):
        teacher.learn_words(work)


def _autoencoder(work: Path) -> None:
    if not _kept("vae", work):
        latents.train(work, latents.Config())


def _kept(part: str, work: Path) -> bool:
    """Take a part from the snapshot, whose U-Net was trained with it; whether it is there."""
    if not (SNAPSHOT / part).exists():
        return False
    shutil.copytree(SNAPSHOT / part, work / part, dirs_exist_ok=True)
    return True


def _classifier(work: Path) -> None:
    if not snapshots.take_classifier(work, HERE):
        classifier.train(work, classifier.Config())
    classifier.report(work)


def _snapshot(work: Path) -> None:
    teacher.snapshot(work, SNAPSHOT, teacher.Config())
    snapshots.keep_classifier(work, HERE)


STAGES = {
    "render": _render,
    "tokenizer": _words,
    "autoencoder": _autoencoder,
    "latents": latents.encode,
    "teacher": lambda work: teacher.run(work, teacher.Config(), SNAPSHOT),
    "classifier": _classifier,
    "measure": lambda work: measure.run(work, work / "pipeline", measure.Config()),
}


if __name__ == "__main__":
    stages.main(STAGES, HERE, __doc__, _snapshot)
