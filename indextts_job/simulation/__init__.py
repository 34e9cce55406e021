"""What a run would cost on machines that may vanish."""
