"""Memory, speed and generation: what a model needs and what it gives (chapter 08)."""
