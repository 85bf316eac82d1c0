"""Set before any test imports TensorFlow: no start-up messages, and the CPU even where there is a GPU."""

import gc
import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="module", autouse=True)
def _free_graphs_after_each_module():
    """Sessions and graphs refer to each other: their memory would wait long for the collector."""
    yield
    gc.collect()
