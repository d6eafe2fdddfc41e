"""Portraits: fixed by seed and number, without held-out pairs; captions that can be read."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from portraits import attributes, captions, classifier, data, measure
from portraits.attributes import ATTRIBUTES, COLOURED

NPM = Path(data.HERE / "output" / "npm")


def named(portrait, names):
    """What a caption that names these attributes says."""
    says = {name: portrait[name] for name in names}
    if "hair" in names and portrait["hair"] not in COLOURED:
        says["hair colour"] = portrait["hair colour"]
    elif portrait["hair colour"] == "covered":
        says.pop("hair colour", None)
    return says


def test_a_portrait_depends_on_its_seed_and_number_alone():
    forwards = [data._line(0, n) for n in range(20)]
    assert forwards == [data._line(0, n) for n in reversed(range(20))][::-1]
    assert len(set(forwards)) == 20
    assert forwards != [data._line(1, n) for n in range(20)]


def test_held_out_pairs_are_never_in_training_but_in_the_tests():
    trained = [data.portrait(data.TRAIN, n) for n in range(3000)]
    assert not any(attributes.shows_held_out(p) for p in trained)
    others = [data.portrait(data.TEST, n) for n in range(500)]
    assert any(attributes.shows_held_out(p) for p in others)


@pytest.mark.parametrize("pair", attributes.held_out(), ids=str)
def test_a_held_out_pair_can_be_drawn_and_its_values_are_trained_alone(pair):
    found = attributes.draw(random.Random(0), dict(pair), trained=False)
    assert dict(pair).items() <= found.items()
    with pytest.raises(ValueError, match="can be drawn; choose other values"):
        attributes.draw(random.Random(0), dict(pair), trained=True)
    for name, value in pair:
        assert attributes.draw(random.Random(0), {name: value})[name] == value


def test_every_value_is_drawn_in_training():
    trained = [data.portrait(data.TRAIN, n) for n in range(3000)]
    for name, values in ATTRIBUTES.items():
        assert {p[name] for p in trained} == set(values)


def test_a_caption_says_what_it_names_and_nothing_else():
    for number in range(1500):
        rng = attributes.numbered(5, number)
        portrait = attributes.draw(rng, trained=False)
        names = captions._chosen(portrait, rng)
        text = captions.write(portrait, rng, names)
        assert captions.read(text) == named(portrait, names), text


def test_a_wanted_value_is_kept_or_refused():
    for name, values in ATTRIBUTES.items():
        for value in values:
            assert attributes.draw(random.Random(1), {name: value})[name] == value
    with pytest.raises(ValueError, match="no portrait with"):
        attributes.draw(random.Random(0), {"beard": "moustache", "accessory": "sunglasses"})


def test_a_classifier_has_a_head_for_every_value():
    judge = classifier.Classifier(classifier.Config(channels=(8, 8, 8, 8), features=8))
    portraits = [data.portrait(data.TEST, n) for n in range(6)]
    asked = classifier.labels(portraits)
    assert asked.shape == (6, len(ATTRIBUTES))
    guesses = judge(torch.zeros(2, 3, 64, 64))
    assert [g.shape[1] for g in guesses] == [len(v) for v in ATTRIBUTES.values()]


@pytest.mark.skipif(not (NPM / "node_modules").exists(), reason="needs `train.py --only render`")
def test_a_picture_is_the_same_whenever_it_is_rendered():
    lines = [data._line(0, n) for n in range(6)]
    first, second = data.render(iter(lines), NPM), data.render(iter(lines[3:]), NPM)
    assert first.shape == (6, 64, 64, 3)
    assert np.array_equal(first[3:], second)
    ground = np.array([0xF4, 0xF1, 0xEA])
    assert np.array_equal(first[:, 40, 0], np.tile(ground, (6, 1)))
    assert len({picture.tobytes() for picture in first}) == 6


def test_open_captions_name_two_attributes_and_four_portraits_answer_each():
    portraits, texts = measure.asked_openly(400)
    for number, (portrait, text) in enumerate(zip(portraits, texts, strict=True)):
        says = captions.read(text)
        assert says.items() <= portrait.items()
        assert len({*says} - {"hair colour"}) == 2
        assert text == texts[number // 4 * 4]
    assert len({tuple(p.items()) for p in portraits}) > 390
    asked_of = {name for text in texts for name in captions.read(text)}
    assert asked_of == set(ATTRIBUTES)


def test_a_picture_is_judged_by_what_its_caption_names(monkeypatch):
    texts = ["a person with a goatee, angry", "portrait, blue shirt"]
    first = {name: next(iter(values)) for name, values in ATTRIBUTES.items()}
    shown = [first | {"beard": "goatee", "expression": "calm"}, first | {"clothing": "blue"}]
    monkeypatch.setattr(classifier, "predict", lambda judge, pictures: classifier.labels(shown))
    right = measure.right(None, torch.zeros(2, 3, 64, 64), texts)
    names = [*ATTRIBUTES]
    assert right.isnan().sum(1).tolist() == [len(names) - 2, len(names) - 1]
    assert right[0, names.index("beard")] == 1
    assert right[0, names.index("expression")] == 0
    assert right[1, names.index("clothing")] == 1
    agreed = measure.agreement(None, torch.zeros(2, 3, 64, 64), texts)
    assert agreed["attributes"] == pytest.approx(2 / 3)
    assert agreed["all at once"] == 0.5
