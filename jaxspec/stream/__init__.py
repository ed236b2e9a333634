"""Streams: `match` over a `MarketFolder`, block by block, without loading the market.

Importing this package registers folders as places that can be asked. Nothing here writes to a
market.
"""

from jaxspec.stream import stream as _registered  # noqa: F401

__all__: list[str] = []
