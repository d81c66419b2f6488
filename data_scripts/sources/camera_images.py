"""One camera image, checked and made ready for the scene row."""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from smoldriver_common.shipped import MAX_PIXELS, to_rgb, upright_size

JPEG_QUALITY = 90


class UnusableImage(ValueError):
    """An image that cannot be used; the message says why."""


def read_image_file(root: Path, relative: str) -> bytes:
    """Bytes of an image file under `root`.

    Links on the disk are followed wherever they lead: cameras may lie on several disks, and the Hub's cache holds
    links alone. The author of a JSON file cannot make one; the paths that it writes are `path_below` the root.

    Raises:
        UnusableImage: the file is absent, empty or unreadable.
    """
    path = root / relative
    try:
        if not path.is_file():
            raise UnusableImage("no such file")
        data = path.read_bytes()
    except OSError as error:
        raise UnusableImage(f"unreadable file ({error.strerror})") from None
    if not data:
        raise UnusableImage("empty file")
    return data


def usable_image(data: bytes, max_height: int | None = None) -> bytes:
    """The bytes to store: the original ones where they are an 8-bit RGB JPEG or PNG of at most `max_height`.

    They keep their EXIF orientation, which is applied whenever they are decoded; what is converted is stored upright.
    Anything else (grey, with transparency, 16-bit, too high) is converted to RGB, shrunk and written as JPEG. To find
    a cut JPEG it is decoded at an eighth of its size: that reads every coefficient, but does not make the full
    picture, which is most of the cost (1.3 ms instead of 2.7 ms for 1600 x 900 pixels).

    Args:
        data: an image file's bytes.
        max_height: greatest height in pixels; the width follows. None keeps the size.

    Raises:
        UnusableImage: cut, of another format, or of more than `MAX_PIXELS` pixels.
    """
    too_large = UnusableImage(f"more than {MAX_PIXELS:,} pixels")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            raise too_large
        width, height = upright_size(image)
        if max_height is not None and height > max_height:
            size = (max(1, round(width * max_height / height)), max_height)
            image.draft("RGB", size if (width, height) == image.size else size[::-1])
            return _rgb_jpeg(to_rgb(image).resize(size, Image.Resampling.BICUBIC))
        if image.mode != "RGB":
            return _rgb_jpeg(to_rgb(image))
        image.draft("RGB", tuple(max(1, side // 8) for side in image.size))
        image.load()
        return data
    except UnusableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except UnidentifiedImageError:
        raise UnusableImage("neither JPEG nor PNG, or cut within its header") from None
    except Exception as error:  # on broken bytes the decoders raise OSError, SyntaxError, struct.error and more
        raise UnusableImage(f"cut short or broken ({type(error).__name__})") from None


def _rgb_jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
