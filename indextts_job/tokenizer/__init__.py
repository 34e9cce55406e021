"""The SentencePiece tokenizer before training: text cleanup, extension to a new language, and what must hold then."""
