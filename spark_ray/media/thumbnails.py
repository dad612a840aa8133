"""Small copies of stored frames, for pages on which many of them are looked at."""

import cv2
import numpy as np

from spark_ray.core.errors import CorruptMedia
from spark_ray.media.geometry import encode_jpeg

_QUALITY = 80


def thumbnail(jpeg: bytes, most_width: int, most_height: int | None = None) -> bytes:
    """The picture again, at most so many pixels wide and high; the same bytes if it is small.

    Raises:
        CorruptMedia: it is none.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise CorruptMedia("a frame of the clip is no readable JPEG")
    height, width = image.shape[:2]
    scale = min(1.0, most_width / width, (most_height or height) / height)
    if scale == 1.0:
        return jpeg
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return encode_jpeg(np.asarray(small, np.uint8), _QUALITY)
