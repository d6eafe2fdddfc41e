"""Bundles for OpenVINO in the layout that OpenVINO GenAI's `Text2ImagePipeline` opens.

GenAI has schedulers of its own, named as those of diffusers: DDIM, which walks every prediction,
and LCM, which walks predicted noise only. It reads a prompt by a graph of the tokenizer, which the
package openvino-tokenizers makes, and passes times as integers.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from edgedistill.common.files import read_json, write_json
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import load_student_info
from edgedistill_export.layouts.pipeline import Layout

__all__ = ["GENAI", "PREDICTIONS"]

PREDICTIONS = {
    "DDIMScheduler": ("epsilon", "v_prediction", "sample"),
    "LCMScheduler": ("epsilon",),
}
"""Predictions that GenAI's schedulers read. Its LCM scheduler crashes on any other (2026.4)."""

SCHEDULES = ("linear", "scaled_linear")
"""Schedules of betas that GenAI knows by name; others are written as numbers."""

CONFIG = Path("scheduler") / "scheduler_config.json"
SAID = "--layout genai"


def _check(student: Path) -> None:
    """Raise a ValueError if no scheduler of GenAI walks a student, or a package is missing."""
    config = read_json(student / CONFIG, infinite=True)
    kind, prediction = config["_class_name"], config["prediction_type"]
    if kind not in PREDICTIONS:
        raise ValueError(
            f"{SAID}: the student's scheduler is {kind}; OpenVINO GenAI walks its steps with "
            f"{' or '.join(PREDICTIONS)} only (student.sampler=ddim, or renoise)"
        )
    if prediction not in PREDICTIONS[kind]:
        raise ValueError(
            f"{SAID}: the student predicts {prediction}, and OpenVINO GenAI's {kind} reads "
            f"{', '.join(PREDICTIONS[kind])} only (student.sampler=ddim, or "
            "student.prediction=eps)"
        )
    table = TorchStepTable.from_json(load_student_info(student).step_table)
    scheduler = getattr(diffusers, kind).from_pretrained(student / CONFIG.parent)
    scheduler.set_timesteps(len(table.rows))
    times = [round(row.t) for row in table.rows]
    if scheduler.timesteps.tolist() != times:
        raise ValueError(
            f"{SAID}: the student's times {times} are not those of its {kind}, and OpenVINO GenAI "
            "takes no list of times (student.spacing=trailing)"
        )
    _tokenizers()


def _tokenizers() -> Any:
    """Import openvino_tokenizers.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module("openvino_tokenizers")
    except ImportError as error:
        raise ValueError(
            f"{SAID} needs openvino-tokenizers of your OpenVINO's version ({error}); "
            "`pip install openvino-tokenizers`"
        ) from error


def _write(source: Path, to: Path, names: Mapping[str, str]) -> None:
    """Save a graph under other names of its inputs and outputs, its time an integer."""
    import openvino as ov

    model = ov.Core().read_model(source)
    for port in (*model.inputs, *model.outputs):
        name = port.get_any_name()
        port.get_tensor().set_names({names.get(name, name)})
    if "t" in names:
        steps = ov.preprocess.PrePostProcessor(model)
        steps.input(names["t"]).tensor().set_element_type(ov.Type.i64)
        model = steps.build()
    # What the bundle holds in float16 stays so; nothing else is made smaller.
    ov.save_model(model, to, compress_to_fp16=False)


def _finish(student: Path, place: Path) -> None:
    """Write the scheduler as GenAI reads it, and the tokenizer's graph."""
    import openvino as ov
    from transformers import CLIPTokenizer

    config = read_json(student / CONFIG, infinite=True)
    kind = config["_class_name"]
    if config.get("trained_betas") is None and config["beta_schedule"] not in SCHEDULES:
        betas = getattr(diffusers, kind).from_config(config).betas
        config |= {"beta_schedule": SCHEDULES[0], "trained_betas": betas.tolist()}
    write_json(place / CONFIG, {key: value for key, value in config.items() if value is not None})
    tokenizer = CLIPTokenizer.from_pretrained(student / "tokenizer")
    made = _tokenizers().convert_tokenizer(tokenizer, truncation=True)
    ov.save_model(made, place / "tokenizer" / "openvino_tokenizer.xml")


GENAI = Layout(
    name="genai",
    target="openvino",
    model="openvino_model.xml",
    write=_write,
    check=_check,
    finish=_finish,
)
