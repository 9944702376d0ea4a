"""What an adapted model cannot be trusted with, measured: bias, and the other limits of chapter 10."""
