"""What every other package of jaxspec stands on: checks, padding, pytrees, precision and files.

`checks` holds the checks of arguments at the public edge, with `foreign_arrays` for arrays of
other libraries; `pytrees` registers dataclasses; `padding`, `platform`, `largest` and
`low_precision` serve compiled functions; `held_arrays` serves arrays that grow in place;
`persistence`, `atomic_files` and `file_locks` serve whatever is saved; `overlap` and `pace` serve
long jobs. Nothing here knows of kernels, specifications or markets.
"""

from jaxspec.base.atomic_files import (
    FileError,
    PathLike,
    as_path,
    existing_path,
    opened_atomically,
    reading,
    sync_to_disk,
    write_atomically,
)
from jaxspec.base.checks import (
    as_class_labels,
    as_features,
    as_key,
    as_labels,
    as_number,
    as_probabilities,
    as_size,
    as_weights,
    is_concrete,
)
from jaxspec.base.compilation_cache import cache_compilations
from jaxspec.base.file_locks import FileLock, LocksUnsupportedError, try_exclusive, try_shared
from jaxspec.base.foreign_arrays import to_numpy
from jaxspec.base.held_arrays import Holder
from jaxspec.base.largest import largest
from jaxspec.base.low_precision import (
    PARTS,
    integer_parts,
    integer_sum,
    parts_of,
    rounded,
    stored_chunk,
    stored_gram,
    stored_product,
)
from jaxspec.base.overlap import Behind, ahead
from jaxspec.base.pace import Pace
from jaxspec.base.padding import bucket, pad_to
from jaxspec.base.persistence import Persistent, register_format
from jaxspec.base.platform import device_kind, on_processor
from jaxspec.base.pytrees import register

__all__ = [
    "PARTS",
    "Behind",
    "FileError",
    "Holder",
    "FileLock",
    "LocksUnsupportedError",
    "Pace",
    "PathLike",
    "Persistent",
    "ahead",
    "as_class_labels",
    "as_features",
    "as_key",
    "as_labels",
    "as_number",
    "as_path",
    "as_probabilities",
    "as_size",
    "as_weights",
    "bucket",
    "cache_compilations",
    "device_kind",
    "existing_path",
    "opened_atomically",
    "integer_parts",
    "integer_sum",
    "is_concrete",
    "largest",
    "on_processor",
    "pad_to",
    "parts_of",
    "reading",
    "register",
    "register_format",
    "rounded",
    "stored_chunk",
    "stored_gram",
    "stored_product",
    "sync_to_disk",
    "to_numpy",
    "try_exclusive",
    "try_shared",
    "write_atomically",
]
