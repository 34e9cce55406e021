"""The free-running check: the model speaks validation records by itself, and figures judge its codes."""
