"""Train the `fashion` teacher: `python examples/fashion/train.py`.

Stages that are done are skipped and an interrupted one goes on from its checkpoint. `touch PAUSE`
in the output folder makes it wait, and removing the file lets it go on. With --snapshot it writes
the averaged weights of the last checkpoint to snapshot/, from which another machine goes on, and
the classifier beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # examples/, for common and fashion

from common import snapshots, stages
from fashion import classifier, measure, teacher

HERE = Path(__file__).resolve().parent
SNAPSHOT = HERE / "snapshot"


def _classifier(work: Path) -> None:
    if not snapshots.take_classifier(work, HERE):
        classifier.train(work, classifier.Config())
    classifier.report(work)


def _snapshot(work: Path) -> None:
    teacher.snapshot(work, SNAPSHOT, teacher.Config())
    snapshots.keep_classifier(work, HERE)


STAGES = {
    "classifier": _classifier,
    "teacher": lambda work: teacher.run(work, teacher.Config(), SNAPSHOT),
    "measure": lambda work: measure.run(work, work / "pipeline", measure.Config()),
}

if __name__ == "__main__":
    stages.main(STAGES, HERE, __doc__, _snapshot)
