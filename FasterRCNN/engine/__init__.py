"""What runs a model: training, weights, prediction and export."""
