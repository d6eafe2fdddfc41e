"""Cost of a reward: its networks without weights, and the decoder before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgedistill import rewards
from edgedistill.networks.scaling import Scaling
from edgedistill.planning.architectures import find, place
from edgedistill.planning.inputs import Inputs
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers.decoders import Decoder
from edgedistill.teachers.families.wan import VideoDecoder

__all__ = ["PlannedReward", "planned_reward"]


class PlannedReward:
    """A recipe's reward of x0 on the meta device, as `rewards.reward_of`.

    Args:
        model: The reward.
        autoencoder: The teacher's autoencoder; None where x0 is the data itself.
        inputs: Inputs of the teacher's denoiser.

    Attributes:
        offload: Whether the decoder is on the device only while it is used.
    """

    offload = False

    def __init__(
        self, model: rewards.RewardModel, autoencoder: nn.Module | None, inputs: Inputs
    ) -> None:
        self.model = model
        self.shape = inputs.latent or inputs.sample
        self.decoder: nn.Module | None = None
        if autoencoder is not None:
            kind = VideoDecoder if len(inputs.sample) == 4 else Decoder
            # The scaling is a few numbers, which cost nothing.
            self.decoder = kind(autoencoder, Scaling()).to("meta")

    def __call__(self, x0: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.model(self.decode(x0), prompts).float()

    def decode(self, x0: Tensor) -> Tensor:
        """Decode pictures in pieces, as a teacher does."""
        if self.decoder is None:
            return x0
        size = sum(p.nbytes for p in self.decoder.parameters()) if self.offload else 0
        _weights = torch.empty(size, dtype=torch.uint8, device="meta")
        latents = x0.reshape(len(x0), *self.shape)
        return torch.cat([self.decoder(piece) for piece in torch.split(latents, 32)])


def planned_reward(
    recipe: Recipe, networks: Mapping[str, nn.Module], inputs: Inputs
) -> PlannedReward | None:
    """Build the recipe's reward, if it names one.

    Raises:
        ValueError: If the reward does not fit the recipe, or cannot be planned; names the key.
    """
    section = recipe.reward
    if section is None:
        return None
    kind = rewards.find(section.name)
    config = kind.Config(**section.options)
    folder = find(place(recipe.teacher))
    model = kind.outline(config, folder, prompted=bool(inputs.cond))
    if model is None:
        raise ValueError(
            f"reward.name={section.name}: what this reward costs is not known here; plan the "
            "recipe without it: reward=null"
        )
    return PlannedReward(model, networks.get("vae"), inputs)
