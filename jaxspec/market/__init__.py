"""Markets: the arrays and names of many specifications, how they grow and where they lie.

`schema` declares every array once; `growing_arrays` holds the rows that versions of a market share;
`ledger` holds ids and names; `row_making` makes rows for files, and `extension` is what may be
saved beside a market; `devices` spreads rows over a mesh; `calibration` is what a market finds out
about itself. `Market` is the value that users see. Nothing here scores.
"""

from jaxspec.market.about_columns import AboutColumns
from jaxspec.market.admission import MAX_ID, check_specification, checked_mapping, layout_for
from jaxspec.market.calibration import (
    SAMPLE,
    Calibration,
    agreement,
    calibrate,
    chances,
    following,
    region,
    witness,
)
from jaxspec.market.derived import CHANCE_STEPS, Making, Rows, class_grams
from jaxspec.market.devices import (
    by_row,
    checked_mesh,
    device_count,
    empty_rows,
    in_float32,
    on_mesh,
    over_devices,
    partition_specs,
    replicated,
    write_rows,
)
from jaxspec.market.extension import MarketExtension, PackedExtension
from jaxspec.market.growing_arrays import GrowingArrays, capacity
from jaxspec.market.ledger import Entry, Ledger
from jaxspec.market.market import Market, as_limits
from jaxspec.market.precision import PRECISIONS, check_precision, decode_points, dtype_of
from jaxspec.market.row_making import MadeRows, make_rows, making_of
from jaxspec.market.sampling import (
    SAMPLED_ARRAYS,
    calibrate_market,
    calibrate_rows,
    evenly_spaced,
    most_publish_probes,
    sample_slots,
)
from jaxspec.market.schema import (
    FIXED_ARRAYS,
    ROW_ARRAYS,
    SCHEMA,
    ArrayDeclaration,
    Layout,
    MarketArrays,
    finish_rows,
)

__all__ = [
    "as_limits",
    "CHANCE_STEPS",
    "FIXED_ARRAYS",
    "MAX_ID",
    "PRECISIONS",
    "ROW_ARRAYS",
    "SAMPLE",
    "SAMPLED_ARRAYS",
    "SCHEMA",
    "AboutColumns",
    "ArrayDeclaration",
    "Calibration",
    "Entry",
    "GrowingArrays",
    "Layout",
    "Ledger",
    "MadeRows",
    "Making",
    "Market",
    "MarketArrays",
    "MarketExtension",
    "PackedExtension",
    "Rows",
    "agreement",
    "by_row",
    "calibrate",
    "calibrate_market",
    "calibrate_rows",
    "capacity",
    "chances",
    "check_precision",
    "check_specification",
    "checked_mapping",
    "checked_mesh",
    "class_grams",
    "decode_points",
    "device_count",
    "dtype_of",
    "empty_rows",
    "evenly_spaced",
    "finish_rows",
    "following",
    "in_float32",
    "layout_for",
    "make_rows",
    "making_of",
    "on_mesh",
    "over_devices",
    "partition_specs",
    "region",
    "replicated",
    "most_publish_probes",
    "sample_slots",
    "witness",
    "write_rows",
]
