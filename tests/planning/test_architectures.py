import json

import pytest

from edgedistill.planning.architectures import architecture, shipped
from edgedistill.planning.inputs import inputs_of

PARAMETERS = {
    "runwayml/stable-diffusion-v1-5": 859_520_964,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 859_520_964,
    "stabilityai/stable-diffusion-2-1": 865_910_724,
    "stabilityai/stable-diffusion-xl-base-1.0": 2_567_463_684,
    "stabilityai/stable-diffusion-3-medium-diffusers": 2_028_328_000,
    "black-forest-labs/FLUX.1-dev": 11_901_408_320,
    "PixArt-alpha/PixArt-XL-2-512x512": 610_856_096,
    "PixArt-alpha/PixArt-XL-2-1024-MS": 611_349_152,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": 610_856_096,
    "Efficient-Large-Model/Sana_600M_512px_diffusers": 591_747_872,
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": 1_604_462_752,
    # 675 million and, in diffusers' layout, embeddings of time and class in every block.
    "facebook/DiT-XL-2-256": 749_826_464,
    "google/ddpm-cifar10-32": 35_746_307,
    # In EDM's own layout 55_733_891.
    "NVlabs/edm-cifar10-32x32-uncond-vp": 55_738_627,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 1_418_996_800,
}

BESIDE = {
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "black-forest-labs/FLUX.1-dev": {
        "vae": 83_819_683,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
    },
    "Efficient-Large-Model/Sana_600M_512px_diffusers": {
        "vae": 312_250_275,
        "text_encoder": 2_614_341_888,
    },
}


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name):
    networks = architecture(name)
    core, _ = inputs_of(networks)
    assert count(networks.pop(core)) == PARAMETERS[name]
    if name in BESIDE:
        assert {key: count(net) for key, net in networks.items()} == BESIDE[name]


def test_every_shipped_architecture_is_counted():
    assert set(shipped()) <= set(PARAMETERS)


def test_nothing_is_allocated():
    networks = architecture("stabilityai/stable-diffusion-xl-base-1.0")
    assert {p.device.type for net in networks.values() for p in net.parameters()} == {"meta"}


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ValueError, match="did you mean 'stabilityai/stable-diffusion-2-1'"):
        architecture("stabilityai/stable-diffusion-2-2")


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        architecture(str(tmp_path))


def folder(path, kind, config):
    (path / "unet").mkdir()
    (path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", kind]}))
    (path / "unet/config.json").write_text(json.dumps(config))
    return str(path)


def test_a_class_the_library_has_not_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no UNet5DModel"):
        architecture(folder(tmp_path, "UNet5DModel", {}))


def test_a_class_that_is_no_network_is_not_built(tmp_path):
    with pytest.raises(ValueError, match="has no DDIMScheduler"):
        architecture(folder(tmp_path, "DDIMScheduler", {}))


def test_a_wrong_config_names_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"unet/config\.json: no UNet2DModel can be built"):
        architecture(folder(tmp_path, "UNet2DModel", {"block_out_channels": [32]}))


def test_a_pipeline_without_a_denoiser_says_so():
    with pytest.raises(ValueError, match="no denoiser among vae"):
        inputs_of({"vae": architecture("emoji")["vae"]})


def test_an_unknown_denoiser_lists_the_known_kinds():
    with pytest.raises(ValueError, match="unknown kind of denoiser 'AutoencoderKL'"):
        inputs_of({"unet": architecture("emoji")["vae"]})
