"""A small world in the real formats, and a run in it that is preempted and compared bit for bit."""
