"""What is left of a run when one of its files is damaged."""
