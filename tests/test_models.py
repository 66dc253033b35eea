from dataclasses import replace

import pytest
import torch

from segmv3.config import LRASPP, MobileNetV3, Model
from segmv3.errors import ModelError
from segmv3.models.backbones import Tap
from segmv3.models.count import describe_nets, gmacs, parameters
from segmv3.models.layers import global_pool, window_pool
from segmv3.models.mobilenetv3 import MobileNetV3Backbone, exact_widths, joined, layout
from segmv3.models.nets import net_from_dict
from segmv3.models.zoo import NETS, create_model, net_name, state_shapes
from segmv3.settings import to_dict

_SMALL = MobileNetV3(size="small", tail="rf2", output_stride=16)


@pytest.mark.parametrize(
    ("name", "count", "least", "most"),
    [("lraspp_large_d8", 1_507_198, 9.3, 9.8), ("lraspp_small_d8", 468_830, 2.6, 2.9)],
)
def test_named_nets_have_the_published_size(name, count, least, most):
    """Paper, table 7: 1.51 M and 0.47 M parameters; 9.74 and 2.90 B multiply-adds at 1025x2049."""
    facts = {net.name: net for net in describe_nets()}[name]
    assert facts.parameters == count
    assert least <= facts.gmacs <= most
    with torch.device("meta"):
        model = create_model(name)
    assert gmacs(model, (512, 1024)) == pytest.approx(facts.gmacs / 4, rel=0.01)  # the gate is a constant


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize("tail", ["full", "rf2"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_features_have_the_promised_shapes(size, tail, stride):
    net = MobileNetV3(size=size, tail=tail, output_stride=stride)
    backbone = MobileNetV3Backbone(net, (Tap(8, "expanded"),)).eval()
    low, deep = backbone(torch.zeros(1, 3, 64, 96))
    assert low.shape == (1, {"large": 120, "small": 88}[size], 8, 12)
    width = {"large": 960, "small": 576}[size] // (2 if tail == "rf2" else 1)
    assert deep.shape == (1, width, 64 // stride, 96 // stride)
    assert backbone.channels == (low.shape[1], deep.shape[1])


def test_lost_strides_become_dilation_from_the_same_block_on():
    """mmsegmentation's D8 layout: 2 from the first 80-channel block on, 4 from the first 160-channel block on."""
    full, large, small = (
        MobileNetV3(output_stride=8),
        MobileNetV3(tail="rf2", output_stride=16),
        MobileNetV3(size="small", tail="rf2", output_stride=32),
    )
    assert [b.dilation for b in layout(full)] == [1] * 6 + [2] * 6 + [4] * 3
    assert [b.dilation for b in layout(replace(full, dilate_first=False))] == [1] * 7 + [2] * 6 + [4] * 2
    assert [b.dilation for b in layout(large)] == [1] * 12 + [2] * 3
    assert [b.dilation for b in layout(small)] == [1] * 11
    assert [b.out for b in layout(large)][-3:] == [80] * 3
    assert [b.expanded for b in layout(large)][-3:] == [336, 480, 480]
    assert [b.expanded for b in layout(small)][-3:] == [144, 288, 288]
    assert [b.expanded for b in layout(replace(large, tail="torchvision"))][-3:] == [672, 480, 480]
    assert [b.expanded for b in layout(replace(small, tail="torchvision"))][-3:] == [288, 288, 288]


def test_the_full_backbones_hold_what_torchvision_holds():
    from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

    for size, theirs in (("large", mobilenet_v3_large), ("small", mobilenet_v3_small)):
        assert parameters(MobileNetV3Backbone(MobileNetV3(size=size))) == parameters(theirs().features)


@pytest.mark.parametrize("size", ["large", "small"])
def test_the_full_backbone_computes_what_torchvision_computes(size):
    import torchvision.models as tv

    theirs = getattr(tv, f"mobilenet_v3_{size}")().features.eval()
    ours = MobileNetV3Backbone(MobileNetV3(size=size)).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for p, q in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert p.shape == q.shape
            if p.is_floating_point():
                q.copy_(torch.rand(q.shape, generator=generator) * 0.2 + 0.01)
                p.copy_(q)
        image = torch.randn(1, 3, 65, 97, generator=generator)
        expected, found = theirs(image), ours(image)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 65), (64, 128)])
@pytest.mark.parametrize("pool", ["global", "window"])
def test_any_size_gives_logits_of_that_size(shape, pool):
    model = create_model(Model(backbone=_SMALL, head=LRASPP(pool=pool)), num_classes=5).eval()
    image = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    with torch.inference_mode():
        logits = model(image)
        assert logits.shape == (2, 5, *shape) and logits.isfinite().all()
        assert model.low_logits(image).shape[2:] == (-(-shape[0] // 8), -(-shape[1] // 8))
        assert torch.equal(logits, model(image.float()))  # uint8 and float 0..255 mean the same


def test_every_parameter_gets_a_gradient():
    model = create_model("lraspp_small_d8", 4).train()
    model(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_window_pool_shrinks_to_the_map():
    x = torch.rand(1, 2, 10, 30)
    assert torch.allclose(window_pool(x, window=(49, 49), stride=(16, 20)), global_pool(x), atol=1e-6)
    assert window_pool(torch.rand(1, 2, 64, 128), window=(49, 49), stride=(16, 20)).shape[2:] == (1, 4)


def test_normalisation_is_inside():
    model = create_model("lraspp_small_d8").eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    model(pixels)
    expected = [(255 - m) / s for m, s in zip(model.config.mean, model.config.std, strict=True)]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected)


def test_a_batch_that_starves_batch_norm_is_refused():
    model = create_model("lraspp_small_d8")
    with pytest.raises(ModelError, match="batch normalisation needs two"):
        model.check_trainable(1, (16, 16))
    model.check_trainable(2, (16, 16))
    model.check_trainable(1, (17, 16))


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ModelError, match="did you mean lraspp_small_d8"):
        create_model("lraspp_smal_d8")
    with pytest.raises(ModelError, match="num_classes is 0"):
        create_model("lraspp_small_d8", 0)
    assert net_name(NETS["lraspp_large_d8"]) == "lraspp_large_d8"
    assert net_name(replace(NETS["lraspp_large_d8"], pretrained="w.pth")) == "lraspp_large_d8"
    custom = Model(backbone=MobileNetV3(size="small", width=0.75), head=LRASPP(channels=64))
    assert net_name(custom) == "LRASPP on MobileNetV3-small (width 0.75, tail full, output stride 32)"


@pytest.mark.parametrize("family", ["timm", "d-li14", "torchvision", "paddle", "rw"])
@pytest.mark.parametrize("size", ["large", "small"])
def test_a_net_with_the_exact_widths_of_its_multiplier_is_the_same_net(family, size):
    for width, stride, last in ((0.35, 8, True), (1.0, 16, False), (1.25, 32, True)):
        net = Model(backbone=MobileNetV3(size=size, family=family, width=width, output_stride=stride, last=last))
        exact = replace(net, backbone=replace(net.backbone, widths=exact_widths(net.backbone)))
        assert state_shapes(exact, 19) == state_shapes(net, 19)
        assert net_from_dict(to_dict(exact)) == exact


def test_exact_widths_are_built_and_keep_layers_and_shortcuts():
    widths = list(exact_widths(_SMALL))
    widths[3], widths[-1] = 16, 104  # as wide as the input of its block, which keeps its first convolution all the same
    net = replace(_SMALL, widths=tuple(widths))
    backbone = MobileNetV3Backbone(net, (Tap(8, "expanded"),))
    assert [b.expanded for b in layout(net)][1] == 16 and backbone.blocks[1].expand[0].weight.shape == (16, 16, 1, 1)
    assert backbone.channels == (88, 104)
    assert [b.shortcut for b in backbone.blocks] == [b.shortcut for b in MobileNetV3Backbone(_SMALL).blocks]
    assert backbone(torch.zeros(2, 3, 32, 32))[-1].shape == (2, 104, 2, 2)


def test_widths_that_cannot_be_are_refused():
    widths = exact_widths(_SMALL)
    assert (4, 6) in joined(_SMALL)
    with pytest.raises(ModelError, match=r"numbers 5 and 7 are joined and must be equal, not 16 and 24"):
        layout(replace(_SMALL, widths=(*widths[:4], 16, *widths[5:])))
    values = to_dict(Model(backbone=replace(_SMALL, widths=widths)))
    for wrong, says in ((widths[:-1], "must be 24 numbers"), ((*widths[:-1], 0), "between 1 and 8192")):
        with pytest.raises(ValueError, match=says):
            net_from_dict(values | {"backbone": values["backbone"] | {"widths": list(wrong)}})
    values["backbone"] |= {"family": "sqlai"}
    with pytest.raises(ValueError, match="has no other"):
        net_from_dict(values)
