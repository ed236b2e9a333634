"""The index of a market: codes find candidates for a user, exact scores rank them.

`index` holds `Index`, what users see; `encoder` the codes and what fits them; `codes` where codes
lie and how they grow; `filter` how a score follows from codes, and how many candidates a recall
needs; `search` the compiled search. `jaxspec.match` asks an index as it asks a market: importing
this package registers it there. Nothing here reads or writes files.
"""

from jaxspec.index.index import Index

__all__ = ["Index"]
