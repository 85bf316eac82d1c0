"""Work on pictures with NumPy and OpenCV."""
