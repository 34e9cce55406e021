"""The trainer: fine-tunes IndexTTS2's GPT, survives preemption, keeps one integer of position."""
