"""Captions of portraits in plain English, and back: what a caption says can be read from it.

A caption names all attributes or some; what it leaves out is open. `read(write(portrait))` gives
exactly the values that were named.
"""

from __future__ import annotations

import random
import re

from portraits.attributes import ATTRIBUTES, BLACK, COLOURED, COVERED, Portrait

_HAIR = {
    "bob": ("a {} bob",),
    "bun": ("a {} bun", "{} hair in a bun"),
    "wavy hair": ("{} wavy hair", "wavy {} hair"),
    "combed hair": ("combed {} hair", "short {} combed hair"),
    "quiff": ("a {} quiff",),
    "curls": ("{} curls",),
    "mohawk": ("a {} mohawk",),
    "spikes": ("{} spikes", "spiky {} hair"),
    "afro": ("an afro",),
    "dreadlocks": ("dreadlocks",),
    "bantu knots": ("bantu knots",),
    "space buns": ("space buns",),
    "flat top": ("a flat top",),
    "long hair": ("long hair", "long straight hair"),
    "long curls": ("long curls", "long curly hair"),
    "pompadour": ("a pompadour",),
    "buzz cut": ("a buzz cut",),
    "twists": ("twists", "twisted hair"),
    "bald": ("a bald head", "no hair"),
}
_WORN = {"beanie": "a beanie", "hat": "a hat", "hijab": "a hijab", "turban": "a turban"}
_WORN["headscarf"] = "a headscarf"
_EXPRESSION = {
    "smiling": ("smiling", "with a little smile"),
    "grinning": ("grinning", "with a big grin"),
    "laughing": ("laughing", "laughing with tears"),
    "amazed": ("amazed", "wide-eyed"),
    "raging": ("raging", "shouting with rage"),
    "loving": ("in love", "with heart eyes"),
    "cyclops": ("one-eyed", "with a single eye"),
    "monster": ("three-eyed", "with three eyes"),
    "calm": ("calm", "with eyes closed"),
    "serious": ("serious", "looking serious"),
    "talking": ("talking", "speaking"),
    "angry": ("angry", "frowning"),
}
_ACCESSORY = {
    "none": ("no glasses",),
    "glasses": ("glasses", "reading glasses"),
    "sunglasses": ("sunglasses", "dark shades"),
    "eyepatch": ("an eyepatch", "an eye patch"),
    "mask": ("a face mask", "a medical mask"),
}
_BEARD = {
    "none": ("no beard", "a shaven chin"),
    "beard": ("a full beard", "a big beard"),
    "goatee": ("a goatee",),
    "moustache": ("a moustache", "a mustache"),
    "chinstrap": ("a chinstrap", "a thin chinstrap beard"),
}
_GARMENTS = ("shirt", "sweater", "top")
_PEOPLE = ("person", "character", "figure")
_OPENINGS = ("a {}", "a portrait of a {}", "a drawing of a {}", "a cartoon {}", "one {}")
_FACING = ("facing {}", "looking {}", "turned to the {}")
NEEDED = 0.5
"""Share of captions that name everything there is to see."""


def write(portrait: Portrait, rng: random.Random, named: set[str] | None = None) -> str:
    """A caption; `named` are the attributes it must name, else chance decides."""
    chosen = _chosen(portrait, rng) if named is None else named
    has, wears, does = _parts(portrait, chosen, rng)
    if rng.random() < 0.2:
        words = [*has, *wears, *does]
        rng.shuffle(words)
        return ", ".join(["portrait", *words])
    text = rng.choice(_OPENINGS).format(rng.choice(_PEOPLE))
    early = does and rng.random() < 0.4
    if early:
        text += f", {_listed(does)},"
    if has:
        text += f" with {_listed(has)}"
    if wears:
        text += f"{rng.choice([',', ' and', '']) if has else ''} wearing {_listed(wears)}"
    if does and not early:
        text += f", {_listed(does)}"
    return text.rstrip(",")


def _chosen(portrait: Portrait, rng: random.Random) -> set[str]:
    seen = {
        name
        for name in ATTRIBUTES
        if portrait[name] not in ("none", "covered") or rng.random() < 0.1
    }
    if rng.random() < NEEDED:
        return seen
    return set(rng.sample(sorted(seen), rng.randint(1, len(seen))))


def _parts(
    portrait: Portrait, named: set[str], rng: random.Random
) -> tuple[list[str], list[str], list[str]]:
    """What the person has, wears and does, in words."""
    has, wears, does = list[str](), list[str](), list[str]()
    if "hair" in named or "hair colour" in named:
        kind = _hair(portrait, named, rng)
        (wears if portrait["hair"] in _WORN and "hair" in named else has).extend(kind)
    if "skin" in named:
        has.append(f"{portrait['skin']} skin")
    if "beard" in named:
        has.append(rng.choice(_BEARD[portrait["beard"]]))
    if "accessory" in named:
        wears.append(rng.choice(_ACCESSORY[portrait["accessory"]]))
    if "clothing" in named:
        colour = portrait["clothing"]
        wears.append(f"{'an' if colour == 'orange' else 'a'} {colour} {rng.choice(_GARMENTS)}")
    if "expression" in named:
        does.append(rng.choice(_EXPRESSION[portrait["expression"]]))
    if "facing" in named:
        does.append(rng.choice(_FACING).format(portrait["facing"]))
    rng.shuffle(has)
    rng.shuffle(wears)
    return has, wears, does


def _hair(portrait: Portrait, named: set[str], rng: random.Random) -> list[str]:
    kind, colour = portrait["hair"], portrait["hair colour"]
    if kind in _WORN:
        return [_WORN[kind]] if "hair" in named else []
    if "hair" not in named:
        return [f"{colour} hair"] if colour != "covered" else []
    words = rng.choice(_HAIR[kind])
    tint = colour if "hair colour" in named and kind in COLOURED else ""
    return [re.sub(" +", " ", words.format(tint)).strip()]


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _pattern(words: str) -> re.Pattern[str]:
    """A phrase, with or without a colour where it has a place for one."""
    colours = "|".join(c for c in ATTRIBUTES["hair colour"] if c != "covered")
    colour = rf"(?:(?P<colour>{colours}) )?"
    before, _, after = words.partition("{} ")
    return re.compile(rf"\b{before}{colour if '{}' in words else ''}{after}\b")


_PHRASES = {
    "hair": [(k, _pattern(w)) for k, ws in {**_HAIR}.items() for w in ws]
    + [(k, _pattern(w)) for k, w in _WORN.items()],
    "expression": [(k, _pattern(w)) for k, ws in _EXPRESSION.items() for w in ws],
    "accessory": [(k, _pattern(w)) for k, ws in _ACCESSORY.items() for w in ws],
    "beard": [(k, _pattern(w)) for k, ws in _BEARD.items() for w in ws],
}


def read(caption: str) -> Portrait:
    """The attributes that a caption names, with their values.

    The longest phrase that fits wins: `a thin chinstrap beard` is no full beard. Hair that exists
    in one colour only says its colour too.
    """
    found: Portrait = {}
    for attribute, phrases in _PHRASES.items():
        fits = [(m.end() - m.start(), k, m) for k, p in phrases if (m := p.search(caption))]
        if not fits:
            continue
        _, found[attribute], match = max(fits, key=lambda fit: fit[0])
        if attribute == "hair" and match.groupdict().get("colour"):
            found["hair colour"] = match["colour"]
    for attribute, pattern in _COLOURS.items():
        if named := pattern.search(caption):
            found.setdefault(attribute, named[1])
    if found.get("hair") in BLACK:
        found["hair colour"] = "black"
    elif found.get("hair") in COVERED:
        found["hair colour"] = "covered"
    return found


_COLOURS = {
    "hair colour": re.compile(r"\b(black|brown|blond|red|pink|blue|gray) hair\b"),
    "skin": re.compile(rf"\b({'|'.join(ATTRIBUTES['skin'])}) skin\b"),
    "clothing": re.compile(rf"\b({'|'.join(ATTRIBUTES['clothing'])}) (?:{'|'.join(_GARMENTS)})\b"),
    "facing": re.compile(r"\b(?:facing|looking|turned to the) (left|right)\b"),
}
