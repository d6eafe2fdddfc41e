"""Model cards for the Hugging Face Hub, of students and bundles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from edgedistill.common.files import read_json
from edgedistill.students.folder import CARD, StudentInfo
from edgedistill_runtime.hub import hub_name
from edgedistill_runtime.manifest import Manifest

__all__ = ["PICTURE", "bundle_card", "student_card"]

PICTURE = "samples.png"

TASKS = {
    "dit": "unconditional-image-generation",
    "mixture": "",
    "unet2d": "unconditional-image-generation",
    "wan": "text-to-video",
}
"""The Hub's task by family; text-to-image for the others."""

FIGURES = {
    "fd": "Frechet distance",
    "kid": "kernel distance (KID)",
    "text_image_score": "text-image score",
    "psnr": "PSNR to the teacher, dB",
    "perceptual": "perceptual distance to the teacher",
}
"""Names of the figures of eval.json for people, by key."""


def student_card(
    folder: Path, info: StudentInfo, repo: str, prompts: Sequence[str], seed: int
) -> str:
    """Return a student's card: how to run it, its figures and its teacher's terms.

    Args:
        folder: The student folder, whose README.md is taken up.
        info: Contents of student.json; of the first of several students.
        repo: OWNER/NAME that it gets.
        prompts: Prompts of its picture; empty if it takes none.
        seed: Seed of its picture.
    """
    own = _body(folder / CARD)
    own = own.replace('FOLDER + "/lora"', f'"{repo}", subfolder="lora"')
    own = own.replace("FOLDER", f'"{repo}"')
    base = _base_model(info)
    own = own.replace("TEACHER", f'"{base}"') if base else own
    pipeline = (folder / "model_index.json").is_file()
    prompt = f' "{prompts[0]}"' if prompts else ""
    lines = [
        f"# {repo.partition('/')[2]}",
        own or f"Students of {info.teacher.get('name')}, distilled with {info.method}.",
        _picture(prompts, seed),
        f"""With [edgedistill](https://pypi.org/project/edgedistill/):

```
edgedistill generate {repo}{prompt} --seed {seed}
edgedistill export {repo} --target ort
```""",
        *_figures(info.evaluation, folder.parent / "bench.json"),
    ]
    rows = len(info.step_table["rows"])
    tags = ["few-step", f"{rows}-step", info.method, info.family]
    data = _data(info.family, info.teacher, tags, "diffusers" if pipeline else "edgedistill", base)
    return _card(data, lines)


def bundle_card(
    folder: Path, manifest: Manifest, repo: str, prompts: Sequence[str], seed: int
) -> str:
    """Return a bundle's card: how to run it, and how near it is to its student.

    Args:
        folder: The bundle, whose README.md is taken up.
        manifest: Manifest of the bundle.
        repo: OWNER/NAME that it gets.
        prompts: Prompts of its picture; empty if it takes none.
        seed: Seed of its picture.
    """
    source, parity = manifest.student, manifest.parity
    steps = len(manifest.steps.rows)
    call = f"pipe({json.dumps(list(prompts[:1]))}, seed={seed})" if prompts else "pipe.samples(1)"
    own = _body(folder / CARD) or f"A bundle of a student of {source.teacher}."
    lines = [
        f"# {repo.partition('/')[2]}",
        f"{own}\n\nIt runs {steps} steps for {manifest.target} in {manifest.precision}. "
        f"Its student was distilled with {source.method}.",
        _picture(prompts, seed),
        f"""```
pip install edgedistill-runtime huggingface_hub
```

```python
from edgedistill_runtime import Pipeline

pipe = Pipeline.load("{repo}")
result = {call}
```""",
        "The bundle draws its student's pictures: "
        f"PSNR {parity.final.mean:.1f} dB, {parity.final.worst:.1f} dB in the worst of "
        f"{parity.samples}.",
    ]
    terms = _front(folder / CARD)
    teacher = {"licences": list(source.licences), **terms}
    tags = ["few-step", f"{steps}-step", manifest.target, manifest.precision, source.family]
    return _card(_data(source.family, teacher, tags, "edgedistill", ""), lines)


def _data(
    family: str, teacher: Mapping[str, Any], tags: Sequence[str], library: str, base: str
) -> ModelCardData:
    licences = [str(each) for each in teacher.get("licences") or ["other"]]
    return ModelCardData(
        library_name=library,
        pipeline_tag=TASKS.get(family, "text-to-image") or None,
        base_model=base or None,
        license=licences[0] if len(licences) == 1 else licences,  # type: ignore[arg-type]
        license_name=teacher.get("license_name"),
        license_link=teacher.get("license_link"),
        tags=["edgedistill", *tags],
    )


def _card(data: ModelCardData, parts: Sequence[str]) -> str:
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}\n"))


def _picture(prompts: Sequence[str], seed: int) -> str:
    words = "; ".join(prompts)
    told = f"Seed {seed}: {words}." if words else f"Seed {seed}."
    return f"![Samples of seed {seed}]({PICTURE})\n\n{told}"


def _base_model(info: StudentInfo) -> str:
    """Return the teacher's Hub id; "" for a teacher that has none."""
    name = hub_name(str(info.teacher.get("path") or ""))
    return name.repo if name else ""


def _figures(evaluation: Mapping[str, Any] | None, bench: Path) -> list[str]:
    """Return tables of measured quality and latency, where there are any."""
    tables = []
    if rows := [f"| {told} | {value:.4g} |" for told, value in _measured(evaluation or {}, "")]:
        tables.append("\n".join(["| figure | this student |", "|---|---|", *rows]))
    timed = read_json(bench) if bench.is_file() else {}
    if rows := [
        f"| {name} | {1000 * entry['p50_s']:.3g} |"
        for name, entry in timed.items()
        if isinstance(entry, dict) and isinstance(entry.get("p50_s"), float)
    ]:
        tables.append("\n".join(["| subject | ms a picture, p50 |", "|---|---|", *rows]))
    return ["## Figures", *tables] if tables else []


def _measured(figures: Mapping[str, Any], kind: str) -> Iterator[tuple[str, float]]:
    """Yield the known figures, with the set of prompts that they are of, at any depth."""
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _measured(value, key if key not in ("to_teacher",) else kind)
        elif key in FIGURES and isinstance(value, int | float):
            yield FIGURES[key] + (f", {kind}" if kind else ""), float(value)


def _body(card: Path) -> str:
    """Return the text of a card below its front matter; "" without a card."""
    return ModelCard(_text(card)).text.strip() if card.is_file() else ""


def _front(card: Path) -> dict[str, Any]:
    """Return `license_name` and `license_link` of a card, where it has them."""
    data = _told(card) if card.is_file() else {}
    return {key: data[key] for key in ("license_name", "license_link") if data.get(key)}


def _told(card: Path) -> dict[str, Any]:
    """Return the front matter of a card."""
    data: Any = ModelCard(_text(card)).data
    return dict(data.to_dict())


def _text(card: Path) -> str:
    return card.read_text(encoding="utf-8")
