"""Photos from files, whole or refused."""

import cv2
import numpy as np
import pytest

from FasterRCNN.imaging.read import read_image


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


def test_a_jpeg_with_trailing_bytes_is_whole(tmp_path):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), make_photo())
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert read_image(path).shape == (40, 60, 3)


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
