"""All of a market on disk in memory, and a market in memory as one segment on disk.

`save_market` puts one version in force, in the folder's format (`jaxspec.files.folders.versions`),
and forgets those before it. `load_rows` reads all rows of an opened version and checks them, and
for a sample of them that derived arrays follow from the others. Called through `Market.save`,
`Market.load` and `MarketFolder.load`.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxspec.base import reading, register_format
from jaxspec.files.bounded_json import require
from jaxspec.files.folders.commits import Writer, writing
from jaxspec.files.folders.learnwares import of_market
from jaxspec.files.folders.row_checks import check_derived, check_rows
from jaxspec.files.folders.view import View, view_of
from jaxspec.market import (
    SCHEMA,
    GrowingArrays,
    Ledger,
    Making,
    Market,
    Rows,
    capacity,
    evenly_spaced,
    finish_rows,
)

__all__ = ["commit_market", "load_market", "load_rows", "save_market"]

WARM_ROWS = 8  # as many as an `add` of one learnware writes
SAMPLED = 1024  # learnwares whose derived arrays are computed anew
ROWS_TOGETHER = 1 << 16  # that are checked together


def save_market(market: Market, target: Path) -> None:
    """Write a market to a folder; what was there stays in force until the new one is complete.

    Earlier versions are forgotten, but for those that somebody reads.

    Raises:
        FileError: an empty market, a folder that holds something else or that cannot be made, a
            writer beside this one, or numbers that `load_market` would refuse; what was there is
            not changed.
    """
    with reading(target):
        require(len(market) > 0, "expected at least one learnware, got an empty market")
        with writing(target, create=True) as writer:
            commit_market(writer, market)


def commit_market(writer: Writer, market: Market) -> None:
    """Put a market in memory in force, and forget what was there before.

    Raises:
        ValueError, TypeError, OSError: as `Writer.commit`.
    """
    require(len(market) > 0, "expected at least one learnware, got an empty market")
    writer.commit(
        market.space,
        market.precision,
        [],
        of_market(market, writer.next_serial),
        limits=market.limits,
        change=f"save {len(market)}",
        keep=1,
        extensions={},
    )


def load_market(target: Path, cls: type[Market] = Market) -> Market:
    """Read the version in force: the same numbers, and room for more learnwares.

    Raises:
        FileError: not such a folder, of another version, damaged, or with a field that is not as
            it must be; the message names the folder and the field.
    """
    with reading(target):
        view = view_of(target, verify=True)
        try:
            return load_rows(view, cls, only_use=True)
        finally:
            view.close()


def load_rows(view: View, cls: type[Market] = Market, *, only_use: bool = False) -> Market:
    """Return the market of an open version, with spare rows.

    Args:
        view: the version.
        cls: of what is returned.
        only_use: whether the view is not used any more, so that the market may take its ledger.

    Raises:
        ValueError, TypeError, OSError: something is not as it must be.
    """
    opened, contents, ledger = view.opened, view.contents, view.ledger
    count, layout = len(contents), contents.layout
    if count == 0:
        return cls(opened.space, precision=contents.precision, limits=opened.manifest.limits)
    total = capacity(count)
    shared = GrowingArrays(
        opened.space,
        contents.precision,
        None,
        contents.origin,
        with_landmarks=layout.landmarks > 0,
        ledger=ledger if only_use else ledger.part(range(count)),
    )
    names = [name for name, one in SCHEMA.items() if one.per_row and one.saved]
    host = contents.memory(names, total, first_unused=count)
    contents.start(host, 0, count).wait()
    for start in range(0, count, ROWS_TOGETHER):
        part = {n: v[start : min(start + ROWS_TOGETHER, count)] for n, v in host.items()}

        def owner(row: int, start: int = start) -> str:
            return ledger.ids[start + row]

        check_rows(part, owner)
    _check_sample(host, count, shared.making, ledger)
    rows = {}
    for name, example in layout.empty(1, contents.precision).items():
        derive = SCHEMA[name].derive
        if not SCHEMA[name].saved and derive is not None:
            rows[name] = jnp.array(derive(host, host, shared.making))
        elif name not in host:  # the market lacks this optional part
            rows[name] = jnp.zeros((total, *example.shape[1:]), example.dtype)
    for name in list(host):
        rows[name] = jnp.array(host.pop(name))  # so that no two copies of everything exist
    shared.place(rows)
    _compile_growth(shared, count)
    return cls.from_parts(shared, count, limits=opened.manifest.limits)


def _check_sample(host: Rows, count: int, making: Making, ledger: Ledger) -> None:
    """Check that derived arrays follow from the others, for some of the learnwares.

    For all of them it would take several times as long as the reading itself; `verify` does that.
    """
    at = evenly_spaced(np.arange(count), SAMPLED)
    sample = {name: value[at] for name, value in host.items()}
    check_derived(sample, making, lambda row: ledger.ids[at[row]])


def _compile_growth(shared: GrowingArrays, count: int) -> None:
    """Write unused rows to the first spare ones: the first `add` finds its functions compiled."""
    layout, precision = shared.layout, shared.precision
    size = min(WARM_ROWS, shared.total - count)
    read = {
        name: value
        for name, value in layout.empty(size, "float32").items()
        if SCHEMA[name].read is not None
    }
    read["has_probe"] = np.full(size, float(layout.landmarks > 0), np.float32)
    finish_rows(read, shared.making)
    shared.write(count, layout.empty(size, precision))


register_format(Market, save=save_market, load=load_market)
