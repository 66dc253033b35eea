import numpy as np
import pytest
import torch

import segmv3
from segmv3.errors import ModelError
from segmv3.models.zoo import create_model


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 5), path)
    return segmv3.load(path, threads=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 53), (64, 128)])
def test_any_image_gives_labels_of_its_size(predict, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = predict(image)
    assert labels.shape == size and labels.dtype == np.uint8 and labels.max() < len(predict.classes) == 5
    with torch.inference_mode():
        logits = predict.model(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert np.array_equal(labels, logits.argmax(1)[0].numpy())


def test_views_and_read_only_images_are_taken(predict):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = predict(image[:, ::-1].copy())
    assert np.array_equal(predict(image[:, ::-1]), expected)
    image.setflags(write=False)
    assert predict(image).shape == (40, 60)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(predict, image):
    with pytest.raises(ModelError, match="uint8 H x W x 3"):
        predict(image)


def test_unknown_backends_are_refused(tmp_path):
    with pytest.raises(ModelError, match="there is no backend 'onnx'"):
        segmv3.load(tmp_path / "w.safetensors", backend="onnx")  # type: ignore[arg-type]


def test_public_names():
    for name in segmv3.__all__:
        assert getattr(segmv3, name) is not None
    assert set(segmv3.__all__) == set(dir(segmv3))
    with pytest.raises(AttributeError):
        _ = segmv3.nothing
