"""The `compress` section of a recipe."""

from __future__ import annotations

from pydantic import Field, model_validator

from edgedistill.common.settings import Settings, renamed
from edgedistill.compress.token_stride import LARGEST, TokenStride

__all__ = ["Compress"]


class Compress(Settings):
    """Choose a smaller student: fewer blocks by preset, list or budget, then fewer channels."""

    old_keys = renamed(
        budget="budget_share",
        width="width_share",
        first="first_steps",
        joint="joint_weight",
        features="features_weight",
    )

    preset: str = ""
    """A published smaller network: bk-sdm-base, bk-sdm-small, bk-sdm-tiny, koala-1b, koala-700m,
    ssd-1b or vega; empty for none."""
    remove: tuple[str, ...] = ()
    """Units to remove, by their names, such as stages.0.layers.1 or mid_block in a U-Net, and
    transformer_blocks.3 in a transformer."""
    budget_share: float = Field(1.0, gt=0, le=1)
    """Share of the parameters to keep; the criterion (the change of the output on the student's
    own steps) chooses the blocks to remove."""
    width_share: float = Field(1.0, gt=0, le=1)
    """Share of the channels to keep in the blocks that remain."""
    variance: bool = False
    """Whether a transformer's hidden states keep their variance after removed blocks."""
    attention_stride: int = Field(1, ge=1, le=LARGEST)
    """Stride s along height and width of the tokens that give keys and values of self-attention,
    whose products then cost 1 / s^2; queries come from all tokens. 1 takes all of them. For the
    U-Nets of families stable_diffusion and sdxl."""
    attention_stages: int = Field(1, ge=1)
    """Number of the U-Net's outermost stages whose self-attention has this stride."""
    elastic: dict[str, float] = Field(default_factory=dict)
    """Additional depths of one student by name, each the share of the parameters that the blocks
    chosen by the criterion may keep. They share one set of weights, are trained in turns, and one
    is chosen at export."""
    first_steps: int = Field(0, ge=0)
    """Steps in which the smaller student, or each depth of an elastic one, learns the teacher's
    outputs and features before the method begins: size first, then steps."""
    joint_weight: float = Field(0.0, ge=0)
    """Weight of the feature term that is added to the method's own loss after these first steps;
    with first_steps=0, size and steps are learned jointly."""
    features_weight: float = Field(1.0, ge=0)
    """Weight of the feature term during the first steps."""
    taps: str | tuple[str, ...] = "blocks"
    """Modules whose features are compared: a key of `objectives.shrink.TAPS`, or module paths in
    the student."""

    @model_validator(mode="after")
    def _one_way(self) -> Compress:
        ways = [bool(self.preset), bool(self.remove), self.budget_share < 1]
        if sum(ways) > 1:
            raise ValueError("name one of preset, remove and budget")
        if self.elastic and (self.active or self.joint_weight):
            raise ValueError(
                "elastic depths are those of a whole student; "
                "leave preset, remove, budget, width and joint out"
            )
        if self.variance and not self.active:
            raise ValueError("variance: nothing goes; name a preset, blocks to remove or a budget")
        if self.attention_stages > 1 and self.attention_stride == 1:
            raise ValueError(
                f"attention_stages={self.attention_stages}: attention_stride=1 means no stride in "
                f"any stage; set compress.attention_stride to a number from 2 to {LARGEST}, or "
                "leave attention_stages out"
            )
        for name, share in self.elastic.items():
            if not 0 < share < 1:
                raise ValueError(
                    f"elastic: {name}={share:g}: a share above 0 and below 1 expected"
                )
            if not name.isidentifier() or name == "whole":
                raise ValueError(
                    f"elastic: {name!r} is no name of letters, digits and _ other than whole"
                )
        return self

    @property
    def active(self) -> bool:
        """Whether the section removes anything."""
        return bool(self.preset or self.remove) or self.budget_share < 1 or self.width_share < 1

    @property
    def token_stride(self) -> TokenStride | None:
        """Stride of the student's self-attention; None where all tokens are read."""
        if self.attention_stride == 1:
            return None
        return TokenStride(stride=self.attention_stride, stages=self.attention_stages)
