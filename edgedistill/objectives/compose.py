"""A method within a recipe's other sections: which loss is trained when, and what beside it."""

from __future__ import annotations

from collections.abc import Mapping

from edgedistill.compress.config import Compress
from edgedistill.compress.plan import Plan
from edgedistill.objectives.added.embedding import Embedded, Embedding
from edgedistill.objectives.added.reward import Reward, Rewarded
from edgedistill.objectives.base import Objective, Setup
from edgedistill.objectives.compression.elastic import Elastic
from edgedistill.objectives.compression.shrink import Shrink, SizeFirst

__all__ = ["ordered"]


def ordered(
    method: Objective,
    setup: Setup,
    section: Compress,
    depths: Mapping[str, Plan],
    embedding: Embedding | None = None,
    reward: Reward | None = None,
) -> Objective:
    """Size first, then steps; or size beside steps; each in turns where there are depths."""
    if reward and not method.needs_reward:
        method = Rewarded(method, reward, setup)
    if embedding:
        method = Embedded(method, embedding, setup)
    if depths:
        method = Elastic(method, setup, depths)
    if not (section.first or section.joint):
        return method
    config = Shrink.Config(features=section.features, taps=section.taps)
    beside = None
    try:
        shrink: Objective = Shrink(config, setup)
        if depths:
            shrink = Elastic(shrink, setup, depths, lambda depth: Shrink(config, depth))
        if section.joint:
            only = Shrink.Config(task=0, output=0, features=section.joint, taps=section.taps)
            beside = Shrink(only, setup)
    except ValueError as error:
        raise ValueError(f"compress.taps: {error}") from None
    return SizeFirst(method, shrink, section.first, beside)
