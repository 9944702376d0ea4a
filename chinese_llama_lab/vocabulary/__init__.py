"""Extending a vocabulary: SentencePiece merge, continued byte-level BPE, and the new embedding rows."""
