"""Measurements of time and memory, each beside a rival or beside the limit of the machine."""
