"""TensorFlow functions without state or configuration."""
