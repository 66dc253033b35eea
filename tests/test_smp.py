from dataclasses import replace
from functools import partial

import pytest
import segmentation_models_pytorch as smp
import torch

from segmv3.models.backbones import Tap
from segmv3.models.mobilenetv3 import MobileNetV3Backbone
from segmv3.models.smp import ENCODERS, register
from segmv3.models.zoo import create_model

_UNET = {"decoder_channels": (32, 16, 16, 8, 8)}
_MODELS = {  # with thin decoders: it is the encoder that is tested
    "unet": partial(smp.Unet, **_UNET),
    "unet at output stride 16": partial(smp.Unet, output_stride=16, **_UNET),
    "fpn": partial(smp.FPN, decoder_pyramid_channels=32, decoder_segmentation_channels=32),
    "deeplabv3plus": partial(smp.DeepLabV3Plus, decoder_channels=32),
    "deeplabv3plus at output stride 8": partial(smp.DeepLabV3Plus, decoder_channels=32, encoder_output_stride=8),
    "manet": partial(smp.MAnet, **_UNET),
    "segformer": partial(smp.Segformer, decoder_segmentation_channels=32),
}


@pytest.fixture(autouse=True)
def _registered():
    """Names known, and one thread: these maps are small, and threads that share a busy core take ten times as long."""
    register()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("model", _MODELS)
@pytest.mark.parametrize("name", ENCODERS)
def test_its_decoders_take_our_encoders(name, model):
    net = _MODELS[model](name, encoder_weights=None, classes=5)
    net(torch.randn(2, 3, 64, 96)).square().mean().backward()
    for parameter, values in net.encoder.named_parameters():
        assert values.grad is not None and values.grad.any(), parameter
    with torch.inference_mode():
        for size in (64, 96), (256, 256):
            assert net.eval()(torch.zeros(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ENCODERS)
def test_features_are_the_maps_of_our_backbone(name, stride):
    backbone = MobileNetV3Backbone(replace(ENCODERS[name], output_stride=stride), tuple(map(Tap, (2, 4, 8, 16))))
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = [image, *backbone.eval()(image)]
        for depth in range(1, 6):
            encoder = smp.encoders.get_encoder(name, depth=depth, output_stride=stride).eval()
            missing, _ = encoder.backbone.load_state_dict(backbone.state_dict(), strict=depth == 5)
            features = encoder(image)
            assert not missing and len(features) == depth + 1
            for found, wanted in zip(features, expected, strict=False):
                torch.testing.assert_close(found, wanted, rtol=0, atol=0)
            assert list(encoder.out_channels) == [map_.shape[1] for map_ in features]
            assert encoder.output_stride == 64 // features[-1].shape[2]


@pytest.mark.parametrize("size", ["large", "small"])
def test_weights_of_the_flagship_load_as_they_are(size):
    ours = create_model(f"lraspp_{size}_d8").eval()
    image = torch.randint(0, 256, (1, 3, 64, 96)).float()
    net = _MODELS["deeplabv3plus"](f"segmv3_{size}_d8", encoder_weights=None).eval()
    net.encoder.backbone.load_state_dict(ours.backbone.state_dict())
    with torch.inference_mode():
        found, expected = net.encoder(ours.normalize(image))[-1], ours.backbone(ours.normalize(image))[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("name", ["segmv3_large", "segmv3_small_d8"])
def test_shallow_encoders_train_all_they_have(name, depth):
    """So that data-parallel training finds no parameter without a gradient."""
    nets = [
        smp.Unet(name, encoder_depth=depth, encoder_weights=None, decoder_channels=(32, 16, 16, 8)[:depth]),
        _MODELS["deeplabv3plus"](name, encoder_depth=depth, encoder_weights=None),
    ]
    if depth == 4:  # smp's FPN wants four maps and upsamples by 4 whatever the depth
        nets.append(_MODELS["fpn"](name, encoder_depth=4, encoder_weights=None, upsampling=2))
    for net in nets:
        mask = net(torch.randn(2, 3, 64, 96))
        assert mask.shape[2:] == (64, 96)
        mask.square().mean().backward()
        assert all(values.grad is not None for values in net.encoder.parameters())


def test_other_input_channels_and_odd_sizes():
    for channels in (1, 4):
        net = _MODELS["unet"]("segmv3_small_d8", encoder_weights=None, in_channels=channels).eval()
        assert net.encoder.out_channels[0] == channels
        assert net(torch.zeros(1, channels, 65, 97)).shape == (1, 1, 65, 97)


def test_a_saved_model_comes_back(tmp_path):
    net = _MODELS["fpn"]("segmv3_small_d8", encoder_weights=None).eval()
    net.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(smp.from_pretrained(tmp_path).eval()(image), net(image))


def test_registering_twice_and_what_is_refused():
    names = smp.encoders.get_encoder_names()
    register()
    assert smp.encoders.get_encoder_names() == names
    with pytest.raises(KeyError, match="Wrong encoder name `segmv3_huge`"):
        smp.Unet("segmv3_huge", encoder_weights=None)
    with pytest.raises(KeyError, match="Wrong pretrained weights `imagenet` for encoder `segmv3_small`"):
        smp.Unet("segmv3_small")
    for settings in ({"depth": 0}, {"depth": 6}, {"output_stride": 4}):
        with pytest.raises(ValueError, match="should be"):
            smp.encoders.get_encoder("segmv3_small", **settings)
    with pytest.raises(ValueError, match="Output stride is 32"):
        smp.encoders.get_encoder("segmv3_small").make_dilated(16)
