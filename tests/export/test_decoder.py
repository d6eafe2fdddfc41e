"""Bundles with another decoder than the student's own."""

import pytest
from diffusers import AutoencoderTiny

from edgedistill_export import export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_runtime import Pipeline
from edgedistill_runtime.manifest import Manifest


@pytest.fixture
def folder(tmp_path):
    """A decoder dir with random weights, for 4x4x4 latents and 8x8 pictures."""
    sizes = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    tiny = AutoencoderTiny(
        latent_channels=4, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 0), **sizes
    )
    tiny.save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def test_a_bundle_carries_the_decoder_named(student_dir, folder, tmp_path):
    settings = ExportSettings(decoder=folder)
    assert settings.suffix == f"-decoder-{tmp_path.name}"
    assert ExportSettings(decoder=tmp_path).suffix == settings.suffix
    assert (
        ExportSettings(decoder=tmp_path / "runs/emoji-decoder/decoder").suffix == "-emoji-decoder"
    )
    plain = export_student(student_dir, out=tmp_path / "plain")
    place = export_student(student_dir, out=tmp_path / "small", settings=settings)
    assert Manifest.read(place).parity.graphs["decoder"].worst > 60
    found, other = Pipeline.load(place)("red", seed=1), Pipeline.load(plain)("red", seed=1)
    assert abs(found.samples - other.samples).max() < 1e-5
    assert (found.images != other.images).any()
    # Its run dir stands for it.
    again = export_student(student_dir, out=place, settings=ExportSettings(decoder=tmp_path))
    assert Manifest.read(again).made_from == Manifest.read(place).made_from
    # A changed decoder is another bundle.
    made = Manifest.read(place).made_from
    weights = AutoencoderTiny.from_pretrained(folder)
    weights.decoder.layers[0].bias.data += 0.1
    weights.save_pretrained(folder)
    export_student(student_dir, out=place, settings=settings)
    assert Manifest.read(place).made_from != made


def test_a_decoder_of_another_size_is_refused(student_dir, tmp_path):
    sizes = {f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")}
    blocks = {f"num_{side}_blocks": (1, 1, 1) for side in ("encoder", "decoder")}
    AutoencoderTiny(latent_channels=4, **blocks, **sizes).save_pretrained(tmp_path / "big")
    with pytest.raises(ValueError, match=r"big' makes 16x16 of latents of 4x4, .* own 8x8"):
        export_student(
            student_dir, out=tmp_path / "b", settings=ExportSettings(decoder=tmp_path / "big")
        )
    assert not (tmp_path / "b").exists()
