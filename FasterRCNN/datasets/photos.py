"""The image of a record, wherever it comes from."""

import numpy as np

from FasterRCNN.datasets.custom import user_image
from FasterRCNN.imaging.read import read_record_image
from FasterRCNN.structures import Dataset, ImageRecord

__all__ = ["read_photo"]


def read_photo(record: ImageRecord, dataset: Dataset) -> np.ndarray:
    """The photo of a record of `dataset`, BGR uint8 H×W×3 of the annotated size.

    Raises FileNotFoundError or ValueError, naming the file or the user's data set and index, when it cannot be had.
    """
    if not record.source:
        return read_record_image(record)
    image = user_image(dataset.user_datasets[record.source], record.image_id)
    if image.shape[:2] != (record.height, record.width):
        raise ValueError(
            f"{record.source}[{record.image_id}] gives an image of {image.shape[1::-1]} pixels (width, height), but "
            f"get_img_info says {(record.width, record.height)}"
        )
    return image
