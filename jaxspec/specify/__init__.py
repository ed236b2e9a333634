"""specify."""
