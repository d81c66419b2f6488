"""Pictures in every form become the same pixels; what is not a picture, too large or forbidden is refused."""

import base64
import http.server
import io
import re
import struct
import sys
import threading
import time
import urllib.request
import zlib

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as DatasetsImage
from fakes import assert_same_inputs, picture, text_of, turned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_smoldriver import SmolDriverProcessor

pytestmark = pytest.mark.contract

relaxed = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused(processor, message, images, text=None, **kwargs):
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=text, **kwargs)


def as_array(image):
    return np.asarray(image)


def as_floats(image):
    return np.asarray(image).astype(np.float32) / 255


def as_channels_first(image):
    return np.asarray(image).transpose(2, 0, 1)


def as_rgba(image):
    return Image.merge("RGBA", [*image.split(), Image.new("L", image.size, 7)])


def as_rgba_array(image):
    return np.asarray(as_rgba(image))


def as_tensor(image):
    return torch.from_numpy(np.array(image))


@pytest.mark.parametrize(
    "form", [as_array, as_floats, as_channels_first, as_rgba, as_rgba_array, as_tensor], ids=lambda form: form.__name__
)
def test_pictures_in_memory_may_have_any_form(processor, images, inputs, form):
    converted = {camera: form(image) for camera, image in images.items()}
    assert_same_inputs(processor(images=converted, text=text_of(processor, images), return_tensors="pt"), inputs)


def test_pictures_may_be_paths(processor, images, inputs, tmp_path):
    for camera, image in images.items():
        image.save(tmp_path / f"{camera}.png")
    for kind in (str, lambda path: path):
        paths = {camera: kind(tmp_path / f"{camera}.png") for camera in images}
        assert_same_inputs(processor(images=paths, text=text_of(processor, images), return_tensors="pt"), inputs)


@pytest.fixture
def web(monkeypatch):
    """A loopback server of `files` {path: bytes, or a function that answers}; anything else is not found."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = files.get(self.path)
            if callable(body):
                return body(self)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_may_be_urls(processor, images, inputs, web):
    address, files = web
    files.update({f"/{camera}.png": png(image) for camera, image in images.items()})
    urls = {camera: f"{address}/{camera}.png" for camera in images}
    assert_same_inputs(processor(images=urls, text=text_of(processor, images), return_tensors="pt"), inputs)
    urls["CAM_BACK"] = f"{address}/absent.png"
    with pytest.raises(ValueError, match="CAM_BACK: the picture cannot be read"):
        processor(images=urls, text=text_of(processor, images))
    urls["CAM_BACK"] = "http://127.0.0.1:9/refused.png"
    with pytest.raises(ValueError, match="CAM_BACK: the picture cannot be read"):
        processor(images=urls, text=text_of(processor, images))


def refused_url(processor, address, message):
    with pytest.raises(ValueError, match=f"^CAM_BACK: the picture cannot be read: {message}"):
        processor.encode_scene({"CAM_BACK": address})


@pytest.mark.parametrize("how", ["option", "environment"])
def test_urls_can_be_switched_off(
    processor, config, image_processor, tokenizer, images, web, monkeypatch, tmp_path, how
):
    address, files = web
    files["/back.png"] = png(images["CAM_BACK"])
    if how == "option":
        processor = SmolDriverProcessor.from_config(config, image_processor, tokenizer, allow_urls=False)
    else:
        monkeypatch.setenv("SMOLDRIVER_ALLOW_URLS", "0")
    asked = []
    files["/asked.png"] = asked.append
    refused_url(processor, f"{address}/asked.png", r"URLs are switched off \(allow_urls or SMOLDRIVER_ALLOW_URLS\)")
    assert not asked
    (tmp_path / "back.png").write_bytes(files["/back.png"])
    assert processor.encode_scene({"CAM_BACK": tmp_path / "back.png"})["pixel_values"].shape[1] == 1
    if how == "option":
        processor.save_pretrained(tmp_path / "saved")
        assert SmolDriverProcessor.from_pretrained(tmp_path / "saved").allow_urls is False


def redirected(address):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    return answer


def test_redirects_lead_to_other_addresses_but_not_to_other_schemes(processor, images, web, tmp_path):
    address, files = web
    (tmp_path / "secret.png").write_bytes(png(images["CAM_BACK"]))
    files["/back.png"] = png(images["CAM_BACK"])
    files["/moved.png"] = redirected(f"{address}/back.png")
    pixels = processor.encode_scene({"CAM_BACK": f"{address}/moved.png"})["pixel_values"]
    assert torch.equal(pixels, processor.encode_scene({"CAM_BACK": images["CAM_BACK"]})["pixel_values"])
    for other in (f"file://{tmp_path}/secret.png", "ftp://127.0.0.1/secret.png"):
        files["/moved.png"] = redirected(other)
        refused_url(processor, f"{address}/moved.png", f".*[rR]edirect.* to .*{other[:4]}")
        refused_url(processor, other, "'.*' is not a file, a URL or a base64 string")


def test_redirects_from_https_to_http_are_refused(processor):
    module = sys.modules[SmolDriverProcessor.__module__]
    request = urllib.request.Request("https://a.example/back.png")
    follow = module.Redirects().redirect_request
    assert (
        follow(request, None, 302, "Found", {}, "https://b.example/back.png").full_url == "https://b.example/back.png"
    )
    with pytest.raises(ValueError, match="https://a.example/back.png redirects to http://b.example/back.png"):
        follow(request, None, 302, "Found", {}, "http://b.example/back.png")


def test_a_url_that_sends_too_much_or_too_slowly_is_given_up(processor, web, monkeypatch):
    module = sys.modules[SmolDriverProcessor.__module__]
    monkeypatch.setattr(module, "URL_WAIT", 0.3)
    monkeypatch.setattr(module, "URL_SECONDS", 0.5)
    address, files = web
    stop = threading.Event()

    def claims(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**10))
        handler.end_headers()

    def silent(handler):
        stop.wait(5)

    def drips(handler):
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.1):
            handler.wfile.write(b"x")

    files.update({"/claims": claims, "/silent": silent, "/drips": drips})
    started = time.monotonic()
    refused_url(processor, f"{address}/claims", "a file of 10,000,000,000 bytes")
    refused_url(processor, f"{address}/silent", ".*timed out")
    refused_url(processor, f"{address}/drips", ".*took longer than 0.5 s")
    stop.set()
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("form", ["data:image/png;base64,", ""])
def test_pictures_may_be_base64(processor, images, form):
    encoded = form + base64.encodebytes(png(images["CAM_BACK"])).decode()
    pixels = processor.encode_scene({"CAM_BACK": encoded})["pixel_values"]
    assert torch.equal(pixels, processor.encode_scene({"CAM_BACK": images["CAM_BACK"]})["pixel_values"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_seen_upright_whichever_way_it_comes_in(processor, images, web, tmp_path, orientation):
    upright = images["CAM_BACK"]
    data = turned(upright, orientation, "PNG")
    address, files = web
    files["/back.png"] = data
    (tmp_path / "back.png").write_bytes(data)
    ways = {
        "path": str(tmp_path / "back.png"),
        "Path": tmp_path / "back.png",
        "PIL": Image.open(io.BytesIO(data)),
        "resized before": Image.open(io.BytesIO(data)).convert("RGB"),
        "URL": f"{address}/back.png",
        "base64": base64.b64encode(data).decode(),
        "dataset": Dataset.from_list(
            [{"image": {"bytes": data, "path": None}}], features=Features({"image": DatasetsImage()})
        )[0]["image"],
    }
    pixels = processor.encode_scene({"CAM_BACK": upright})["pixel_values"]
    for name, picture_ in ways.items():
        assert torch.equal(processor.encode_scene({"CAM_BACK": picture_})["pixel_values"], pixels), name


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "I;16", "I", "CMYK"])
def test_pictures_of_any_mode_become_rgb(processor, images, tmp_path, mode):
    grey = images["CAM_FRONT"].convert("L")
    if mode in ("I;16", "I"):
        values = np.asarray(grey).astype(np.uint16) * 257
        odd = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.int32))
    else:
        odd = grey.convert(mode) if mode != "P" else images["CAM_FRONT"].quantize(256)
    assert odd.mode == mode
    plain = {"1": odd.convert("L"), "P": odd.convert("RGB")}.get(mode, grey).convert("RGB")
    prompt = text_of(processor, {"CAM_FRONT": plain})
    pixels = processor(images={"CAM_FRONT": odd}, text=prompt, return_tensors="pt")["pixel_values"]
    reference = processor(images={"CAM_FRONT": plain}, text=prompt, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, reference, atol=2 / 255, rtol=0)
    assert pixels.std() > 0.1


def test_grey_arrays_are_read(processor, images):
    grey = images["CAM_FRONT"].convert("L")
    prompt = text_of(processor, {"CAM_FRONT": grey})
    reference = processor(images={"CAM_FRONT": grey}, text=prompt, return_tensors="pt")
    for array in (np.asarray(grey), np.asarray(grey) / 255):
        assert_same_inputs(processor(images={"CAM_FRONT": array}, text=prompt, return_tensors="pt"), reference)


def jpeg():
    buffer = io.BytesIO()
    picture(3, (160, 90)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png_of_claimed_size(width, height, depth=8, colour=2):
    """A small file that declares many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def sparse(path):
    """A file of 6 GB that takes no room."""
    with open(path, "wb") as file:
        file.truncate(6 * 10**9)


def test_what_is_too_large_is_refused_before_it_is_decoded(processor, tmp_path):
    sparse(tmp_path / "sparse.png")
    too_many = np.broadcast_to(np.uint8(0), (13_000, 13_000))  # of one byte
    (tmp_path / "claims.png").write_bytes(png_of_claimed_size(13_000, 13_000, depth=16, colour=0))
    for broken, message in (
        (tmp_path / "sparse.png", "a file of 6,000,000,000 bytes; a picture's may have 100,000,000"),
        (tmp_path / "claims.png", "a picture of 13000 x 13000 pixels; give one of 1 to 50,000,000 pixels"),
        (Image.open(tmp_path / "claims.png"), "a picture of 13000 x 13000 pixels"),
        (too_many, "a picture of 13000 x 13000 pixels"),
        ("A" * 140_000_000, "a file of 105,000,000 bytes"),
    ):
        with pytest.raises(ValueError, match=f"^CAM_BACK: the picture cannot be read: {message}"):
            processor.encode_scene({"CAM_BACK": broken})


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((0, 4, 3), np.uint8), "a picture of 4 x 0 pixels"),
        (np.zeros((0, 0), np.uint8), "a picture of 0 x 0 pixels"),
        (np.ones((4, 5, 3), bool), "bool is not a picture's dtype"),
        (np.full((4, 5, 3), 300), "values from 300 to 300 are not a picture's"),
        (np.full((4, 5, 3), -0.1), "values from -0.1 to -0.1 are not a picture's"),
        (np.full((4, 5, 3), 7.5), "values from 7.5 to 7.5 are not a picture's"),
        (np.full((4, 5, 3), np.inf), "values from inf to inf are not a picture's"),
    ],
)
def test_arrays_that_are_not_pictures_are_refused(processor, array, message):
    for form in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match=f"^CAM_BACK: the picture cannot be read: {re.escape(message)}"):
            processor.encode_scene({"CAM_BACK": form})


def test_float_arrays_of_black_and_white_are_black_and_white(processor):
    black_and_white = np.zeros((8, 8, 3))
    black_and_white[:, 4:] = 1.0
    pixels = processor.encode_scene({"CAM_BACK": black_and_white})["pixel_values"]
    whole = processor.encode_scene({"CAM_BACK": (255 * black_and_white).astype(np.uint8)})["pixel_values"]
    assert torch.equal(pixels, whole) and pixels.max() - pixels.min() > 1.9


BAD_FILES = {
    "truncated": lambda: jpeg()[: len(jpeg()) // 2],
    "empty": lambda: b"",
    "no picture": lambda: b"not a picture at all",
    "huge": lambda: png_of_claimed_size(20_000, 20_000),
    "broken png": lambda: png(picture(3))[:60],
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_picture_that_cannot_be_read_is_refused_by_camera(processor, images, tmp_path, kind):
    prompt = text_of(processor, images)
    path = tmp_path / "picture"
    path.write_bytes(BAD_FILES[kind]())
    refused(processor, "^CAM_BACK: the picture cannot be read: ", {**images, "CAM_BACK": str(path)}, prompt)
    with pytest.raises(ValueError, match="^CAM_BACK: the picture cannot be read: "):
        processor.encode_scene({**images, "CAM_BACK": path})


def test_opened_but_truncated_picture_is_refused_by_camera(processor, images):
    """PIL opens lazily: only decoding finds the missing half."""
    images["CAM_BACK"] = Image.open(io.BytesIO(jpeg()[: len(jpeg()) // 2]))
    with pytest.raises(ValueError, match="^CAM_BACK: the picture cannot be read: "):
        processor.encode_scene(images)


@pytest.mark.parametrize(
    "broken",
    [
        "absent.jpg",
        7,
        object(),
        np.zeros((2, 3, 4, 5)),
        np.zeros((4, 5, 7), np.uint8),
        np.full((4, 5, 3), np.nan),
        b"x",
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_a_picture_is_refused_by_camera(processor, images, broken):
    refused(
        processor,
        "^CAM_BACK: the picture cannot be read: ",
        {**images, "CAM_BACK": broken},
        text_of(processor, images),
    )


@settings(relaxed, max_examples=60)
@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF"]))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_by_camera(processor, tmp_path_factory, data, format):
    buffer = io.BytesIO()
    picture(5).save(buffer, format)
    content = bytearray(buffer.getvalue()[: data.draw(st.integers(0, len(buffer.getvalue())))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "picture"
    path.write_bytes(content)
    try:
        pixels = processor.encode_scene({"CAM_BACK": path})["pixel_values"]
    except ValueError as error:
        assert str(error).startswith("CAM_BACK: the picture cannot be read: ")
    else:
        assert pixels.shape == (1, 1, 3, 48, 48) and pixels.isfinite().all()
