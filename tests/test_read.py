"""Photos from files, whole or refused."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from FasterRCNN.imaging.read import read_image, read_record_image
from FasterRCNN.structures import ImageRecord


def make_photo():
    """Noise: hard to compress, so that half a file is half a picture."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.JPG"])
def test_a_whole_file_is_read_as_opencv_reads_it(tmp_path, name):
    path = tmp_path / name
    cv2.imwrite(str(path), make_photo())
    image = read_image(path)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, cv2.imread(str(path)))


def test_grey_and_transparent_pictures_become_bgr(tmp_path):
    for name, photo in [
        ("grey.png", make_photo()[..., 0]),
        ("clear.png", np.dstack([make_photo(), np.ones((40, 60))])),
    ]:
        cv2.imwrite(str(tmp_path / name), photo)
        assert read_image(tmp_path / name).shape == (40, 60, 3)


def test_a_gif_is_read(tmp_path):
    image = Image.fromarray(make_photo()[..., ::-1]).quantize(16)
    image.save(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), np.asarray(image.convert("RGB"))[..., ::-1])


def test_a_palette_becomes_bgr(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 90, 250]], np.uint8)  # RGB

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", colours.tobytes()) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours[pixels][..., ::-1])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_by_the_largest_value(tmp_path, name, channels):
    photo = np.random.default_rng(0).integers(0, 4096, (40, 60, channels), np.uint16)  # 12 bits
    photo[0, 0, 0] = 4095
    cv2.imwrite(str(tmp_path / name), photo)
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8 and image.shape == (40, 60, 3)
    np.testing.assert_allclose(image, np.broadcast_to(photo / 4095 * 255, image.shape), atol=0.51)
    cv2.imwrite(str(tmp_path / name), photo * 0)
    assert not read_image(tmp_path / name).any()


def test_an_image_of_a_size_beyond_opencv_is_refused(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), make_photo())
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 70000, 70000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: not an image that OpenCV can decode"):
        read_image(path)


def test_a_photo_of_another_size_than_annotated_is_refused(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, make_photo())
    assert read_record_image(ImageRecord(1, path, height=40, width=60)).shape == (40, 60, 3)
    with pytest.raises(ValueError, match=r"a\.png is \(60, 40\) pixels .*annotated as \(40, 60\)$"):
        read_record_image(ImageRecord(1, path, height=60, width=40))
    with pytest.raises(ValueError, match=r"annotated as \(60, 41\)$"):
        read_record_image(ImageRecord(1, path, height=41, width=60))


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
@pytest.mark.parametrize("smooth", [False, True])
def test_jpegs_without_their_end_or_with_more_behind_it_are_whole(tmp_path, options, smooth):
    photo = make_photo()
    if smooth:
        photo = cv2.resize(photo[:2, :3], (60, 40), interpolation=cv2.INTER_CUBIC)
    whole = cv2.imencode(".jpg", photo, options)[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR)
    path = tmp_path / "a.jpg"
    for trailer in (bytes(1000), b"\xff\xda and more", b"\xff\xd8\xff\xda\xff"):
        path.write_bytes(whole + trailer)
        np.testing.assert_array_equal(read_image(path), expected)
    path.write_bytes(whole[:-2])
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
def test_a_jpeg_cut_anywhere_in_its_last_scan_is_refused(tmp_path, options):
    photo = np.tile(make_photo()[:32, :32], (1, 2, 1))  # whole blocks: what pads others may be missing unseen
    whole = cv2.imencode(".jpg", photo, options)[1].tobytes()
    path = tmp_path / "a.jpg"
    for size in range(whole.rfind(b"\xff\xda") + 14, len(whole) - 8, max(1, len(whole) // 100)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated"):
            read_image(path)


def test_a_thumbnail_inside_does_not_hide_a_truncated_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), make_photo())
    photo = path.read_bytes()
    thumbnail = cv2.imencode(".jpg", make_photo()[:8, :8])[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path.write_bytes(photo[:2] + segment + photo[2:])
    assert read_image(path).shape == (40, 60, 3)
    path.write_bytes(photo[:2] + segment + photo[2 : len(photo) // 2])
    with pytest.raises(ValueError, match=r"a\.jpg: the image file is truncated"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_file_is_refused(tmp_path, name):
    path = tmp_path / name
    cv2.imwrite(str(path), make_photo())
    size = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"{name}: the image file is truncated after {size} bytes"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jpg: not an image that OpenCV can decode \({len(content)} bytes\)"):
        read_image(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.jpg: no such image file"):
        read_image(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(tmp_path)


def turned_jpeg(path, orientation):
    """A photo whose EXIF data ask for a turn; returns it as it is stored."""
    stored = cv2.imencode(".jpg", make_photo())[1].tobytes()
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    path.write_bytes(stored[:2] + segment + stored[2:])
    return cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize(
    ("orientation", "turn"), [(6, cv2.ROTATE_90_CLOCKWISE), (8, cv2.ROTATE_90_COUNTERCLOCKWISE), (3, cv2.ROTATE_180)]
)
def test_a_photo_is_turned_by_its_exif_data_unless_annotated_unturned(tmp_path, orientation, turn):
    stored = turned_jpeg(tmp_path / "a.jpg", orientation)
    shown = cv2.rotate(stored, turn)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), shown)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", turn=False), stored)
    record = ImageRecord(1, str(tmp_path / "a.jpg"), *shown.shape[:2])
    np.testing.assert_array_equal(read_record_image(record), shown)
    if turn != cv2.ROTATE_180:  # the size tells nothing there
        record = ImageRecord(1, str(tmp_path / "a.jpg"), *stored.shape[:2])
        np.testing.assert_array_equal(read_record_image(record), stored)
