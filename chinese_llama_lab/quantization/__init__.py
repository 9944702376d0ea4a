"""NF4 in pure torch, bit-equal to bitsandbytes, with FP4, INT4 and INT8 beside it (chapter 07)."""
