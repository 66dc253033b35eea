"""Nets of other libraries, and what the net that trains learns from them on frames with and without labels."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import paint
from test_ingredients import NAMES, teach

import segmv3
from segmv3 import checkpoint
from segmv3.commands import predict
from segmv3.config import Data, Distill
from segmv3.errors import CheckpointError, ConfigError, ModelError
from segmv3.evaluation.run import evaluate
from segmv3.images import read_ids, write_png
from segmv3.models.zoo import create_model
from segmv3.training.auxiliary import WithAuxiliaryHeads
from segmv3.training.loop import train
from segmv3.training.losses.functional import feature_distillation
from segmv3.training.segmentation import SegmentationTask
from segmv3.training.teacher import WithProjection, open_features
from segmv3.weights.libraries import open_library_net

SIZES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}
MASKS = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 32}
PREPROCESSOR = json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}


def save_transformers(folder: Path, kind: str, names: tuple[str, ...] = NAMES) -> torch.nn.Module:
    """A small net with fresh weights, as transformers saves it."""
    import transformers as hf

    torch.manual_seed(3)
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names))}
    if kind == "segformer":
        net = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(decoder_hidden_size=16, **SIZES, **labels))
    elif kind == "eomt":
        net = hf.EomtForUniversalSegmentation(
            hf.EomtConfig(num_queries=5, num_blocks=1, num_upscale_blocks=1, **VIT, **labels)
        )
    else:
        backbone = hf.SwinConfig(out_features=[f"stage{i}" for i in range(1, 5)], **SWIN)
        net = hf.Mask2FormerForUniversalSegmentation(
            hf.Mask2FormerConfig(
                backbone_config=backbone, encoder_layers=1, decoder_layers=2, num_queries=5, **MASKS, **labels
            )
        )
    net.save_pretrained(folder)
    return net.eval()


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(image: torch.Tensor, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return (image / 255 - mean) / std


@pytest.mark.slow
def test_segformer_gives_what_transformers_gives(tmp_path):
    pytest.importorskip("transformers")
    net, image = save_transformers(tmp_path / "net", "segformer"), pixels(50, 70)
    (tmp_path / "net/preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    opened, card = open_library_net(tmp_path / "net")
    with torch.inference_mode():
        assert torch.allclose(opened.low_logits(image), net(normalised(image, 0.5, 0.25)).logits, atol=1e-4)
    assert card.names == NAMES and len(card.sha256) == 64 and not opened.training


def test_masks_become_probabilities_of_classes(tmp_path):
    pytest.importorskip("transformers")
    net, image = (
        save_transformers(tmp_path / "net", "mask2former", tuple(f"LABEL_{i}" for i in range(4))),
        pixels(64, 96),
    )
    (tmp_path / "net/preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    opened, card = open_library_net(tmp_path / "net")
    with torch.inference_mode():
        found, raw = opened.low_logits(image), net(pixel_values=normalised(image, 0.5, 0.25))
    classes, masks = raw.class_queries_logits.softmax(-1), raw.masks_queries_logits.sigmoid()
    expected = sum(classes[:, q, :4, None, None] * masks[:, q, None] for q in range(5))  # the fifth class is nothing
    assert found.shape == (2, 4, 16, 24) and torch.allclose(found.exp(), expected, atol=1e-4)
    assert card.names == tuple(f"class_{i}" for i in range(4))


def test_a_net_of_squares_sees_the_whole_street(tmp_path):
    pytest.importorskip("transformers")
    save_transformers(tmp_path / "net", "eomt")
    opened, _ = open_library_net(tmp_path / "net")
    square, wide = pixels(64, 64), torch.cat([pixels(64, 64), pixels(64, 64).flip(2)], 3)
    with torch.inference_mode():
        left, right, both = (opened.low_logits(x) for x in (square, square.flip(2), wide))
        larger = opened.low_logits(pixels(100, 130))
    assert torch.allclose(both[..., :16], left, atol=1e-4) and torch.allclose(both[..., 16:], right, atol=1e-4)
    assert larger.shape == (2, 4, 16, 21) and larger.isfinite().all()


def test_a_folder_labels_frames_and_is_scored(tmp_path):
    pytest.importorskip("transformers")
    save_transformers(tmp_path / "net", "segformer")
    for kind in ("images", "labels"):
        (tmp_path / f"data/{kind}/val").mkdir(parents=True)
    for number in range(2):
        image, labels = paint(number, (40, 50), 4)
        write_png(tmp_path / f"data/images/val/{number}.png", image)
        write_png(tmp_path / f"data/labels/val/{number}.png", labels)
    (tmp_path / "data/classes.txt").write_text("\n".join(NAMES))
    frames, out = str(tmp_path / "data/images/val"), tmp_path / "out"
    flags = ["--weights", str(tmp_path / "net"), "--save", "labels", "--threads", "1"]
    net = segmv3.load(tmp_path / "net", threads=1)
    classes, sure = net.labels_and_confidence(paint(0, (40, 50), 4)[0])
    least = float(np.median(sure))
    predict.run([frames, *flags, "--output", str(out), "--min-confidence", str(least)])
    labels = read_ids(out / "0_labels.png")
    assert np.array_equal(labels, np.where(sure < least, 255, classes)) and 0.4 < (labels == 255).mean() < 0.6
    result = evaluate(Data(dataset="folder", root=tmp_path / "data"), tmp_path / "net", threads=1)
    assert 0 < result.miou < 100 and result.to_dict()["weights_sha256"] == net.card.sha256
    with pytest.raises(ModelError, match="runs with --backend torch"):
        segmv3.load(tmp_path / "net", backend="openvino")
    with pytest.raises(ConfigError, match="--min-confidence is 1; it must be"):
        predict.run([frames, *flags, "--output", str(out), "--min-confidence", "1"])


def test_folders_that_hold_no_segmentation_net_are_refused_in_one_line(tmp_path, monkeypatch):
    def refused(match: str, settings: object, kind: type[Exception] = CheckpointError) -> None:
        (tmp_path / "config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
        with pytest.raises(kind, match=match) as found:
            open_library_net(tmp_path)
        assert "\n" not in str(found.value)

    refused("cannot be read; a folder that save_pretrained", "{")
    refused("cannot be read; a folder that save_pretrained", "[]")
    refused("holds 'BertModel', which gives no class for each pixel", {"architectures": ["BertModel"]})
    refused("gives no class for each pixel", {"architectures": ["os.path\nForSemanticSegmentation"]})
    segformer = {"architectures": ["SegformerForSemanticSegmentation"], "model_type": "segformer"}
    if segmv3.weights.libraries.find_spec("transformers"):
        refused("does not hold the net it names", segformer)
    monkeypatch.setattr("segmv3.weights.libraries.find_spec", lambda name: None)
    refused("is a net of transformers, which is not here; pip install", segformer, ModelError)


def test_a_teacher_may_know_the_classes_in_another_order_and_more(config, tmp_path):
    net = teach(tmp_path / "teacher.safetensors", ("Sky", "car", "tree", "road", "house"))
    taught = replace(config, distill=Distill(teacher=str(tmp_path / "teacher.safetensors")))
    image = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(SegmentationTask(taught).teacher(image), net.low_logits(image)[:, [3, 4, 2, 0]])


def test_frames_without_labels_learn_from_a_teacher_and_its_features(config, tmp_path):
    teach(tmp_path / "teacher.safetensors")
    (tmp_path / "frames").mkdir()
    for number in range(3):
        write_png(tmp_path / f"frames/{number}.png", paint(number, (40, 50), 4)[0])
    data = replace(config.data, extra_images=tmp_path / "frames")
    with pytest.raises(ConfigError, match="data.extra-labels: is missing: extra images without labels teach only with"):
        replace(config, data=data)
    source = str(tmp_path / "teacher.safetensors")
    taught = replace(config, data=data, distill=Distill(teacher=source, features=source))
    extra = SegmentationTask(taught).train_set.extra
    image, labels = extra.read(1)
    assert len(extra) == 3 and image.shape == (40, 50, 3) and (labels == 255).all()
    short = replace(taught, schedule=replace(config.schedule, steps=3), data=replace(data, extra_share=1.0))
    train(short, tmp_path / "run", device="cpu", threads=1)  # no sample of it has a label
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(entry["loss"] > 0 for entry in log if entry["event"] == "train")
    net, _ = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert not any("projection" in name for name in net.state_dict())
    with pytest.raises(ConfigError, match="distill.features: needs compile off"):
        replace(taught, compile="on")


def test_the_projection_follows_the_features_of_timm(tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", features_only=True, dynamic_img_size=True, dynamic_img_pad=True)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    source = f"timm:vit_tiny_patch16_224@{tmp_path / 'vit.pth'}"
    features, channels = open_features(SimpleNamespace(distill=Distill(features=source), precision="fp32"))
    image = torch.randint(0, 256, (2, 3, 40, 70), dtype=torch.uint8)
    assert channels == vit.feature_info.channels()[-1] == 192 and features(image).shape == (2, 192, 3, 5)
    net = create_model("lraspp_small_d8", 4)
    module = WithProjection(WithAuxiliaryHeads(net), net, channels)
    *_, projected = module.low_logits(image)
    assert len(module.low_logits(image)) == 4 and projected.shape[:2] == (2, 192)
    total, count = feature_distillation(projected, features(image))
    total.backward()
    assert 0 < total <= 2 * count == 4 and net.backbone.stem[0].weight.grad.any()
    alike = torch.randn(1, 8, 3, 5)
    assert feature_distillation(7 * alike, alike)[0] == pytest.approx(0, abs=1e-6)
    for wrong, match in ((f"{source}x", "vit.pthx does not exist"), ("timm:no_such_net", "timm cannot give 'no_such")):
        with pytest.raises(CheckpointError, match=f"distill.features: .*{match}"):
            open_features(SimpleNamespace(distill=Distill(features=wrong), precision="fp32"))
