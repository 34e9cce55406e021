"""Stop requests: signals and clouds' notices that ask for a stop, and the deadline that they set."""
