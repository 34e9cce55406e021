"""One stream of events and its readers: console, TensorBoard, JSON lines."""
