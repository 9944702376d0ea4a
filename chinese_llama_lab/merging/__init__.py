"""The parts of `chinese_llama_lab.adapters`: merging LoRA adapters into a base."""
