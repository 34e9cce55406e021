"""The trainer: fine-tunes IndexTTS's GPT, survives preemption, keeps one integer of position."""
