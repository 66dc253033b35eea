import pytest
import torch
import torch.nn.functional as F

from segmv3.decode import label_map
from segmv3.inference import MULTI_SCALES, multi_scale_flip


def pixelwise(image: torch.Tensor) -> torch.Tensor:
    """A "net" that looks at one pixel at a time: resizing is all that multi-scale can change."""
    return torch.cat([image[:, :1], image[:, 1:2], 255 - image[:, 2:]], 1).float() / 40


def test_one_scale_without_flip_is_the_softmax():
    image = torch.rand(1, 3, 9, 12) * 255
    found = multi_scale_flip(pixelwise, image, scales=(1.0,), flip=False)
    assert torch.allclose(found, pixelwise(image).softmax(1))


def test_the_average_is_the_one_written_down():
    image = torch.randint(0, 256, (2, 3, 21, 30), dtype=torch.uint8)
    expected = torch.zeros(2, 3, 21, 30)
    for scale in MULTI_SCALES:
        size = (int(21 * scale + 0.5), int(30 * scale + 0.5))
        for mirrored in (False, True):
            x = F.interpolate(image.float(), size, mode="bilinear", align_corners=False)
            x = pixelwise(x.flip(3)).flip(3) if mirrored else pixelwise(x)
            expected += F.interpolate(x, (21, 30), mode="bilinear", align_corners=False).softmax(1)
    found = multi_scale_flip(pixelwise, image)
    assert torch.allclose(found, expected / 12, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(2, 21, 30), atol=1e-5)


def test_mirroring_makes_the_result_symmetric():
    def lopsided(image):
        return pixelwise(image) + torch.linspace(0, 3, image.shape[3])

    image = torch.rand(1, 3, 8, 10) * 255
    found = multi_scale_flip(lopsided, image)
    assert torch.allclose(found.flip(3), multi_scale_flip(lopsided, image.flip(3)), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_images_pass(size):
    assert multi_scale_flip(pixelwise, torch.rand(1, 3, *size)).shape == (1, 3, *size)


def test_no_scales_is_an_error():
    with pytest.raises(ValueError, match="no scales"):
        multi_scale_flip(pixelwise, torch.rand(1, 3, 4, 4), scales=())


@pytest.mark.parametrize("size", [(8, 8), (33, 17), (5, 3)])
def test_label_map_is_bilinear_then_argmax(size):
    logits = torch.randn(2, 5, 8, 8)
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)
    labels = label_map(logits, size)
    assert labels.dtype == torch.uint8 and torch.equal(labels.long(), expected)


def test_ties_go_to_the_lower_id():
    assert not label_map(torch.zeros(1, 4, 3, 3), (6, 6)).any()
