"""Values that the shell completes, listed without torch."""

from __future__ import annotations

from collections.abc import Iterable

import typer

__all__ = [
    "GPUS",
    "KINDS",
    "SOLVERS",
    "gpu_names",
    "purposes",
    "recipe_families",
    "recipe_names",
    "recipe_words",
    "student_kinds",
    "target_names",
    "target_precisions",
    "teacher_families",
]

ALL = "all"

KINDS = (
    *("lcm", "lcm-lora", "turbo", "sd-turbo", "lightning", "lightning-lora", "hyper-sd"),
    *("hyper-sd-unified", "hyper-sd-1step", "dmd2", "dmd2-lora", "pcm", "tcd", "sd3-turbo"),
    *("sd3-turbo-lora", "schnell", "flux-turbo-lora", "hyper-sd-flux"),
)
"""Names in `adoption.kinds.KINDS`, whose import needs torch."""
SOLVERS = ("ddim", "dpm++2m", "unipc", "deis")
"""Names in `adoption.kinds.SOLVERS`."""

GPUS = (
    *("B200", "H200", "H100", "H100-PCIe", "A100", "L40S", "L4", "A10", "V100", "T4"),
    *("RTX-5090", "RTX-4090", "RTX-3090", "RTX-3060"),
)
"""Names in `planning.time.GPUS`, whose import needs torch."""


def recipe_names(incomplete: str) -> list[str]:
    """Return the shipped recipes that begin with a text."""
    from edgedistill.recipes.listing import shipped

    return _beginning(incomplete, shipped())


def recipe_families(incomplete: str) -> list[str]:
    """Return the words for --for that begin with a text: families, and first words of names."""
    from edgedistill.recipes.listing import summaries

    table = summaries()
    words = {name.partition("-")[0] for name in table} | {each.family for each in table.values()}
    return _beginning(incomplete, sorted(words))


def teacher_families(incomplete: str) -> list[str]:
    """Return the families of teachers with a shipped recipe that begin with a text."""
    from edgedistill.recipes.listing import summaries

    families = {summary.family for summary in summaries().values()} - {"mixture"}
    return _beginning(incomplete, sorted(families))


def recipe_words(context: typer.Context, incomplete: str) -> list[str]:
    """Return the words recipe=NAME that begin with a text.

    bash takes = for a word of its own, and then completes NAME alone.
    """
    given = list(context.params.get("words") or ())
    if incomplete == "=" or given[-2:] == ["recipe", "="]:
        return recipe_names(incomplete.removeprefix("="))
    if any(word.startswith("recipe=") for word in given) or given[:2] == ["recipe", "="]:
        return []
    name = incomplete.removeprefix("recipe=")
    if name == incomplete:
        return _beginning(incomplete, ["recipe="])
    return [f"recipe={found}" for found in recipe_names(name)]


def target_names(incomplete: str) -> list[str]:
    """Return the targets that begin with a text, and `all`."""
    from edgedistill_export import targets

    return _beginning(incomplete, [*targets.target_names(), ALL])


def target_precisions(context: typer.Context, incomplete: str) -> list[str]:
    """Return the precisions that begin with a text, of the targets that are given."""
    from edgedistill_export import targets

    names = [name for name in context.params.get("target") or () if name != ALL]
    known = [name for name in names if name in targets.target_names()]
    tables = [targets.find_target(name).precisions for name in known or targets.target_names()]
    return _beginning(incomplete, [*dict.fromkeys(p for each in tables for p in each), ALL])


def gpu_names(incomplete: str) -> list[str]:
    """Return the GPUs whose figures are known that begin with a text."""
    return _beginning(incomplete, GPUS)


def purposes(incomplete: str) -> list[str]:
    """Return the purposes of `export --for` that begin with a text."""
    from edgedistill_export.auto.kept import PURPOSES

    return _beginning(incomplete, PURPOSES)


def student_kinds(incomplete: str) -> list[str]:
    """Return the kinds of students made elsewhere, and the solvers, that begin with a text."""
    return _beginning(incomplete, (*KINDS, *SOLVERS))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
