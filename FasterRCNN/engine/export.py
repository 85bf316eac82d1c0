"""A trained detector as a file that other programs run: SavedModel and frozen graph, written and opened."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow.compat.v1 as tf

from FasterRCNN.engine.predictor import session_config
from FasterRCNN.engine.serving_graph import ServingGraph
from FasterRCNN.structures import Categories

# Signature to its input.
SIGNATURES = {
    tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY: "images",
    "encoded": "encoded",
}


def write_saved_model(serving: ServingGraph, folder: str | Path, categories: Categories) -> None:
    """Writes a SavedModel, with the classes as its assets labels.txt and categories.json; `folder` must not exist."""
    with _copy_of(serving), tempfile.TemporaryDirectory() as assets:
        for file in write_classes(categories, Path(assets)):
            tf.add_to_collection(tf.GraphKeys.ASSET_FILEPATHS, tf.constant(str(file), name="asset"))
        tensor = tf.get_default_graph().get_tensor_by_name
        outputs = {name: tensor(output.name) for name, output in serving.outputs.items()}
        signatures = {
            name: tf.saved_model.predict_signature_def({key: tensor(serving.inputs[key].name)}, outputs)
            for name, key in SIGNATURES.items()
        }
        builder = tf.saved_model.Builder(str(folder))
        with tf.Session(config=session_config()) as session:
            builder.add_meta_graph_and_variables(
                session,
                [tf.saved_model.tag_constants.SERVING],
                signatures,
                assets_collection=tf.get_collection(tf.GraphKeys.ASSET_FILEPATHS),
            )
        builder.save()


def write_frozen(serving: ServingGraph, file: str | Path, categories: Categories) -> None:
    """Writes a binary GraphDef without variables; the tensors class_names and category_ids hold the classes."""
    with _copy_of(serving) as graph:
        tf.constant([name.encode() for name in categories.names], tf.string, name="class_names")
        tf.constant(list(categories.ids), tf.int64, name="category_ids")
        Path(file).write_bytes(graph.as_graph_def().SerializeToString())


@contextmanager
def _copy_of(serving: ServingGraph) -> Iterator[tf.Graph]:
    """A copy of the graph, as default graph: what a format adds is not in the next one."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(serving.graph.as_graph_def(), name="")
        yield graph


def write_classes(categories: Categories, folder: Path) -> list[Path]:
    """Writes labels.txt, line n the name of label n, and categories.json, with the category ids; returns both."""
    labels, described = folder / "labels.txt", folder / "categories.json"
    labels.write_text("".join(f"{name}\n" for name in categories.names), encoding="utf-8")
    entries = describe_classes(categories)
    described.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [labels, described]


def describe_classes(categories: Categories) -> list[dict]:
    """Each class for JSON: its label 1..K, its id in the data set, its name."""
    pairs = zip(categories.ids, categories.names, strict=True)
    return [{"label": label, "id": int(id), "name": name} for label, (id, name) in enumerate(pairs, start=1)]


@contextmanager
def open_saved_model(folder: str | Path) -> Iterator[Callable[..., dict]]:
    """run(images=…) or run(encoded=…) -> outputs, NumPy both, in a session of its own."""
    with tf.Session(graph=tf.Graph(), config=session_config()) as session:
        loaded = tf.saved_model.loader.load(session, [tf.saved_model.tag_constants.SERVING], str(folder))
        signatures = {key: loaded.signature_def[name] for name, key in SIGNATURES.items()}

        def run(**values) -> dict:
            ((key, value),) = values.items()
            outputs = {name: info.name for name, info in signatures[key].outputs.items()}
            return session.run(outputs, {signatures[key].inputs[key].name: value})

        yield run


@contextmanager
def open_frozen(file: str | Path, output_names: Iterable[str]) -> Iterator[Callable[..., dict]]:
    """As `open_saved_model`, of a frozen graph."""
    definition = tf.GraphDef.FromString(Path(file).read_bytes())
    with tf.Graph().as_default() as graph, tf.Session(graph=graph, config=session_config()) as session:
        tf.import_graph_def(definition, name="")
        outputs = {name: f"{name}:0" for name in output_names}
        yield lambda **values: session.run(outputs, {f"{key}:0": value for key, value in values.items()})
