"""Makers of large markets and of users who ask them, for the measurements of speed."""
