"""Data of users from files: .npz, .npy and .csv, as arrays and names.

`read_data` gives features with labels and whatever else a file holds, `read_features` features
alone, `read_matrix` one further array such as a model's outputs, `read_labels` labels from a file
of their own. Tables are read by `csv_tables`, folders of pictures by `pictures`. Nothing is
unpickled. What the numbers must be is checked by the library; here only what a file must hold is.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.applications.command.csv_tables import CsvTable, read_csv
from jaxspec.applications.command.errors import FileRefused, WrongUse
from jaxspec.applications.command.output import require_input

__all__ = [
    "Data",
    "class_names_of",
    "read_data",
    "read_features",
    "read_labels",
    "read_matrix",
    "settled_labels",
]

# The names under which an .npz may hold each array, in the order in which they are looked for.
KEYS = {
    "features": ("features", "Z", "X"),
    "labels": ("labels", "y"),
    "class_names": ("class_names",),
    "teacher": ("teacher",),
    "probe_outputs": ("probe_outputs",),
    "hidden": ("hidden",),
}
DATA_SUFFIXES = (".npz", ".npy", ".csv")
LABEL_COLUMNS = ("label", "labels", "class", "y", "target")


@dataclasses.dataclass(frozen=True)
class Data:
    """What a user's file holds; what it lacks is None.

    Attributes:
        path: of the file.
        features: (n, d).
        labels: (n,) integers or names.
        class_names: the classes that integer labels count.
        teacher, probe_outputs, hidden: as `jaxspec.specify` takes them.
    """

    path: Path
    features: Any
    labels: Any = None
    class_names: tuple[str, ...] | None = None
    teacher: Any = None
    probe_outputs: Any = None
    hidden: Any = None


def read_data(path: Path, *, labels: str | None = None, ignore: Sequence[str] = ()) -> Data:
    """Return the features of a file with its labels, and what else it holds.

    Args:
        path: an .npz, .npy or .csv file.
        labels: a column of the table, an array of the .npz, or a file with labels.
        ignore: columns of a table that are no features.

    Raises:
        FileRefused: it is missing, of another kind, or lacks what it must hold.
    """
    suffix = _suffix(path)
    if suffix == ".csv":
        return _from_table(read_csv(path), labels, ignore)
    if ignore:
        raise WrongUse(f"--ignore: {path} has no columns; only tables (.csv) have")
    if suffix == ".npy":
        given = None if labels is None else read_labels(Path(labels))
        return Data(path, _read_array(path), given)
    arrays = _read_arrays(path)
    found = {field: _chosen(path, arrays, field) for field in KEYS}
    if found["features"] is None:
        names = ", ".join(KEYS["features"])
        raise FileRefused(path, f"expected an array called {names}, got {_names_in(arrays)}")
    if labels is not None:
        found["labels"] = arrays[labels] if labels in arrays else read_labels(Path(labels))
    names = found["class_names"]
    if found["labels"] is not None:
        found["labels"] = _texts(found["labels"])
    listed = None if names is None else tuple(str(name) for name in np.ravel(_texts(names)))
    return Data(path, **{**found, "class_names": listed})


def read_features(path: Path) -> Any:
    """Return features (n, d) alone; labels in the file are left out.

    Raises:
        FileRefused: as `read_data`.
    """
    suffix = _suffix(path)
    if suffix == ".csv":
        found = read_csv(path)
        return found.numbers([name for name in found.columns if name not in LABEL_COLUMNS])
    if suffix == ".npy":
        return _read_array(path)
    arrays = _read_arrays(path)
    chosen = _chosen(path, arrays, "features")
    return _only(path, arrays, "probe") if chosen is None else chosen


def read_matrix(path: Path, field: str) -> Any:
    """Return one array of a file, such as a model's outputs (n, C).

    Args:
        path: an .npy file, a .csv table of numbers, or an .npz with one array or with `field`.
        field: what the array is called in an .npz.

    Raises:
        FileRefused: as `read_data`.
    """
    suffix = _suffix(path)
    if suffix == ".csv":
        found = read_csv(path)
        return found.numbers(found.columns)
    return _read_array(path) if suffix == ".npy" else _only(path, _read_arrays(path), field)


def read_labels(path: Path) -> Any:
    """Return labels (n,) from an .npy, an .npz, a .csv with one column, or a text, one a line.

    Raises:
        FileRefused: as `read_data`.
    """
    require_input(path)
    if path.suffix.lower() == ".csv":
        found = read_csv(path)
        named = [name for name in found.columns if name in LABEL_COLUMNS] or found.columns
        if len(named) != 1:
            raise FileRefused(path, f"expected one column of labels, got {len(found.columns)}")
        return found.texts(named[0])
    if path.suffix.lower() == ".npy":
        return _texts(_read_array(path))
    if path.suffix.lower() == ".npz":
        return _texts(_only(path, _read_arrays(path), "labels"))
    return _lines(path)


def class_names_of(option: str | None) -> tuple[str, ...] | None:
    """Return class names from an option: a text file with one a line, or names between commas."""
    if option is None:
        return None
    path = Path(option)
    if path.suffix.lower() == ".txt":
        require_input(path)
        return tuple(_lines(path))
    return tuple(name.strip() for name in option.split(",") if name.strip())


def settled_labels(data: Data, class_names: tuple[str, ...] | None) -> tuple[Any, Any]:
    """Return labels and class names as the library takes them.

    Texts that are whole numbers count classes where names are given and are not these texts.

    Raises:
        FileRefused: there are no labels, or integers without names.
    """
    names = data.class_names if class_names is None else class_names
    if data.labels is None:
        raise FileRefused(data.path, "it has no labels; add an array `labels`, or pass --labels")
    labels = data.labels
    texts = isinstance(labels, list)
    if not texts and names is None:
        raise FileRefused(
            data.path,
            "its labels are numbers and nothing names the classes; add an array `class_names`, or "
            "pass --class-names a,b,c",
        )
    if texts and names is not None and not set(labels) <= set(names):
        strange = next(label for label in labels if label not in names)
        if all(label.strip().isdigit() for label in labels):
            return np.array([int(label) for label in labels]), names
        raise FileRefused(
            data.path,
            f"the label {strange!r:.80} is none of the classes {', '.join(names)!r:.200}",
        )
    return labels, names


def _from_table(found: CsvTable, labels: str | None, ignore: Sequence[str]) -> Data:
    for name in ignore:
        found.require_column(name, "--ignore")
    column = labels if labels in found.columns else None
    if labels is None:
        column = next((name for name in LABEL_COLUMNS if name in found.columns), None)
    if labels is not None and column is None and not Path(labels).exists():
        found.require_column(labels, "--labels")
    left_out = {column, *ignore}
    features = found.numbers([name for name in found.columns if name not in left_out])
    if column is not None:
        return Data(found.path, features, found.texts(column))
    return Data(found.path, features, None if labels is None else read_labels(Path(labels)))


def _suffix(path: Path) -> str:
    require_input(path)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in DATA_SUFFIXES:
        kind = "a folder" if path.is_dir() else f"a name that ends in {suffix!r}"
        raise FileRefused(path, f"expected {', '.join(DATA_SUFFIXES)}, got {kind}")
    return suffix


def _read_array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FileRefused(path, _why_not("a numpy array (.npy)", error)) from error
    if not isinstance(found, np.ndarray):
        raise FileRefused(path, "expected one array, got several; name the file .npz")
    return found


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise FileRefused(path, _why_not("numpy arrays (.npz)", error)) from error


def _why_not(expected: str, error: Exception) -> str:
    if "Object arrays" in str(error):
        return (
            "it holds Python objects, which are never read; save texts with "
            "np.array(names, dtype=str)"
        )
    return f"expected {expected}, got something else or a damaged file"


def _chosen(path: Path, arrays: dict[str, np.ndarray], field: str) -> Any:
    return next((arrays[key] for key in KEYS[field] if key in arrays), None)


def _only(path: Path, arrays: dict[str, np.ndarray], field: str) -> Any:
    if field in arrays:
        return arrays[field]
    if len(arrays) != 1:
        raise FileRefused(path, f"expected an array called {field}, got {_names_in(arrays)}")
    return next(iter(arrays.values()))


def _names_in(arrays: dict[str, np.ndarray]) -> str:
    return f"{', '.join(sorted(arrays)) or 'none'!s:.200}"


def _texts(array: Any) -> Any:
    """Return texts as a list of strings, and numbers as they are."""
    kind = np.asarray(array).dtype.kind
    if kind == "S":
        return [entry.decode("utf-8", "replace") for entry in np.asarray(array).tolist()]
    return np.asarray(array).tolist() if kind == "U" else array


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise FileRefused(path, "expected a text in UTF-8, one name a line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
