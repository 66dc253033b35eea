"""The table of readers, asked in this order: those that recognise a file of their own first."""

from segmv3.data.importing.base import Reader
from segmv3.data.importing.masks import Masks

READERS: tuple[Reader, ...] = (Masks(),)
