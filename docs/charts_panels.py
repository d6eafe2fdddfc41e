"""Chooses the figures that each chart shows, from the tables below its image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from charts_tables import Row, Tables, Value, by_name, one

WHOLE = "in all"
"""The series of a stack's sum, whose range is drawn."""
GRAPH = "one graph"
"""The series of stages that are not told apart."""


class Panel(NamedTuple):
    """One part of a chart: the figures of every row, by series, and the text at the row's end."""

    title: str
    rows: Mapping[str, Mapping[str, Value]]
    ends: Mapping[str, str]


def ours(name: str) -> bool:
    """Whether a subject is a bundle or a recipe of ours."""
    return name.startswith(("ours", "openvino-", "ort-", "web-", "emoji-"))


def column_panel(rows: Iterable[Row], title: str, series: Mapping[str, str]) -> Panel:
    """The panel of some columns, by the name of their series, of the rows that have them all."""
    rows = [row for row in rows if all(row.text(column) for column in series.values())]
    return Panel(
        title,
        {row.name: {name: row.value(column) for name, column in series.items()} for row in rows},
        {row.name: ", ".join(row.first(column) for column in series.values()) for row in rows},
    )


def runtimes(found: Tables) -> list[Panel]:
    """The time of a picture in every runtime."""
    return [column_panel(found[0], "Milliseconds a picture (log scale)", {"": "ms"})]


def start(found: Tables) -> list[Panel]:
    """The seconds of a process to its first picture."""
    series = {"what is compiled is kept": "s", "nothing kept": "s, nothing kept"}
    return [column_panel(found[0], "Seconds from start to first picture", series)]


def web(found: Tables) -> list[Panel]:
    """A picture, the first picture and loading in onnxruntime-web."""
    titles = {
        "ms": "Milliseconds a picture",
        "first ms": "Milliseconds, first picture",
        "load s": "Seconds to load",
    }
    return [column_panel(found[0], title, {"": column}) for column, title in titles.items()]


def training(found: Tables) -> list[Panel]:
    """The training speed over an earlier commit's."""
    title = "Training steps a second, over an earlier commit's"
    return [column_panel(found[0], title, {"": "ratio"})]


def split(rows: Mapping[str, Mapping[str, Value]], ends: Mapping[str, str]) -> list[Panel]:
    """Two panels, each on a scale of its own: diffusers and ours."""
    titles = {False: "diffusers", True: "ours (another scale)"}

    def subject(name: str) -> str:
        return name.removesuffix(", diffusers")

    return [
        Panel(
            title,
            {subject(name): row for name, row in rows.items() if ours(name) is which},
            {subject(name): end for name, end in ends.items() if ours(name) is which},
        )
        for which, title in titles.items()
    ]


def emoji_stages(found: Tables) -> list[Panel]:
    """The stages of an emoji picture, milliseconds."""
    stages = ("text encoder", "denoiser", "decoder")
    rows, ends = {}, {}
    for row in found[0]:
        ends[row.name] = f"{row.first('ms')} ms"
        whole, other = row.value("ms"), row.value("other")
        if row.text("denoiser"):
            parts = {stage: row.value(stage) for stage in stages}
        else:
            rest = round(whole.middle - other.middle, 3)
            parts = {GRAPH: Value(rest, rest, rest)}
            ends[row.name] += f", {GRAPH}"
        rows[row.name] = {**parts, "other": other, WHOLE: whole}
    return split(rows, ends)


def large_stages(found: Tables) -> list[Panel]:
    """The stages of a picture at Stable Diffusion 1.5's size, seconds.

    Raises:
        ValueError: The stages of the first table do not add up to a picture of the second.
    """
    stages = by_name(found[0])
    rows = {}
    for row in found[1]:
        whole = row.value("s")
        parts = large_parts(row.name, stages)
        total = sum(part.middle for part in parts.values())
        if abs(total / whole.middle - 1) > 0.03:
            raise ValueError(f"{row.name!r}: stages of {total:.4g} s, {whole.middle:g} in all")
        rows[row.name] = {**parts, WHOLE: whole}
    factor = "times as fast as the teacher"
    return split(rows, {row.name: f"{row.first('s')} s, {row.first(factor)}x" for row in found[1]})


REUSED = re.compile(r"(\d+) of (outer blocks|last layer)")
"""Steps of a subject that call a part of its U-Net only."""


def large_parts(subject: str, stages: Mapping[str, Row]) -> dict[str, Value]:
    """Seconds of each stage of a subject such as `ours, 4 steps, int8 U-Net, tiny decoder`."""
    steps = re.search(r"(\d+) (?:guided )?steps?", subject)
    if not steps:
        raise ValueError(f"{subject!r} does not say its steps")
    plain = "diffusers, fp32, ms" if "diffusers" in subject else "bf16, ms"
    small, reused = re.search(r"BK-SDM-\w+", subject), REUSED.search(subject)
    if small:
        unet, column = f"U-Net of {small[0]}", "int8, ms"
    elif "guided" in subject:
        unet, column = "U-Net, guided (a batch of 2)", plain
    else:
        unet, column = "U-Net", "int8, ms" if "int8 U-Net" in subject else plain
    if "at stride 2" in subject:
        unet += " at stride 2"
    decoder = "tiny decoder (TAESD)" if "tiny decoder" in subject else "VAE decoder"
    shallow = int(reused[1]) if reused else 0
    calls = {
        "text encoder": [("text encoder", plain, 0 if "same prompt" in subject else 1)],
        "U-Net": [(unet, column, int(steps[1]) - shallow)],
        "decoder": [(decoder, "int8, ms" if "int8 tiny" in subject else plain, 1)],
    }
    if reused:
        calls["U-Net"].append((f"U-Net, {reused[2]}", column, shallow))
    return {name: total(found, stages) for name, found in calls.items()}


def total(calls: Iterable[tuple[str, str, int]], stages: Mapping[str, Row]) -> Value:
    """Seconds of calls: (stage, column of its milliseconds, how many)."""
    each = [
        [count * number for number in one(stages, stage).value(column)]
        for stage, column, count in calls
    ]
    return Value(*(round(sum(numbers) / 1000, 4) for numbers in zip(*each, strict=True)))


GROWTH = {
    "openvino-int8": "-",
    "openvino-int8-fused": ":",
    "ort-int8": "--",
    "OpenVINO GenAI, its own precision": "-",
    "optimum, ONNX Runtime": "--",
    "diffusers": "-.",
}
"""The rows of the table that are drawn, with their strokes. All ten would hide one another."""


def growth(found: Tables) -> list[Panel]:
    """The time of a picture over the pictures a call, and over the steps (4 in the first)."""
    named = by_name(found[0])
    rows = [one(named, name) for name in GROWTH]
    batch = {"1": "1 picture", "2": "2", "4": "4", "8": "8"}
    steps = {"1": "1 step", "2": "2 steps", "4": "1 picture", "8": "8 steps"}
    return [
        column_panel(rows, "Milliseconds a picture, over pictures a call", batch),
        column_panel(rows, "Milliseconds a picture, over steps", steps),
    ]


def emoji_methods(found: Tables) -> list[Panel]:
    """FD of every method on emoji, at 4, 2 and 1 steps."""
    counts = list(dict.fromkeys(row.text("steps") for row in found[0]))
    names = list(dict.fromkeys(row.name for row in found[0]))
    cells = {(row.name, row.text("steps")): row for row in found[0]}
    rows, ends = {}, {}
    for name in names:
        told = {n: cells[name, n] for n in counts if (name, n) in cells}
        short = name.removeprefix("emoji-")
        rows[short] = {f"{n} step{'s' * (n != '1')}": row.value("FD") for n, row in told.items()}
        ends[short] = ", ".join(told[n].first("FD") if n in told else "-" for n in counts)
    return [Panel("FD on trained captions (less is better)", rows, ends)]


MIXTURES = ("ring", "grid", "clusters")


def mixture_methods(found: Tables) -> list[Panel]:
    """Floors of every method on the three mixtures, those of the worst at the end."""
    panels = []
    for steps, title in (
        ("4", "In 4 steps: floors (log scale), worst at right"),
        ("1", "In one step"),
    ):
        rows = {
            row.name.removeprefix("mixture-"): row
            for row in found[0]
            if row.text("steps") == steps
        }
        floors = {name: {m: row.value(m) for m in MIXTURES} for name, row in rows.items()}
        worst = {name: max(row, key=row.__getitem__) for name, row in floors.items()}
        ends = {name: row.first(worst[name]) for name, row in rows.items()}
        panels.append(Panel(title, floors, ends))
    return panels
