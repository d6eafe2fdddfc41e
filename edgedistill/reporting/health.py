"""Health checks: logged figures against the ranges they had in healthy runs.

Losses of score matching and of GANs do not fall while the student learns, but these figures still
reveal an unhealthy run. `CHECKS` is the table: a figure, its range, and where that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CHECKS", "Check", "Finding", "findings", "sparkline"]

Line = Mapping[str, float]
"""One line of metrics.jsonl."""


@dataclass(frozen=True)
class Check:
    """A figure that players log, and its range in healthy runs.

    Attributes:
        title: Readable name of the figure.
        key: Name of the figure in the logs, without the player's.
        low: Smallest healthy value.
        high: Largest healthy value.
        outside: Explanation of values outside the range, and a remedy.
        measured: Runs in which the range was measured.
        over: Another figure to divide it by.
        renoised: Whether the check applies only to students whose steps renoise x0.
    """

    title: str
    key: str
    low: float
    high: float
    outside: str
    measured: str
    over: str = ""
    renoised: bool = False

    def series(self, lines: Sequence[Line], player: str) -> list[float]:
        """Return the figure's values in a run, one for each line that has it."""
        key, over = f"{player}/{self.key}", f"{player}/{self.over}"
        found = [line for line in lines if key in line and (not self.over or over in line)]
        if not self.over:
            return [line[key] for line in found]
        return [line[key] / line[over] if line[over] else math.nan for line in found]


@dataclass(frozen=True)
class Finding:
    """Result of one check on a run.

    Attributes:
        check: The check.
        player: Player that logged the figure.
        course: Values of the figure, one for each interval of the log.
    """

    check: Check
    player: str
    course: list[float]

    @property
    def now(self) -> float:
        """Mean over the last tenth of the course."""
        last = self.course[-max(1, len(self.course) // 10) :]
        return sum(last) / len(last)

    @property
    def healthy(self) -> bool:
        """Whether the course ends in the range; NaN does not."""
        return self.check.low <= self.now <= self.check.high


CHECKS = (
    Check(
        "the fake score's distance from the samples, over the teacher's",
        "lag",
        0.0,
        1.01,
        "The fake score does not know the samples: change fake_score.lr, or raise turns.",
        "ring: dmd2, sid and tdm 1.00; emoji: sid 0.43, tdm 0.63, decoupled-dmd 0.89; "
        "1.02 to 1.05 where its rate was too high (3e-2, 3.3 floors)",
        over="teacher_lag",
    ),
    Check(
        "the fake score's own error, as a share of what it and the teacher differ by",
        "fake_error",
        -1.0,
        1.5,
        "Below, the fake score stays the teacher's; above, it does not keep up. For both, raise "
        "fake_score.lr or turns.",
        "ring: dmd2 1.1, cdm 0.9, twinflow -0.4; emoji: sid 0.0, tdm 0.2, decoupled-dmd -0.2; "
        "-1.8 where it hardly trained (lr 1e-7, 9 floors)",
    ),
    Check(
        "accuracy of the discriminator, 0.5 is a guess",
        "accuracy",
        0.4,
        0.8,
        "The discriminator is not of the student's strength: change its lr, or add r1.",
        "ring: ladd 0.50, f-distill 0.51; emoji: flash 0.52",
    ),
    Check(
        "distance of the samples' mean from the data's, over what it is by chance",
        "mean_drift",
        0.0,
        1.5,
        "Samples have left the data's mean: modes are lost, or guidance is high.",
        "ring: dmd2 and sid 0.9, ladd 0.6; emoji: sid, tdm and decoupled-dmd 0.2; "
        "2.7 where the fake score hardly trained",
    ),
    Check(
        "standard deviation of the samples, over the data's",
        "std_ratio",
        0.9,
        1.2,
        "Below, samples have lost modes or detail; above, they are too strong.",
        "ring: dmd2, sid and ladd 1.00; emoji: sid 1.14, decoupled-dmd 1.13; 0.78 where the fake "
        "score hardly trained, 1.26 where ladd lost the pictures (FD 64)",
        renoised=True,
    ),
)


def findings(lines: Sequence[Line], sampler: str = "renoise") -> list[Finding]:
    """Check the logs of a run, in the order of `CHECKS`; only figures that were logged.

    Args:
        lines: Lines of metrics.jsonl.
        sampler: Sampler of the student.
    """
    players = sorted({name.split("/")[0] for line in lines for name in line if "/" in name})
    found = []
    for check in CHECKS:
        if check.renoised and sampler != "renoise":
            continue
        for player in players:
            course = check.series(lines, player)
            if course:
                found.append(Finding(check, player, course))
    return found


WIDTH, HEIGHT = 160, 32


def sparkline(finding: Finding) -> str:
    """Draw the course as an SVG line over the healthy range, which is shaded."""
    course, check = [v for v in finding.course if math.isfinite(v)], finding.check
    low, high = min(course, default=0.0), max(course, default=1.0)
    low, high = min(low, check.high), max(high, check.low)
    margin = 0.1 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(HEIGHT * (high - min(max(value, low), high)) / (high - low), 1)

    top, bottom = place(check.high), place(check.low)
    step = WIDTH / max(1, len(course) - 1)
    points = " ".join(f"{round(i * step, 1)},{place(v)}" for i, v in enumerate(course))
    return (
        f'<svg class="course" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f'<rect y="{top}" width="{WIDTH}" height="{round(bottom - top, 1)}"/>'
        f'<polyline points="{points}"/></svg>'
    )
