"""Sums over the devices of a training step, for synchronised batch normalisation and what processes must agree on.

A sum is `sum_over_devices(x, name)`: x has the same shape on every device, `name` is the same on every device (apart
from a tower's prefix) and differs from sum to sum. The gradient of a sum is the sum of the devices' gradients.
"""
import re
import zlib

import tensorflow.compat.v1 as tf

GROUP_KEY = 71  # of the collective group; any number that tensorpack's own collectives do not use


def sum_over_gpus(count):
    """Return the sum over `count` devices of one process, each of which builds the same sums."""
    def reduce(x, name):
        return tf.raw_ops.CollectiveReduce(
            input=x, group_size=count, group_key=GROUP_KEY, instance_key=zlib.crc32(name.encode()) & 0x7FFFFFFF,
            merge_op="Add", final_op="Id", subdiv_offsets=[0])
    return differentiable(reduce)


def sum_over_processes():
    """Return the sum over the processes of a Horovod job."""
    import horovod.tensorflow as hvd

    def reduce(x, name):
        return hvd.allreduce(x, op=hvd.Sum, name=name.replace("/", "_"))
    return differentiable(reduce)


def average_over_processes(*, half_on_wire):
    """Return the function that averages a list of gradients over the processes of a Horovod job.

    half_on_wire: they are exchanged as float16.
    """
    import horovod.tensorflow as hvd

    compression = hvd.Compression.fp16 if half_on_wire else hvd.Compression.none
    return lambda grads: [hvd.allreduce(grad, op=hvd.Average, compression=compression, name=f"gradient_{i}")
                          for i, grad in enumerate(grads)]


def differentiable(reduce):
    """Return sum_over_devices from reduce(x, name), a sum without a gradient."""
    def sum_over_devices(x, name):
        plain = re.sub(r"^tower\d+/", "", name)
        return tf.custom_gradient(lambda x: (reduce(x, plain), lambda dy: reduce(dy, f"{plain}/gradient")))(x)
    return sum_over_devices
