"""Multiple-choice questions in Chinese: read, prompt, score (chapter 09)."""
