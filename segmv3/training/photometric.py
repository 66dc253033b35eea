"""The colours of a batch, changed on the device.

Workers only draw the changes (`segmv3.data.transforms`), for decoding and cropping keep them busy. A GPU computes the
changes in almost no time. On a CPU OpenCV does it.
"""

import cv2
import torch
from torch import Tensor

from segmv3.data.loader import Photometric


def adjust(images: Tensor, photometric: Photometric) -> Tensor:
    """Look every channel up in its table, where there are tables, then turn the colours by a matrix, and clip.

    Padding keeps its colour. Nothing waits for the device. Call it outside of autocast: the numbers are colours.

    Args:
        images: uint8 N x 3 x H x W RGB, channels_last.
        photometric: what to do, on the same device.

    Returns:
        N x 3 x H x W, channels_last, 0..255: uint8 on a CPU; float32 elsewhere, which saves a pass for rounding.
    """
    return _on_cpu(images, photometric) if images.device.type == "cpu" else by_matrix_product(images, photometric)


def _on_cpu(images: Tensor, photometric: Photometric) -> Tensor:
    """Adjust one image after the other. This is as fast as a copy; torch's matrix product takes ten times as long."""
    adjusted = images.clone(memory_format=torch.channels_last)
    matrices = photometric.matrix.numpy()
    for index, pixels in enumerate(adjusted.permute(0, 2, 3, 1).numpy()):
        if photometric.inside is not None:
            top, left, bottom, right = photometric.inside[index].tolist()
            pixels = pixels[top:bottom, left:right]
        colors = pixels
        if photometric.tables is not None:
            colors = cv2.LUT(colors, photometric.tables[index].T.contiguous().numpy()[None])
        pixels[:] = cv2.transform(colors, matrices[index])
    return adjusted


def by_matrix_product(images: Tensor, photometric: Photometric) -> Tensor:
    """`adjust` by torch alone, on any device."""
    matrix, tables, inside = photometric
    count, _, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).reshape(count, height * width, 3)  # no copy
    if tables is not None:
        first = torch.arange(0, 256 * 3 * count, 256, dtype=torch.int32, device=images.device)
        pixels = tables.flatten()[pixels + first.view(count, 1, 3)]
    colors = torch.baddbmm(matrix[:, None, :, 3], pixels.float(), matrix[:, :, :3].mT).clamp_(0, 255)
    colors = colors.view(count, height, width, 3).permute(0, 3, 1, 2)
    if inside is None:
        return colors
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    top, left, bottom, right = inside.T[:, :, None]
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return torch.where(in_rows[:, None, :, None] & in_columns[:, None, None, :], colors, images)
