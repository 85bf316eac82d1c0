"""Faster, Mask and Cascade R-CNN with FPN, in graph-mode TensorFlow."""
