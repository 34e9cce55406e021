"""Tokenizers, SentencePiece models and files of ranks: load them, prepare text, encode it, extend to a language."""
