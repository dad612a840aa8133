"""Floor 1: what a video is. PyAV, OpenCV and NumPy; no Ray, no torch."""
