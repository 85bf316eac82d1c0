"""Set before any test imports TensorFlow: no start-up messages, and the CPU even where there is a GPU."""

import gc
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="module", autouse=True)
def _free_graphs_after_each_module():
    """Sessions and graphs refer to each other: their memory would wait long for the collector.

    And TensorFlow registers each function with a gradient of its own for good, with the graph that it was made in.
    """
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import ops

        functions = ops.gradient_registry._registry
        for name in [name for name in functions if name.startswith("CustomGradient-")]:
            del functions[name]
    gc.collect()
