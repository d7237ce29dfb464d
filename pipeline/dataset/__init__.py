"""The labelled dataset, the only thing that the two jobs share. Importing it imports neither ray nor torch."""

from pipeline.dataset.manifest import MANIFEST_NAME, Manifest
from pipeline.dataset.reader import LabelledDataset, open_dataset

__all__ = ["MANIFEST_NAME", "LabelledDataset", "Manifest", "open_dataset"]
