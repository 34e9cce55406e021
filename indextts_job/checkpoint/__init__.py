"""What a checkpoint is, how it becomes visible, and which ones are kept."""
