"""What XLA compiles: one program of the operations made in a scope, and another of their gradients."""
from contextlib import nullcontext

import tensorflow.compat.v1 as tf


def compiled(wanted=True):
    """Return a context whose operations XLA compiles, anew for each shape of their inputs; `wanted` False: as usual.

    What XLA cannot compile runs as usual between its programs.
    """
    return tf.xla.experimental.jit_scope(separate_compiled_gradients=True) if wanted else nullcontext()
