"""The graph that other programs run: photos in, boxes in the photos' own pixels out, with all that lies between.

Resizing and JPEG decoding give the very pixels that the predictor's OpenCV gives, so that its scores are the export's.
B photos of H×W pixels at most, D detections, M mask side; network: the predictor's graph (`build_constant_graph`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow.compat.v1 as tf

from FasterRCNN.engine.predictor import MIN_SIDE
from FasterRCNN.engine.serving_resize import Resizing

# A JPEG's EXIF data are in a segment of 64 kB at most, at the start of the file.
EXIF_BYTES = 1 << 17
# Tag 0x0112, of one 16-bit number, in the byte order that the first two letters tell. \C is any byte.
ORIENTATION = (
    r"\A\C*?Exif\x00\x00"
    r"(?:II\*\x00\C*?\x12\x01\x03\x00\x01\x00\x00\x00|MM\x00\*\C*?\x01\x12\x00\x03\x00\x00\x00\x01\x00)"
    r"([\x01-\x08])\C*\z"
)


@dataclass(frozen=True)
class ServingGraph:
    """A graph without variables. inputs: images or encoded, by name; outputs: those of `Detector.detect`, in photos.

    images: uint8 B×H×W×3 in RGB order. encoded: B strings, the bytes of JPEG or PNG files of any sizes.
    """

    graph: tf.Graph
    inputs: dict[str, tf.Tensor]
    outputs: dict[str, tf.Tensor]


def build_serving_graph(
    network: tf.Graph, resizing: Resizing, *, pad_multiple: int, inclusive_boxes: bool = False
) -> ServingGraph:
    """The network, of any batch size, between preparation and the way back to the photos.

    pad_multiple (pixels), inclusive_boxes: as of the Predictor.
    """
    graph = tf.Graph()
    # The decoder and whole numbers of 32 bits are at home on the host.
    with graph.as_default(), tf.device("/CPU:0"):
        images = tf.placeholder_with_default(tf.zeros([0, 0, 0, 3], tf.uint8), [None, None, None, 3], "images")
        encoded = tf.placeholder_with_default(tf.constant([], tf.string), [None], "encoded")
        is_encoded = tf.size(encoded) > 0

        def photo(i: tf.Tensor) -> tf.Tensor:
            return tf.cond(is_encoded, lambda: decode_photo(encoded[i]), lambda: images[i])

        count = tf.where(is_encoded, tf.size(encoded), tf.shape(images)[0])
        prepared, resized, photos = prepare_photos(photo, count, resizing, pad_multiple)
    outputs = _attach(graph, network, prepared, resized, photos, inclusive_boxes)
    return ServingGraph(graph, {"images": images, "encoded": encoded}, outputs)


def build_plain_graph(
    network: tf.Graph, resizing: Resizing, *, pad_multiple: int, inclusive_boxes: bool = False
) -> ServingGraph:
    """As `build_serving_graph`, of one photo, without strings, loops and branches: `images`, 1×H×W×3, alone.

    network: of one image.
    """
    graph = tf.Graph()
    with graph.as_default():
        images = tf.placeholder(tf.uint8, [1, None, None, 3], "images")
        photo = tf.shape(images)[1:3]
        size = resizing.new_size(photo)
        missing = _canvas(size, pad_multiple) - size
        prepared = tf.pad(resizing.resize(images, size), [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
        outputs = _attach(graph, network, prepared, size[None], photo[None], inclusive_boxes)
    return ServingGraph(graph, {"images": images}, outputs)


def _canvas(size: tf.Tensor, multiple: int) -> tf.Tensor:
    """The padded size, int32 2, as `to_image_list` chooses it for the Predictor."""
    return -(-tf.maximum(size, MIN_SIDE) // multiple) * multiple


def _attach(
    graph: tf.Graph,
    network: tf.Graph,
    prepared: tf.Tensor,
    resized: tf.Tensor,
    photos: tf.Tensor,
    inclusive_boxes: bool,
) -> dict[str, tf.Tensor]:
    """Adds the network behind the prepared photos, RGB; its outputs, boxes in the photos' pixels."""
    paths = (operation.name for operation in network.get_operations())
    names = [path.removeprefix("outputs/") for path in paths if path.startswith("outputs/")]
    with graph.as_default():
        inputs = {"image": prepared[..., ::-1], "image_size": resized}
        found = tf.import_graph_def(
            network.as_graph_def(), inputs, [f"outputs/{name}:0" for name in names], name="network"
        )
        outputs = dict(zip(names, found, strict=True))
        outputs["boxes"] = boxes_in_photos(outputs["boxes"], resized, photos, float(inclusive_boxes))
        return {name: tf.identity(output, name) for name, output in outputs.items()}


def prepare_photos(
    photo: Callable[[tf.Tensor], tf.Tensor], count: tf.Tensor, resizing: Resizing, multiple: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The photos photo(0), …, photo(count − 1), uint8 h×w×3 each, resized and padded at the bottom and on the right.

    Returns B×H×W×3 of the type that `resizing` gives, and int32 B×2 (h, w) of each photo after and before resizing.
    """

    def write(i: tf.Tensor, resized: tf.TensorArray, sizes: tf.TensorArray) -> tuple:
        image = photo(i)
        before = tf.shape(image)[:2]
        after = resizing.new_size(before)
        return i + 1, resized.write(i, resizing.resize(image, after)), sizes.write(i, tf.stack([after, before]))

    arrays = (
        tf.TensorArray(resizing.dtype, count, infer_shape=False, element_shape=[None, None, 3]),
        tf.TensorArray(tf.int32, count, element_shape=[2, 2]),
    )
    _, images, sizes = tf.while_loop(lambda i, *_: i < count, write, (0, *arrays))
    sizes = sizes.stack()
    canvas = _canvas(tf.reduce_max(sizes[:, 0], axis=0), multiple)

    def pad(i: tf.Tensor) -> tf.Tensor:
        image = images.read(i)
        missing = canvas - tf.shape(image)[:2]
        return tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])

    padded = tf.map_fn(pad, tf.range(count), fn_output_signature=tf.TensorSpec([None, None, 3], resizing.dtype))
    return padded, sizes[:, 0], sizes[:, 1]


def decode_photo(data: tf.Tensor) -> tf.Tensor:
    """RGB uint8 h×w×3 of a JPEG or PNG file's bytes, a JPEG turned as its EXIF data say.

    Transparency is left out. Bytes that are neither, or cut off, make TensorFlow raise InvalidArgumentError.
    """
    # The other methods are inaccurate; this is the one of libjpeg's own default, and of OpenCV.
    image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    head = tf.strings.substr(data, 0, EXIF_BYTES)
    code = tf.strings.regex_replace(head, ORIENTATION, r"\1")
    first_byte = tf.cast(tf.io.decode_raw(tf.strings.substr(code, 0, 1), tf.uint8)[0], tf.int32)
    return turn_photo(image, tf.where(tf.equal(tf.strings.length(code), 1), first_byte, 1))


def turn_photo(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The photo as EXIF's orientation 1..8 (1: as it is) wants it seen: …h×w×3 -> h×w×3, or w×h×3 from 5 on."""

    def turned() -> tf.Tensor:
        seen = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        seen = tf.cond(_is_one_of(orientation, (3, 4, 7, 8)), lambda: tf.reverse(seen, [0]), lambda: seen)
        return tf.cond(_is_one_of(orientation, (2, 3, 6, 7)), lambda: tf.reverse(seen, [1]), lambda: seen)

    return tf.ensure_shape(tf.cond(orientation > 1, turned, lambda: image), [None, None, 3])


def _is_one_of(value: tf.Tensor, choices: tuple[int, ...]) -> tf.Tensor:
    return tf.reduce_any(tf.equal(value, choices))


def boxes_in_photos(boxes: tf.Tensor, resized: tf.Tensor, photos: tf.Tensor, last_pixel: float = 0.0) -> tf.Tensor:
    """Boxes B×D×4 of the resized photos in the pixels of the photos, clipped to them; sizes int32 B×2 (h, w).

    last_pixel: of the far corner, so much stays as it is: 1 where boxes scale by their last pixel.
    """
    factor = tf.cast(tf.cast(photos, tf.float64) / tf.cast(resized, tf.float64), tf.float32)
    corner = tf.cast(photos, tf.float32)
    factor, corner = (tf.tile(value[:, None, ::-1], [1, 1, 2]) for value in (factor, corner))
    if last_pixel:
        fixed = tf.constant([0.0, 0.0, last_pixel, last_pixel])
        scaled = (boxes - fixed) * factor + fixed
    else:
        scaled = boxes * factor
    return tf.minimum(tf.maximum(scaled, 0.0), corner)
