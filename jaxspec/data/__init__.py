"""The embedded demo data; README.md here has source and licence."""
