import json

import numpy as np
import pytest
from transformers import CLIPTokenizer

from edgedistill_runtime import BundleError
from edgedistill_runtime.tokenizer import Tokenizer

LENGTH = 16
TEXTS = [
    "",
    " ",
    "red apple",
    "A Red  APPLE!\n",
    "don't stop, it's 12:30",
    "caf\u00e9 na\u00efve \u4f60\u597d \U0001f34e\u200d\U0001f525",
    "e\u0301 and \u00e9 are one",
    "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627",
    "<|endoftext|> inside <|startoftext|> text",
    "very " * 60,
    "\t\x00\ufffd~",
    "a" * 500,
]


def byte_symbols():
    """The 256 characters that CLIP's byte-level BPE spells bytes with."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    symbols = byte_symbols()
    merges = [
        ("r", "e"),
        ("re", "d</w>"),
        ("a", "p"),
        ("ap", "p"),
        ("l", "e</w>"),
        ("app", "le</w>"),
    ]
    vocab = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(m) for m in merges)]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=merges,
        model_max_length=LENGTH,
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_ids_equal_those_of_transformers(reference, tmp_path):
    path = tmp_path / "tokenizer.json"
    reference.backend_tokenizer.save(str(path))
    ours, mask = Tokenizer(path, LENGTH, reference.pad_token_id)(TEXTS)
    theirs = reference(
        TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    np.testing.assert_array_equal(ours, theirs.input_ids)
    np.testing.assert_array_equal(mask, theirs.attention_mask)
    assert ours.dtype == mask.dtype == np.int64
    assert ours.shape == (len(TEXTS), LENGTH)


def test_a_prompt_it_cannot_read_is_named(tmp_path):
    from tokenizers import Tokenizer as Rules
    from tokenizers.models import WordLevel

    path = tmp_path / "classes.json"
    Rules(WordLevel({"cat": 0, "": 1}, unk_token="[UNK]")).save(str(path))
    classes = Tokenizer(path, 1, 1)
    assert classes(["cat"])[0].tolist() == [[0]]
    said = "cannot read the prompt 'zebra': it is none of the classes that the model knows$"
    with pytest.raises(ValueError, match=said):
        classes(["zebra"])


def test_what_is_left_out_of_a_long_prompt_is_told_once(reference, tmp_path, caplog):
    path = tmp_path / "tokenizer.json"
    reference.backend_tokenizer.save(str(path))
    tokenizer = Tokenizer(path, LENGTH, reference.pad_token_id)
    tokenizer(["red apple"])
    assert not caplog.messages
    tokenizer(["very " * 60, "red " * 90])
    tokenizer(["very " * 60])
    (line,) = caplog.messages
    assert line.startswith("prompt 'very very very")
    assert f"more than the {LENGTH} tokens that the model reads" in line


def test_text_that_is_no_unicode_is_named(reference, tmp_path):
    path = tmp_path / "tokenizer.json"
    reference.backend_tokenizer.save(str(path))
    tokenizer = Tokenizer(path, LENGTH, reference.pad_token_id)
    with pytest.raises(ValueError, match=r"cannot read the prompt .*: it is not valid Unicode"):
        tokenizer(["\udcff\udcfe bad"])


def test_merges_were_used(reference):
    vocab = reference.get_vocab()
    assert vocab["red</w>"] in reference("red apple").input_ids
    assert json.loads(reference.backend_tokenizer.to_str())["model"]["type"] == "BPE"


def test_what_makes_the_library_panic_is_refused_by_name(tmp_path):
    """A template whose special token is nowhere told: no Exception in Python."""
    rules = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"red": 0, "pad": 1}, "unk_token": "pad"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "end", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
    }
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(rules))
    with pytest.raises(BundleError, match=r"tokenizer\.json: ") as error:
        Tokenizer(file, 4, 1)
    assert "\n" not in str(error.value)
    rules["post_processor"]["single"] = [{"Sequence": {"id": "A", "type_id": 0}}]
    file.write_text(json.dumps(rules))
    assert Tokenizer(file, 4, 1)(["red"])[0].tolist() == [[0, 1, 1, 1]]
