"""Records of data sets -> training batches, made by worker processes ahead of the network."""
