"""What this machine has, and the plan made from it."""
