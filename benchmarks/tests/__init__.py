"""Tests of the data makers, the market makers and the measuring tools; they need no data sets."""
