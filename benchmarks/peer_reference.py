#!/usr/bin/env python3
"""Time tensorpack's own Mask R-CNN R50-FPN: benchmarks/peers.py runs this, in an interpreter that has tensorpack.

    python benchmarks/peer_reference.py FOLDER inference|training own|all REPEATS

FOLDER is examples/FasterRCNN of its repository; threads: its `own` session's (one an operation), or `all`.
The last line printed is JSON: the program, the seconds of each run, and how much was found.
"""
import importlib.util
import json
import logging
import os
import sys

# Its layers are those of Keras 2, which TensorFlow 2.16 and newer takes from tf_keras.
if importlib.util.find_spec("tf_keras"):
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# TensorFlow guesses the cost of its operations in vain, a kilobyte of warning each.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorpack  # noqa: E402
from peer_work import HEIGHT, NUM_CLASSES, NUM_OBJECTS, WIDTH, draw_objects, timed  # noqa: E402
from tensorpack import OfflinePredictor, PredictConfig  # noqa: E402
from tensorpack import tfv1 as tf  # noqa: E402
from tensorpack.tfutils.common import get_default_sess_config  # noqa: E402
from tensorpack.tfutils.sesscreate import NewSessionCreator  # noqa: E402
from tensorpack.tfutils.tower import TowerContext  # noqa: E402
from tensorpack.utils import logger  # noqa: E402
from tensorpack.utils.naming import MOVING_SUMMARY_OPS_KEY  # noqa: E402


def make_model(folder):
    """Return the reference's model and its configuration, for the work of peer_work.py."""
    # Its modules are called config, data, utils: in this project's place, never beside them.
    sys.path[0] = folder
    for name, kind in {"bool": bool, "float": float, "int": int}.items():
        if not hasattr(np, name):
            setattr(np, name, kind)  # names of old NumPy
    from config import config, finalize_configs

    from modeling.generalized_rcnn import ResNetFPNModel

    config.MODE_FPN = config.MODE_MASK = True
    config.DATA.NUM_CATEGORY = NUM_CLASSES
    # As for training it asks for a GPU.
    finalize_configs(is_training=False)
    config.freeze(False)
    config.TRAIN.NUM_GPUS = 8  # fewer would sum the gradients of several steps
    return ResNetFPNModel(), config


def session_config(threads):
    settings = get_default_sess_config()
    if threads == "all":
        settings.intra_op_parallelism_threads = 0
    return settings


def bound_activations(session):
    """Set the last scale of each residual block, which starts at 0, as benchmarks/peer_torchvision.py does."""
    for variable in tf.global_variables():
        if variable.op.name.endswith("conv3/bn/gamma"):
            variable.load(np.full(variable.shape, 0.25, np.float32), session)


def spread_scores(session, image):
    """Scale the class scores of random weights to a deviation of 1, as benchmarks/peer_torchvision.py does."""
    scores = session.run("fastrcnn/outputs/class/output:0", {"image:0": image})
    weights, = (v for v in tf.global_variables() if v.op.name == "fastrcnn/outputs/class/W")
    weights.load(session.run(weights) / scores.std(), session)


def time_inference(model, config, image, threads, repeats):
    """Time the reference's own predictor, and its network with the weights made constants."""
    inputs, outputs = model.get_inference_tensor_names()
    settings = session_config(threads)
    predictor = OfflinePredictor(PredictConfig(model=model, input_names=inputs, output_names=outputs,
                                               session_creator=NewSessionCreator(config=settings)))
    with predictor.graph.as_default() as graph:
        bound_activations(predictor.sess)
        spread_scores(predictor.sess, image)
        proposals = predictor.sess.run("generate_fpn_proposals/boxes:0", {"image:0": image})
        constant = tf.graph_util.convert_variables_to_constants(predictor.sess, graph.as_graph_def(), outputs)
    with tf.Graph().as_default(), tf.Session(config=settings) as session:
        tf.import_graph_def(constant, name="")
        run = session.make_callable([f"{name}:0" for name in outputs], ["image:0"])
        boxes, *_ = run(image)
        return {"seconds": timed(lambda: predictor(image), repeats),
                "also": {"weights as constants": timed(lambda: run(image), repeats)},
                "counts": {"proposals": len(proposals), "detections": len(boxes)}}


def time_training(model, config, image, threads, repeats):
    """Time a step as the reference's trainer takes it: loss, gradients, momentum, and its moving averages."""
    with tf.Graph().as_default():
        inputs = {spec.name: tf.placeholder(spec.dtype, spec.shape, spec.name) for spec in model.get_input_signature()}
        with TowerContext("", is_training=True):
            cost = model.build_graph(*inputs.values())
        step = [model.get_optimizer().minimize(cost), tf.get_collection(MOVING_SUMMARY_OPS_KEY)]
        with NewSessionCreator(config=session_config(threads)).create_session() as session:
            bound_activations(session)
            values = training_values(config, image)
            run = session.make_callable([cost, step], list(inputs.values()))
            loss, _ = run(*(values[name] for name in inputs))
            if not np.isfinite(loss):
                raise ValueError(f"the reference's loss is {loss} at random weights: its time would mean nothing")
            return {"seconds": timed(lambda: run(*(values[name] for name in inputs)), repeats),
                    "counts": {"objects": NUM_OBJECTS}}


def training_values(config, image):
    """Return what the reference's loader gives for an image, by the names of the model's inputs."""
    from data import TrainingDataPreprocessor

    boxes, labels, masks = draw_objects()
    levels = TrainingDataPreprocessor(config).get_multilevel_rpn_anchor_input(image, boxes, np.zeros(len(boxes), int))
    values = {"image": image, "gt_boxes": boxes, "gt_labels": labels, "gt_masks_packed": np.packbits(masks, axis=-1)}
    for level, (anchor_labels, anchor_boxes) in enumerate(levels, start=2):
        values[f"anchor_labels_lvl{level}"] = anchor_labels
        values[f"anchor_boxes_lvl{level}"] = anchor_boxes
    return values


def main(folder, what, threads, repeats):
    logger.setLevel(logging.ERROR)
    model, config = make_model(folder)
    tf.set_random_seed(0)
    image = np.random.default_rng(0).uniform(0, 255, (HEIGHT, WIDTH, 3)).astype(np.float32)
    time_it = {"inference": time_inference, "training": time_training}[what]
    result = time_it(model, config, image, threads, int(repeats))
    named = {"own": "its own session", "all": f"{os.cpu_count()} threads"}[threads]
    program = f"reference (tensorpack {tensorpack.__version__}, TensorFlow {tf.__version__}), {named}"
    print(json.dumps({"program": program, **result}))


if __name__ == "__main__":
    main(*sys.argv[1:])
