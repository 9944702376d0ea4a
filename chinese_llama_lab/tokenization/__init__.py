"""One interface over the field's tokenizers, and what each costs a Chinese reader."""
