"""A small dataset and model in the real formats, and two runs on them that are compared bit for bit."""
