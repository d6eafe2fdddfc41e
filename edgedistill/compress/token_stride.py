"""Self-attention whose keys and values come from every s-th row and column of tokens.

Smith et al. 2024, "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images"
(arXiv 2402.13573): tokens beside each other are much alike, so that fewer of them do as keys and
values. Queries are whole. With the tokens h (N, H W, C) of a transformer in a U-Net:

    q = to_q h,   k = to_k D h,   v = to_v D h,   output = softmax(q k^T / sqrt(d)) v

D takes every s-th row and column of the grid (H, W), the first included: the paper's downsampling
by the nearest neighbour. Both products cost 1 / s^2, and the output has the shape of h.

The weights, their names and the network's config stay as they are. The height and width of the
grid go from the transformer to its blocks as an argument of each call, so that a block that
gradient checkpointing runs again reads those of its own call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from edgedistill.common.files import read_json

__all__ = [
    "TokenStride",
    "check_stride",
    "copy_stride",
    "restore_stride",
    "self_attentions",
    "stride_attention",
    "stride_of",
]

KEY = "attention"
"""Key of student.json."""

MARK = "token_stride"
"""Attribute of a network (a `TokenStride`) and of its attentions (their stride)."""

GRID = "token_grid"
"""Name of the argument that carries (H, W) from a transformer to its blocks' attention."""

LARGEST = 8
"""Largest stride."""


class TokenStride(BaseModel):
    """The tokens that give keys and values, and where.

    Attributes:
        stride: s: every s-th row and column.
        stages: Number of the U-Net's outermost stages, each a down block and its up block.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    stride: int = Field(ge=2, le=LARGEST)
    stages: int = Field(1, ge=1)

    @property
    def places(self) -> str:
        """The stages in words."""
        return f"stages 0 to {self.stages - 1}" if self.stages > 1 else "stage 0"

    def attentions(self, net: nn.Module) -> list[nn.Module]:
        """Return the self-attentions of a U-Net that have this stride, or can get it."""
        stages = range(min(self.stages, len(getattr(net, "down_blocks", ()))))
        return [attn for stage in stages for attn in self_attentions(net, stage)]


def stride_of(net: nn.Module) -> TokenStride | None:
    """Return what `stride_attention` did to a network; None for a network as it was built."""
    found: TokenStride | None = vars(net).get(MARK)
    return found


def self_attentions(net: nn.Module, stage: int) -> list[nn.Module]:
    """Return the self-attentions of a U-Net's transformers at a stage; 0 is the outermost."""
    return [attn for transformer in _transformers(net, stage) for attn in _own(transformer)]


def stride_attention(net: nn.Module, given: TokenStride) -> None:
    """Let self-attention read fewer tokens from now on; copies of the network do so too.

    Args:
        net: A UNet2DConditionModel. It is changed in place, and may be without weights.
        given: The stride and its stages. Stages without self-attention, or beyond the last one,
            are left as they are.

    Raises:
        ValueError: If these stages have no self-attention, or one with another stride already.
    """
    known = stride_of(net)
    if known == given:
        return
    if known is not None:
        raise ValueError(f"the attention has a stride of {known.stride} in {known.places} already")
    found = given.attentions(net)
    if not found:
        raise ValueError(f"no self-attention in {given.places}")
    setattr(net, MARK, given)
    for attn in found:
        # A plain number, by which `plan` tells such a block from others.
        setattr(attn, MARK, given.stride)
    for transformer in net.modules():
        blocks = getattr(transformer, "transformer_blocks", ())
        inside = [attn for block in blocks for attn in (block.attn1, block.attn2) if attn]
        if not any(attn in found for attn in inside):
            continue
        transformer.register_forward_pre_hook(_tell_grid, with_kwargs=True)
        for attn in inside:
            hook = _read_fewer if attn in found else _read_all
            attn.register_forward_pre_hook(hook, with_kwargs=True)


def copy_stride(old: nn.Module, new: nn.Module) -> None:
    """Let a network made from `old`'s blocks read the tokens that `old` reads."""
    given = stride_of(old)
    if given and given.attentions(new):
        stride_attention(new, given)


def restore_stride(net: nn.Module, file: Path) -> None:
    """Give a student's U-Net the stride that its student.json says, if it says one.

    Args:
        net: The network, as its config makes it.
        file: The student.json.

    Raises:
        ValueError: If the file is damaged, or says what the network cannot do; names it.
    """
    given = read_json(file).get(KEY)
    if given is None:
        return
    try:
        stride_attention(net, TokenStride.model_validate(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (KEY, *first["loc"])))
        raise ValueError(f"{file}: {place}: {first['msg']}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {KEY}: {error}") from None


def check_stride(net: nn.Module, given: TokenStride) -> None:
    """Raise a ValueError if a recipe's stride does not fit a U-Net; names key and choices."""
    said = f"compress.attention_stride={given.stride}"
    known = stride_of(net)
    if known not in (None, given):
        assert known is not None
        raise ValueError(
            f"{said}: the student in student.init has a stride of {known.stride} in "
            f"{known.places}, which it keeps; leave the key out"
        )
    sides = _sides(net)
    if given.stages > len(sides):
        raise ValueError(
            f"compress.attention_stages={given.stages}: the U-Net has {len(sides)} stages"
        )
    attentive = [stage for stage in range(len(sides)) if self_attentions(net, stage)]
    inside = [stage for stage in attentive if stage < given.stages]
    if not inside:
        some = ", ".join(map(str, attentive)) or "none"
        choice = f"; choose compress.attention_stages={attentive[0] + 1}" if attentive else ""
        raise ValueError(
            f"{said}: no self-attention in {given.places}; stages with it: {some} (0 is the "
            f"outermost){choice}"
        )
    for stage in inside:
        if any(side % given.stride for side in sides[stage]):
            height, width = sides[stage]
            fits = [
                str(s)
                for s in range(2, LARGEST + 1)
                if not any(side % s for each in inside for side in sides[each])
            ]
            raise ValueError(
                f"{said}: does not divide the {height} x {width} tokens of stage {stage}; "
                f"strides that do: {', '.join(fits) or 'none'}"
            )


def _sides(net: Any) -> list[tuple[int, int]]:
    """Return the height and width of each stage at the network's own size, outermost first."""
    size = net.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    found = []
    for block in net.down_blocks:
        found.append((height, width))
        if block.downsamplers:
            height, width = -(-height // 2), -(-width // 2)
    return found


def _transformers(net: Any, stage: int) -> Iterator[Any]:
    """Yield the transformers (diffusers' Transformer2DModel) of a stage of a U-Net."""
    downs, ups = getattr(net, "down_blocks", ()), getattr(net, "up_blocks", ())
    if stage < len(downs):
        for block in (downs[stage], ups[len(ups) - 1 - stage]):
            found = getattr(block, "attentions", ())
            yield from (each for each in found if hasattr(each, "transformer_blocks"))


def _own(transformer: Any) -> list[Any]:
    """Return the self-attentions of a transformer's blocks."""
    first = [block.attn1 for block in transformer.transformer_blocks]
    return [attn for attn in first if not attn.is_cross_attention]


# --- Hooks --------------------------------------------------------------------------------------
# They are functions of the module, without state of their own, so that deep copies have them too.


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _input(args: tuple[Any, ...], words: Mapping[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else words["hidden_states"]
    return x


def _tell_grid(module: nn.Module, args: tuple[Any, ...], words: dict[str, Any]) -> Arguments:
    """Tell a transformer's blocks the height and width of its input (N, C, H, W)."""
    height, width = _input(args, words).shape[-2:]
    told = {**(words.get("cross_attention_kwargs") or {}), GRID: (height, width)}
    return args, {**words, "cross_attention_kwargs": told}


def _read_fewer(attn: Any, args: tuple[Any, ...], words: dict[str, Any]) -> Arguments:
    """Give a self-attention of tokens (N, H W, C) the tokens that make keys and values."""
    rest = {name: value for name, value in words.items() if name != GRID}
    tokens, step = _input(args, words), getattr(attn, MARK)
    grid = tokens.reshape(-1, *words[GRID], tokens.shape[-1])
    return args, {**rest, "encoder_hidden_states": grid[:, ::step, ::step].flatten(1, 2)}


def _read_all(attn: nn.Module, args: tuple[Any, ...], words: dict[str, Any]) -> Arguments:
    """Drop the grid, which the other attentions do not take."""
    return args, {name: value for name, value in words.items() if name != GRID}
