"""What comes from outside: fetching it, reading it as documents, loading base models."""
