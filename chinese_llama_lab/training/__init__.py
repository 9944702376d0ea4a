"""Templates, packing, LoRA, pre-training, instruction tuning, and bits per character (chapters 04 and 05)."""
