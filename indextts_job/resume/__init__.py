"""Whether a run may go on from a checkpoint, and from which."""
