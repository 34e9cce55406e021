"""The SentencePiece tokenizer: load it, normalise text for it, extend it to a new language."""
