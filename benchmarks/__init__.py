"""Measurements of jaxspec beside its rivals; README.md lists the scripts. No wheel has them."""
