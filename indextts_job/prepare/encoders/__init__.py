"""The published encoders that make codes, conditions and emotion vectors of audio; the only part that needs torch."""
