"""Re-encode an image smaller or upright. An image that needs neither keeps its bytes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.data.images.decode import FORMATS, UnreadableImage, decode_image

ExifUse = Literal["keep", "apply"]
UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Encoding:
    """Says what stored images are to be.

    Attributes:
        short_side: pixels that the shorter side is reduced to where it is larger; None leaves sizes alone.
        exif: `apply` turns images as their EXIF orientation says; `keep` leaves them and the tag.
        quality: quality of the JPEGs that are written.
    """

    short_side: int | None = None
    exif: ExifUse = "keep"
    quality: int = 95

    @property
    def changes_nothing(self) -> bool:
        return self.short_side is None and self.exif == "keep"


def reencode(data: bytes, encoding: Encoding) -> bytes | None:
    """Return a JPEG, or None where the image is kept as it is.

    Pixels are those that `pipeline` decodes for training. Of the metadata only an orientation that still holds stays.

    Raises:
        UnreadableImage: damaged, truncated or too large.
    """
    if encoding.changes_nothing:
        return None
    (width, height), orientation = _inspect(data)
    is_larger = encoding.short_side is not None and min(width, height) > encoding.short_side
    turn = TURNS.get(orientation) if encoding.exif == "apply" else None
    if not is_larger and turn is None:
        return None
    image = Image.fromarray(decode_image(data))
    if is_larger and encoding.short_side is not None:
        scale = encoding.short_side / min(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
        )
    if turn is not None:
        image = image.transpose(turn)
    exif = Image.Exif()
    if turn is None and orientation in TURNS:
        exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=encoding.quality, exif=exif.tobytes() if len(exif) else b"")
    return buffer.getvalue()


def _inspect(data: bytes) -> tuple[tuple[int, int], int]:
    """Return size and EXIF orientation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would warn of harmless metadata; sizes are checked when the image is decoded
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.size, image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except UnidentifiedImageError as error:  # its own message holds a memory address, different every time
        raise UnreadableImage("UnidentifiedImageError: no known image format") from error
    except Exception as error:  # Pillow raises almost anything on damaged files
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error
