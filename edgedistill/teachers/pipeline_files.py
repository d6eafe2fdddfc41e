"""A diffusers pipeline from a folder, a Hub id or a single file, and facts about its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from edgedistill import assets
from edgedistill.common.files import read_json
from edgedistill.common.pickles import check_pickles
from edgedistill.common.tokenizer_errors import named_errors
from edgedistill.teachers.hub import configs_at, pipeline_at
from edgedistill.teachers.licences import Rights, lacks_of, rights_of
from edgedistill.teachers.loading import (
    BROKEN,
    FAMILIES,
    check_configs,
    check_parts,
    check_place,
    check_variants,
    reason,
    whole_weights,
)
from edgedistill.teachers.markers import marks_of, read_header
from edgedistill.teachers.single_file import check_file, open_file, read_index
from edgedistill.teachers.tokenizers import nulls
from edgedistill_runtime.hub import HubError

if TYPE_CHECKING:
    from edgedistill.teachers.pipeline import PipelineTeacher

__all__ = ["PipelineFiles", "check_class", "read_pipeline", "scheduler_at"]


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline and facts about its files.

    Attributes:
        name: Name of the teacher.
        path: Place it was loaded from.
        pipeline: Diffusers' pipeline.
        index: Contents of its model_index.json.
        rights: Licences of its weights.
        notes: Lines for its user.
    """

    name: str
    path: str
    pipeline: Any
    index: Mapping[str, Any]
    rights: Rights
    notes: Sequence[str]

    def teacher(self, kind: type[PipelineTeacher]) -> PipelineTeacher:
        """Make this pipeline's teacher of a family."""
        made = kind(self.name, self.path, self.pipeline)
        lacks = [] if made.is_student else lacks_of(self.index)
        made.rights, made.notes = self.rights, [*self.notes, *lacks]
        return made


def read_pipeline(kind: type[PipelineTeacher], path: str, config: str | None) -> PipelineFiles:
    """Open the pipeline of a family.

    Args:
        kind: The family.
        path: A shipped asset's name, a folder, a Hub id, or a single .safetensors file.
        config: Folder or Hub id of a single file's configurations.

    Raises:
        ValueError: If there is no pipeline, or it is of another family or broken; names the place.
    """
    # A download shows its own bars; loading takes a second and needs no bar.
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # errors come as exceptions
    transformers_logging.disable_progress_bar()
    if check_file(path):
        return _read_file(kind, path, config)
    if config is not None:
        raise ValueError(
            f"teacher.config={config} is for a single .safetensors file; "
            f"{path!r} has its own configurations"
        )
    shipped = assets.ROOT / path
    folder = shipped if "/" not in path and shipped.is_dir() else Path(path)
    check_place(folder, path)
    named = str(folder) if folder.is_dir() else path
    try:
        folder = Path(pipeline_at(named, kind.unused))
    except HubError as error:
        raise ValueError(
            f"{error}; a gated one needs `hf auth login`, or teacher.path=FOLDER of a copy"
        ) from error
    check_pickles(folder)
    check_variants(folder)
    check_parts(folder, kind.unused)
    check_configs(folder)
    scheduler_at(folder)
    where = str(folder)
    try:
        index = DiffusionPipeline.load_config(where)
        # A folder that names no class is read as the plainest one.
        name = str(index.get("_class_name") or kind.pipelines[0])
        check_class(kind, name, where)
        with named_errors():
            pipeline = kind.open(name, index, where)
    except BROKEN as error:
        first = nulls(folder) or reason(error, folder)
        if "ip_image_proj" in first:
            first += "; it was saved with an IP-Adapter, save it after unload_ip_adapter()"
        raise ValueError(f"cannot load {path!r}: {first}") from error
    return PipelineFiles(Path(path).name, named, pipeline, index, rights_of(where), ())


def _read_file(kind: type[PipelineTeacher], path: str, config: str | None) -> PipelineFiles:
    """Read the pipeline around a single file."""
    try:
        place = config and configs_at(config)
    except HubError as error:
        raise ValueError(f"teacher.config={config}: {error}") from error
    where, index = read_index(kind.family, path, place)
    check_class(kind, str(index.get("_class_name")), where)
    try:
        with named_errors(), whole_weights(path):
            pipeline = open_file(kind.family, path, where, index, **kind.options)
    except BROKEN as error:
        raise ValueError(f"cannot load {path!r}: {reason(error, path)}") from error
    marks = marks_of(read_header(path), path)
    rights = rights_of(path, marks.licence)
    return PipelineFiles(Path(path).stem, path, pipeline, index, rights, marks.notes)


def check_class(kind: type[PipelineTeacher], name: str, where: str) -> None:
    """Raise a ValueError if a pipeline of class `name` is of another family."""
    if name in kind.pipelines:
        return
    other = FAMILIES.get(name)
    hint = f"it looks like {other}: choose teacher.family={other}" if other else "no such family"
    raise ValueError(
        f"{where} holds a {name}, {kind.family} reads {', '.join(kind.pipelines)}; {hint}"
    )


def scheduler_at(folder: Path) -> Any:
    """Read the scheduler of a pipeline folder; None where it has none, or diffusers no such class.

    Raises:
        ValueError: If its settings are wrong; names the file.
    """
    listed = read_json(folder / "model_index.json").get("scheduler")
    kind = getattr(diffusers, str(listed[1]), None) if isinstance(listed, list) else None
    file = folder / "scheduler" / "scheduler_config.json"
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin) and file.is_file()):
        return None
    config = read_json(file, infinite=True)
    try:
        return kind.from_config(config)  # type: ignore[attr-defined]  # untyped
    except (TypeError, ValueError, LookupError, NotImplementedError) as error:
        raise ValueError(f"{file}: no {kind.__name__} can be made of it: {error}") from error
