"""Set before any test imports TensorFlow: no start-up messages, and the CPU even where there is a GPU."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
