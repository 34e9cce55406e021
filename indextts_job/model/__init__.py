"""The trained part of UnifiedVoice v2, its vocabulary, and its checkpoint files."""
