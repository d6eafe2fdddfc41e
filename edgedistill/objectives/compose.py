"""Compose a method with a recipe's other sections: which losses are trained, and when."""

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
    """Put pruning before the method or add its loss, and likewise depths and other losses."""
    if reward and not method.needs_reward:
        method = Rewarded(method, reward, setup)
    if embedding:
        method = Embedded(method, embedding, setup)
    if depths:
        method = Elastic(method, setup, depths)
    if not (section.first_steps or section.joint_weight):
        return method
    config = Shrink.Config(features_weight=section.features_weight, taps=section.taps)
    auxiliary = None
    try:
        shrink: Objective = Shrink(config, setup)
        if depths:
            shrink = Elastic(shrink, setup, depths, lambda depth: Shrink(config, depth))
        if section.joint_weight:
            only = Shrink.Config(
                task_weight=0,
                output_weight=0,
                features_weight=section.joint_weight,
                taps=section.taps,
            )
            auxiliary = Shrink(only, setup)
    except ValueError as error:
        raise ValueError(f"compress.taps: {error}") from None
    return SizeFirst(method, shrink, section.first_steps, auxiliary)
