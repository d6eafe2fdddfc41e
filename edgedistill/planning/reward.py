"""What a reward costs: its networks without weights, and the decoder on the way to them."""

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

__all__ = ["PlannedReward", "judge"]


class PlannedReward:
    """A recipe's reward of x0, as `rewards.reward_of` on the meta device.

    Args:
        model: The reward.
        autoencoder: The teacher's; None where x0 is the data itself.
        inputs: Of its denoiser.

    Attributes:
        offload: Whether the decoder is on the device while it is used alone.
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
            # Numbers alone, which cost nothing.
            self.decoder = kind(autoencoder, Scaling()).to("meta")

    def __call__(self, x0: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.model(self.decode(x0), prompts).float()

    def decode(self, x0: Tensor) -> Tensor:
        """Pictures, in pieces as a teacher makes them."""
        if self.decoder is None:
            return x0
        size = sum(p.nbytes for p in self.decoder.parameters()) if self.offload else 0
        _weights = torch.empty(size, dtype=torch.uint8, device="meta")
        latents = x0.reshape(len(x0), *self.shape)
        return torch.cat([self.decoder(piece) for piece in torch.split(latents, 32)])


def judge(
    recipe: Recipe, networks: Mapping[str, nn.Module], inputs: Inputs
) -> PlannedReward | None:
    """The recipe's reward, if it names one.

    Raises:
        ValueError: If it does not go with the recipe, or cannot be planned; names the key.
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
