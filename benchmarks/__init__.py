"""Measurements of jaxspec beside its rivals; README.md lists the scripts. The wheel has none of them."""
