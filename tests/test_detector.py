"""The detection net: torchvision's own, to the bit of its tensors, with segmv3's backbones."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from segmv3 import checkpoint
from segmv3.config import Detector, MobileNetV2, MobileNetV3, Model, Tap, Timm
from segmv3.errors import CheckpointError, ModelError
from segmv3.labels import named_classes
from segmv3.models.bands import features_in_bands
from segmv3.models.count import parameters
from segmv3.models.detector import ObjectDetector
from segmv3.models.mobilenetv3 import MobileNetV3Backbone, layout
from segmv3.models.zoo import build
from segmv3.weights.importing import import_weights
from segmv3.weights.opening import open_classifier, open_detector, open_net, open_segmenter
from segmv3.weights.transfer import start_from

THEIRS = Detector(backbone=MobileNetV3(family="torchvision", tail="torchvision"))


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """torchvision's net, with weights of which no map dies out."""
    torch.manual_seed(0)
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    for module in net.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        net.head(list(net.backbone(torch.randn(4, 3, 320, 320)).values()))
    return net.eval()


@pytest.mark.parametrize(("size", "place"), [("large", 13), ("small", 9)])
@pytest.mark.parametrize("change", [{}, {"width": 0.75}, {"minimal": True}, {"tail": "torchvision"}, {"tail": "rf2"}])
def test_c4_is_the_expansion_of_the_block_that_the_paper_names(size, place, change):
    net = MobileNetV3(size=size, **change)
    by_stage, by_block = (
        MobileNetV3Backbone(net, (tap,)).eval() for tap in (Tap(32, "expansion"), Tap(32, "expansion", block=place))
    )
    assert by_stage.taps == by_block.taps == ((place, "expansion"),)
    seen = []
    block = by_stage.blocks[place - 1]
    block.expand.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        c4, c5 = by_stage(torch.randn(1, 3, 64, 96))
    assert torch.equal(c4, seen[0])
    assert c4.shape == (1, layout(net)[place - 1].expanded, 4, 6)
    assert (c4.shape[1], c5.shape[1]) == by_stage.channels
    assert c5.shape[2:] == (2, 3)


def test_halving_leaves_c4_and_halves_what_follows():
    full, half, both = (
        MobileNetV3Backbone(MobileNetV3(tail=tail), (Tap(32, "expansion"),)).channels
        for tail in ("full", "torchvision", "rf2")
    )
    assert (full, half, both) == ((672, 960), (672, 480), (336, 480))


def test_a_map_that_is_not_there_cannot_be_tapped():
    with pytest.raises(ModelError, match="block 4 is not at stride 32; its blocks are \\[13, 14, 15\\]"):
        MobileNetV3Backbone(MobileNetV3(), (Tap(32, "expansion", block=4),))
    with pytest.raises(ModelError, match="block 1 has no expansion"):
        MobileNetV3Backbone(MobileNetV3(), (Tap(2, "expansion", block=1),))
    with pytest.raises(ModelError, match="no expansion before"):
        MobileNetV2().build((Tap(32, "expansion"),), bn_momentum=0.1)
    with pytest.raises(ModelError, match="has no expansion map at stride 32"):
        Timm().build((Tap(32, "expansion"),), bn_momentum=0.1)


def test_other_taps_are_as_they_were_also_in_bands():
    backbone = MobileNetV3Backbone(MobileNetV3(size="small"), (Tap(8, "expanded"), Tap(4))).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for one, other in zip(backbone(image), features_in_bands(nn.Identity(), backbone, image), strict=True):
            torch.testing.assert_close(one, other)


def test_the_net_is_torchvisions(reference):
    net = build(THEIRS, 90)
    assert parameters(net) == 3_440_060
    assert [t.shape for t in net.state_dict().values()] == [t.shape for t in reference.state_dict().values()]
    assert len(net.state_dict()) == 476


@pytest.mark.parametrize("size", [(320, 320), (512, 384)])
def test_boxes_and_scores_are_torchvisions(reference, size, tmp_path):
    torch.save(reference.state_dict(), tmp_path / "ssdlite.pth")
    net, card = open_detector(tmp_path / "ssdlite.pth")
    assert card.names[:3] == ("person", "bicycle", "car") and len(set(card.names)) == 90
    reference.transform.fixed_size = size[::-1]
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs, ours = reference([image / 255])[0], net.detect(image[None])[0]
    assert len(ours["boxes"]) == 300
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-5, rtol=0)
    assert torch.equal(ours["labels"] + 1, theirs["labels"])


def test_the_loss_is_torchvisions(reference):
    net = build(THEIRS, 90)
    net.load_state_dict(dict(zip(net.state_dict(), reference.state_dict().values(), strict=True)))
    reference.transform.fixed_size = (160, 160)
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([[10.0, 20.0, 90.0, 120.0], [50.0, 5.0, 150.0, 60.0]])
    theirs = [{"boxes": boxes, "labels": torch.tensor([3, 7])}, {"boxes": boxes[:1], "labels": torch.tensor([1])}]
    targets = torch.full((2, 2, 5), -1.0)
    targets[0, :, :4], targets[0, :, 4] = boxes, torch.tensor([2.0, 6.0])
    targets[1, 0] = torch.tensor([*boxes[0], 0.0])
    reference.training = True  # the loss, with BN as it is in evaluation
    expected = sum(reference(list(images / 255), theirs).values())
    reference.training = False
    total, count = net.eval().loss(*net(images), targets)
    torch.testing.assert_close(total / count, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_without_boxes_has_no_loss_and_no_count():
    net = build(Detector(backbone=MobileNetV3(size="small")), 2)
    total, count = net.loss(*net(torch.zeros(2, 3, 64, 64)), torch.full((2, 1, 5), -1.0))
    assert (total.item(), count.item()) == (0, 0)


def test_the_published_file_is_read_and_saved_as_a_detector(reference, tmp_path):
    torch.save(reference.state_dict(), tmp_path / "ssdlite.pth")
    imported = import_weights(tmp_path / "ssdlite.pth")
    assert (imported.title, imported.net, imported.new, imported.unused) == (
        "torchvision/ssdlite320_mobilenet_v3_large",
        THEIRS,
        (),
        (),
    )
    checkpoint.save(imported.model(), tmp_path / "ours.safetensors", classes=imported.names)
    net, card = open_detector(tmp_path / "ours.safetensors")
    for one, other in zip(net.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert card.classes.names == imported.names


def test_weights_of_another_task_are_refused_in_one_line(tmp_path):
    small = MobileNetV3(size="small")
    for name, net in (("boxes", Detector(backbone=small)), ("areas", Model(backbone=small))):
        checkpoint.save(build(net, 2), tmp_path / f"{name}.safetensors")
    for opener in (open_segmenter, open_classifier, open_net):
        with pytest.raises(CheckpointError, match="boxes.safetensors is a detector: use it with segmv3 detect"):
            opener(tmp_path / "boxes.safetensors")
    with pytest.raises(CheckpointError, match="areas.safetensors is a segmentation net: use it with segmv3 predict"):
        open_detector(tmp_path / "areas.safetensors")


def test_a_detector_starts_from_a_detector_by_the_names_of_classes(tmp_path):
    settings = Detector(backbone=MobileNetV3(size="small"), anchors="tensorflow")
    before, now = build(settings, 3), build(settings, 2)
    checkpoint.save(before, tmp_path / "start.safetensors", classes=named_classes("car", "person", "bus"))
    said: list[str] = []
    start_from(now, str(tmp_path / "start.safetensors"), said.append, ("bus", "tram"))
    assert any("classes copied by their names: bus; new: tram" in line for line in said)
    assert torch.equal(now.extra[0][0][0].weight, before.extra[0][0][0].weight)
    for level, cells in enumerate((3, 6, 6, 6, 6, 6)):
        theirs, ours = (
            net.head.classification_head.module_list[level][1].weight.unflatten(0, (cells, -1)) for net in (before, now)
        )
        assert torch.equal(ours[:, 0], theirs[:, 0])  # background
        assert torch.equal(ours[:, 1], theirs[:, 3])
        assert not torch.equal(ours[:, 2], theirs[:, 2])


def test_a_detector_starts_from_a_classifiers_backbone(tmp_path):
    from segmv3.config import Classifier

    small = MobileNetV3(size="small")
    classifier = build(Classifier(backbone=small), 5)
    checkpoint.save(classifier, tmp_path / "start.safetensors")
    net = build(Detector(backbone=small), 2)
    said: list[str] = []
    start_from(net, str(tmp_path / "start.safetensors"), said.append, ("car", "bus"))
    for one, other in zip(net.backbone.parameters(), classifier.backbone.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "--model.mean" in " ".join(said)  # the detector's input range is another one


def test_counting_needs_no_memory_and_any_size_will_do():
    with torch.device("meta"):
        net = ObjectDetector(Detector(backbone=MobileNetV3(size="small")), 90).eval()
    found, anchors = net(torch.empty(1, 3, 75, 131, device="meta"))
    assert found.shape == (1, len(anchors), 95)
