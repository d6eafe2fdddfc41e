"""What a portrait shows, how each of it is drawn, and which combinations are never trained.

The drawings are Open Peeps by Pablo Stanley (CC0 1.0) in the npm package @dicebear/open-peeps.
Several drawings share a name, so a caption leaves open which of them it means.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELD_OUT = Path(__file__).with_name("held_out.json")

Portrait = dict[str, str]
"""The value of every attribute."""


@dataclass(frozen=True)
class Value:
    """One value of an attribute: its drawings (or colours) and how often it is drawn."""

    drawings: tuple[str, ...] = ()
    weight: float = 1.0


def _values(weight: float = 1.0, **drawings: str) -> dict[str, Value]:
    return {
        name.replace("_", " "): Value(tuple(names.split()), weight)
        for name, names in drawings.items()
    }


COLOURED = _values(
    2.0,
    bob="bangs",
    bun="grayBun",
    wavy_hair="grayMedium",
    combed_hair="grayShort",
    quiff="short4",
    curls="mediumBangs2",
    mohawk="mohawk",
    spikes="mohawk2",
)
"""Hair that is drawn in a colour."""
BLACK = _values(
    afro="afro longAfro",
    dreadlocks="dreads1 dreads2",
    bantu_knots="bantuKnots",
    space_buns="buns",
    flat_top="flatTop flatTopLong",
    long_hair="long longBangs mediumStraight",
    long_curls="longCurly",
    pompadour="pomp",
    buzz_cut="short1 short2",
    twists="twists twists2",
)
"""Hair that the artist drew in black only."""
COVERED = _values(
    bald="noHair1 noHair2",
    beanie="hatBeanie",
    hat="hatHip",
    hijab="hijab",
    turban="turban",
    headscarf="bun",
)
"""Heads whose hair has no colour to speak of."""

ATTRIBUTES: dict[str, dict[str, Value]] = {
    "hair": {**COLOURED, **BLACK, **COVERED},
    "hair colour": _values(
        black="2c1b18",
        brown="8a5a3c",
        blond="f2cf63",
        red="c93305",
        pink="f59797",
        blue="5b7fd0",
        gray="d9d4d4",
    ),
    "expression": _values(
        smiling="smile",
        grinning="smileBig",
        laughing="smileLOL",
        amazed="awe",
        raging="rage",
        loving="lovingGrin1",
        cyclops="cyclops",
        monster="monster",
        calm="calm",
        serious="serious",
        talking="explaining",
        angry="veryAngry",
    ),
    "accessory": {
        "none": Value(weight=4),
        **_values(glasses="glasses2 glasses3 glasses5"),
        **_values(sunglasses="sunglasses sunglasses2", eyepatch="eyepatch", mask="medicalMask"),
    },
    "beard": {
        "none": Value(weight=4),
        **_values(
            beard="full2 full3",
            goatee="goatee2",
            moustache="moustache2 moustache3 moustache5",
            chinstrap="chin",
        ),
    },
    "skin": _values(light="ffdbb4", tan="e0a36c", brown="ae5d29", dark="6b4a36", green="9ccc7a"),
    "clothing": _values(
        red="e0524d",
        orange="f39a3d",
        yellow="fdea6b",
        green="63b86a",
        blue="6f92e6",
        purple="9d6fd6",
        pink="f4a3cf",
        white="ffffff",
    ),
    "facing": _values(left="true", right="false"),
}
"""Every attribute with its values, in the order a classifier has them."""
ATTRIBUTES["hair colour"]["covered"] = Value()

_WITH_EYES_COVERED = {"smiling", "grinning", "raging", "talking", "angry"}
_WITH_MOUTH_COVERED = {
    *("smiling", "amazed", "raging", "loving", "cyclops", "monster", "calm", "serious"),
}
"""Expressions that can still be told when the other half of the face is hidden."""


def held_out() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs ((attribute, value), (attribute, value)) that no trained portrait shows together."""
    pairs = json.loads(HELD_OUT.read_text())
    return [((a, b), (c, d)) for (a, b), (c, d) in pairs]


def drawable(portrait: Portrait) -> bool:
    """Whether nothing hides what the expression is."""
    expression, mouth = portrait["expression"], portrait["beard"] not in ("none", "chinstrap")
    eyes, mask = (
        portrait["accessory"] in ("sunglasses", "eyepatch"),
        portrait["accessory"] == "mask",
    )
    if (eyes and mouth) or (mask and portrait["beard"] != "none"):
        return False
    if portrait["accessory"] == "glasses" and expression in ("monster", "cyclops"):
        return False
    return (not eyes or expression in _WITH_EYES_COVERED) and (
        not (mouth or mask) or expression in _WITH_MOUTH_COVERED
    )


def shows_held_out(portrait: Portrait) -> bool:
    """Whether a held-out pair is in it."""
    return any(portrait[a] == b and portrait[c] == d for (a, b), (c, d) in held_out_pairs)


held_out_pairs = held_out()


def draw(rng: random.Random, wanted: Portrait | None = None, trained: bool = True) -> Portrait:
    """A portrait at random.

    Args:
        rng: Its source of chance.
        wanted: Values that it must have.
        trained: Whether held-out pairs are left out.

    Raises:
        ValueError: Nothing that can be drawn has these values.
    """
    for _ in range(10_000):
        portrait = {
            name: rng.choices(list(values), [v.weight for v in values.values()])[0]
            for name, values in ATTRIBUTES.items()
        }
        portrait.update(wanted or {})
        _settle_colour(portrait, rng, wanted or {})
        if drawable(portrait) and not (trained and shows_held_out(portrait)):
            return portrait
    raise ValueError(f"no portrait with {wanted} can be drawn; choose other values")


def _settle_colour(portrait: Portrait, rng: random.Random, wanted: Portrait) -> None:
    """Give hair a colour that it is drawn in."""
    if portrait["hair"] in BLACK:
        portrait["hair colour"] = "black"
    elif portrait["hair"] in COVERED:
        portrait["hair colour"] = "covered"
    elif portrait["hair colour"] == "covered":
        portrait["hair colour"] = rng.choice([*ATTRIBUTES["hair colour"]][:-1])
    if "hair colour" in wanted and portrait["hair colour"] != wanted["hair colour"]:
        portrait["hair"] = rng.choice([*COLOURED])
        portrait["hair colour"] = wanted["hair colour"]


def options(portrait: Portrait, rng: random.Random) -> dict[str, Any]:
    """DiceBear's options for a portrait; `rng` chooses among drawings of one name."""

    def pick(attribute: str) -> str:
        return rng.choice(ATTRIBUTES[attribute][portrait[attribute]].drawings or ("",))

    accessory, beard = pick("accessory"), pick("beard")
    masked = portrait["accessory"] == "mask"
    return {
        "head": [pick("hair")],
        "headContrastColor": [pick("hair colour") or "2c1b18"],
        "face": [pick("expression")],
        "skinColor": [pick("skin")],
        "clothingColor": [pick("clothing")],
        "flip": pick("facing") == "true",
        "accessories": [] if masked or not accessory else [accessory],
        "accessoriesProbability": 0 if masked or not accessory else 100,
        "mask": [accessory] if masked else [],
        "maskProbability": 100 if masked else 0,
        "facialHair": [beard] if beard else [],
        "facialHairProbability": 100 if beard else 0,
    }


def numbered(seed: int, number: int) -> random.Random:
    """The source of chance for one portrait, the same whatever was drawn before it."""
    return random.Random(f"portraits {seed} {number}")
