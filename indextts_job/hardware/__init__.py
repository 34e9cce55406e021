"""The facts about this machine, and the plan of an attempt that follows from them."""
