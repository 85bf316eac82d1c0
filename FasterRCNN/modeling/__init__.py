"""The parts of the detectors, and the detector that joins them."""
