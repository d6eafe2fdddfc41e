"""The first paragraph of the report: the value of a student in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgedistill.common.decibels import EQUAL_DB, decibels
from edgedistill.evaluation.memory import QUANTILE
from edgedistill.reporting.age import Outdated

__all__ = ["EXPLANATIONS", "Facts", "explained", "milliseconds", "verdict"]

KEPT = 1.1
"""A student keeps its teacher's quality if its distance is at most this many times the
teacher's."""

Figures = Mapping[str, Any]

EXPLANATIONS: dict[tuple[str, ...], str] = {
    ("fd",): "FD: Frechet distance between the features of the samples and those of the "
    "reference. Lower is nearer. It falls with the number of samples, so only rows of one n "
    "compare.",
    ("kid",): "KID: another distance between the same features, without that fault. Near 0 is as "
    "near as the reference is to itself; by chance it falls below.",
    ("fd_ratio",): "FD ratio: the row's FD over the teacher's; 1 is as good as the teacher.",
    ("fd_interval", "kid_interval"): "FD, +- and KID, +-: half the 95 % interval of the figure "
    "over draws of as many samples.",
    ("precision",): "Precision and density: whether samples look like the reference. Recall and "
    "coverage: whether they show all that is in it.",
    ("cmmd",): "CMMD: 1000 times the squared maximum mean discrepancy between the CLIP features "
    "of the samples and those of the reference. Unlike FD, it does not take features to be "
    "normally distributed. Lower is nearer.",
    ("text_image_score",): "Text-image: 100 times the cosine of picture and caption in the CLIP "
    "model. Higher fits the caption better.",
    ("retrieval_top1",): "Top 1: share of pictures whose own caption fits them best of all "
    "captions.",
    ("diversity",): "Diversity: how much pictures of one caption differ.",
    ("psnr",): "RMSE and PSNR: pixel for pixel, against the teacher's picture of the same noise. "
    "A student that draws well but differently from the same noise is far by these.",
    ("perceptual",): "Perceptual: the same in the features of the CLIP model; 0 is equal.",
    ("accuracy",): "Accuracy: share of pictures that a small classifier puts in the class asked "
    "for.",
    ("agreement",): "Agreement: share that it puts in the same class as the teacher's picture of "
    "the same noise.",
    ("memorization",): "Memorization: share of samples nearer to some training picture, by "
    "features or by pixels, than 95 % of the training pictures are to each other. About 5 % is "
    "chance; far more means that training pictures are repeated.",
    ("sliced_w2",): "Sliced W2: Wasserstein distance between the samples and as many true points, "
    "the root mean square over directions. Lower is nearer.",
    ("floor",): "Floor: the same distance between two draws of true points, the least to be asked "
    "for.",
    ("w2_ratio",): "W2 ratio: distance to the true points over that of true points to each other.",
    ("within_3_sigma",): "Within 3 sigma: share of samples that lie at most 3 standard deviations "
    "from the centre of some mode, of their class where there are classes.",
    ("smallest_mode",): "Smallest mode: the share of samples in each mode over its true share, "
    "and of these the smallest. 1 is right; 0 means that a mode is lost.",
}
"""Explanations of figures for people who never met them, by the columns of which any is shown."""

POINTS: dict[tuple[str, ...], str] = {
    ("rmse",): "RMSE: root mean square distance, by coordinate, from the teacher's sample of the "
    "same noise. A student that draws well but differently from the same noise is far by it.",
}
"""Explanations that hold for points, besides those in `EXPLANATIONS`."""

WORSE = {"within_3_sigma": "share within 3 sigma", "smallest_mode": "smallest mode"}
"""Names of figures of points of which higher is better, to judge beside a distance."""


@dataclass(frozen=True)
class Facts:
    """Known facts of a run.

    Attributes:
        teacher: Name of the teacher.
        steps: Network calls of the student.
        calls: Network calls of the teacher.
        evaluation: eval.json.
        bench: bench.json.
        parity: Parity results from each bundle's manifest.
        sizes: Bytes on disk of the student and of each bundle.
        outdated: Bundles and figures that were made from an older student.
    """

    teacher: str
    steps: int
    calls: int
    evaluation: Figures | None = None
    bench: Figures | None = None
    parity: Mapping[str, Figures] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    outdated: Outdated = field(default_factory=Outdated)


def verdict(facts: Facts) -> list[str]:
    """Write sentences on steps, speed, quality, memory, size and proof, unknown ones included."""
    word = "call" if facts.steps == 1 else "calls"
    steps = (
        f"The student draws in {facts.steps} network {word} what {facts.teacher} draws in "
        f"{facts.calls}."
    )
    return [steps, _speed(facts), *_quality(facts), *_size(facts), *_proof(facts)]


def _speed(facts: Facts) -> str:
    speedups = (facts.bench or {}).get("speedup_over_teacher") or {}
    if not speedups:
        return "How fast it is has not been measured: run edgedistill bench."
    name = max(speedups, key=lambda key: speedups[key])
    seconds = facts.bench[name]["p50_s"] if facts.bench else 0.0
    who = "It" if name == "student" else name.replace("bundle:", "The bundle ")
    text = f"{who} is {speedups[name]:.1f} times as fast ({milliseconds(seconds)} ms a sample)"
    if name in facts.outdated.speed:
        text += ", measured on an older student: run edgedistill bench again"
    return f"{text}."


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds in plain digits, three of them or all before the point."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _quality(facts: Facts) -> list[str]:
    figures = facts.evaluation
    student = (figures or {}).get("student")
    if not figures or not student:
        return ["Its quality has not been measured: run edgedistill evaluate."]
    teacher = figures["teacher"]
    found = []
    if facts.outdated.quality:
        found.append(
            "Its quality was measured on an older student: run edgedistill evaluate again."
        )
    for key, name in (("fd", "FD"), ("sliced_w2", "sliced W2 distance")):
        if key in student and key in teacher:
            cut = _cut(figures, facts.steps, key)
            found.append(_distance(name, facts.steps, student, teacher, cut, key))
            break
    found += _open_captions(figures, facts.steps)
    found += _classes(student, teacher)
    if student.get("text_image_ratio") is not None:
        found.append(
            f"Pictures fit their captions {_percent(student['text_image_ratio'])} as well as the "
            "teacher's."
        )
    return found + _memory(student, teacher)


def _cut(figures: Figures, steps: int, key: str) -> Figures | None:
    """Return the best row of the teacher at as many calls as the student, by any solver."""
    name = f"teacher@{steps}"
    rows = [row for subject, row in figures.items() if subject.split(" ")[0] == name]
    return min((row for row in rows if key in row), key=lambda row: row[key], default=None)


def _distance(
    name: str, steps: int, student: Figures, teacher: Figures, cut: Figures | None, key: str
) -> str:
    mine, theirs = student[key], teacher[key]
    numbers = f"{_with_interval(student, key)}, the teacher's {_with_interval(teacher, key)}"
    if cut is not None:
        numbers += f", the teacher's at the same {steps} {'call' if steps == 1 else 'calls'} "
        numbers += _with_interval(cut, key)
    if mine <= KEPT * theirs:
        judged = "it keeps its teacher's quality by this figure"
        if cut is not None and cut[key] <= KEPT * theirs:
            judged += ", and so does the teacher at so few calls: the figure does not tell them "
            judged += "apart"
        judged += _but(student, teacher)
    elif cut is None or mine < cut[key]:
        judged = "it is behind its teacher" + (
            ", and ahead of the teacher cut short" if cut else ""
        )
    elif cut[key] < theirs:
        judged = (
            "it is behind its teacher; the teacher cut short is ahead of the whole teacher, so "
            "the figure does not tell what more steps give"
        )
    else:
        judged = "it is no better than the teacher cut short, so distillation has gained nothing"
    return f"Its {name} is {numbers} (lower is better, {student['samples']} samples): {judged}."


def _but(student: Figures, teacher: Figures) -> str:
    """Name the figures of points that fell, of a student whose distance did not."""
    fell = [
        f"its {name} is {student[key]:.3g}, the teacher's {teacher[key]:.3g}"
        for key, name in WORSE.items()
        if key in student and KEPT * student[key] < teacher[key]
    ]
    return f"; it is behind by others: {' and '.join(fell)}" if fell else ""


def _open_captions(figures: Figures, steps: int) -> list[str]:
    """Say how near the samples are on captions that many pictures answer, if it was measured."""
    rows = {name: row for name, row in figures.items() if isinstance(row, Mapping)}
    own = {name: row["open"] for name, row in rows.items() if "fd" in row.get("open", {})}
    if "student" not in own or "teacher" not in own:
        return []
    mine, theirs, cut = own["student"]["fd"], own["teacher"]["fd"], _cut(own, steps, "fd")
    text = (
        f"On captions that many pictures answer its FD is {mine:.3g}, the teacher's {theirs:.3g}"
    )
    if cut is None:
        return [f"{text}."]
    short = cut["fd"]
    if max(mine, short) <= KEPT * min(mine, short):
        judged = "about as near as"
    elif mine < short:
        judged = f"{short / mine:.2g} times nearer than"
    else:
        judged = f"{mine / short:.2g} times farther than"
    return [
        f"{text} and at the same {steps} {'call' if steps == 1 else 'calls'} {short:.3g}: the "
        f"student is {judged} the teacher cut short."
    ]


def _with_interval(row: Figures, key: str) -> str:
    """Write a figure, with half its 95 % interval where it is known."""
    half = (row.get("spread") or {}).get(f"{key}_interval")
    return f"{row[key]:.3g}" if half is None else f"{row[key]:.3g} \u00b1 {half:.2g}"


def _classes(student: Figures, teacher: Figures) -> list[str]:
    if "classes" not in student:
        return []
    mine, theirs = student["classes"], teacher["classes"]
    return [
        f"A classifier puts {_percent(mine['accuracy'])} of its pictures in the class asked for, "
        f"{_percent(theirs['accuracy'])} of the teacher's; from the same noise both show the same "
        f"class in {_percent(mine['agreement'])}."
    ]


def _memory(student: Figures, teacher: Figures) -> list[str]:
    if "memory" not in student:
        return []
    mine, theirs = (each["memory"]["memorization"] for each in (student, teacher))
    return [
        f"{_percent(mine)} of its samples are so near to a training picture that they count as "
        f"copies (the teacher's {_percent(theirs)}; about {_percent(QUANTILE)} is chance)."
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _size(facts: Facts) -> list[str]:
    bundles = {name: size for name, size in facts.sizes.items() if name in facts.parity}
    if len(bundles) < 2:
        parts = [f"{name} {_megabytes(size)}" for name, size in facts.sizes.items()]
        return [f"On disk: {', '.join(parts)}."] if parts else []
    others = {name: size for name, size in facts.sizes.items() if name not in bundles}
    own = [f"{name} {_megabytes(size)}, " for name, size in others.items()]
    least, most = (end(bundles, key=lambda name: bundles[name]) for end in (min, max))
    ends = [f"{_megabytes(bundles[name])} ({name})" for name in (least, most)]
    return [f"On disk: {''.join(own)}the bundles {' to '.join(ends)}."]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"


def _proof(facts: Facts) -> list[str]:
    if not facts.parity:
        return ["No bundle has been made of it: run edgedistill export."]
    found, every = [], list(facts.parity)
    old = [name for name in every if name in facts.outdated.bundles]
    if old:
        verb = "was" if len(old) == 1 else "were"
        found.append(
            f"{_bundles(old, every)} {verb} made from an older student: run edgedistill export "
            "again."
        )
    new = [name for name in every if name not in old]
    failed = [name for name in new if not facts.parity[name]["passed"]]
    if failed:
        return [*found, f"Below the floor of the parity check: {', '.join(failed)}."]
    if not new:
        return found
    worst = {name: facts.parity[name]["final"]["worst"] for name in new}
    name = min(new, key=lambda name: worst[name])
    if worst[name] >= EQUAL_DB:
        how = ": every sample compared is identical to the student's"
    else:
        how = f"; the worst sample agrees with the student's to {decibels(worst[name], ' dB')}"
        how += f" ({name})" if len(new) > 1 else ""
    return [*found, f"{_bundles(new, every)} passed the parity check{how}."]


def _bundles(names: Sequence[str], every: Sequence[str]) -> str:
    """Name bundles, or say that they are all there are."""
    if len(names) == 1:
        return f"The bundle {names[0]}"
    if len(names) < len(every):
        return f"The bundles {', '.join(names[:-1])} and {names[-1]}"
    return "Both bundles" if len(names) == 2 else f"All {len(names)} bundles"


def explained(columns: Sequence[str], planar: bool = False) -> list[str]:
    """Return the explanations of the figures among `columns`, of pictures or of points."""
    known = {**EXPLANATIONS, **POINTS} if planar else EXPLANATIONS
    return [text for keys, text in known.items() if any(key in columns for key in keys)]
