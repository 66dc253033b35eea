"""Exporting a net to a file for another runtime, with proof that the file computes what PyTorch computes.

What is particular to a kind of file is in its target: `segmv3.convert.base`.
"""

from segmv3.exporting.pictures import in_folders as in_folders
from segmv3.exporting.pictures import labelled as labelled
from segmv3.exporting.pictures import photographs as photographs
from segmv3.exporting.writing import Exported as Exported
from segmv3.exporting.writing import export as export
