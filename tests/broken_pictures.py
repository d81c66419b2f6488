"""Files that a reader of pictures must refuse; only PIL is needed."""

import io
import struct
import zlib

from PIL import Image


def huge_png() -> bytes:
    """A small file that says it has 20,000 x 20,000 pixels."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)
