"""Files of specifications, users and spaces as a stranger might write them: a generator.

`mutant(number)` returns one of them; the same number gives the same file. Four in ten are honest
files with damaged bytes. The others are written here from scratch, with a checksum that fits, so
that only the declarations and the checks of numbers can refuse them. Nothing here uses the
library's writer.
"""

import json
import zlib

import numpy as np

KINDS = ("Specification", "UserSpecification", "Space")
POINTS, FEATURES, CLASSES, LANDMARKS, RANK = 6, 4, 3, 12, 16
NAMES = ["ant", "bee", "cow"]
TYPES = {"f4": "F32", "f8": "F64", "f2": "F16", "i4": "I32", "i8": "I64", "u1": "U8", "b1": "BOOL"}
EXTREME = [
    *(0.0, -0.0, 1e-45, 1e-40, -1e-38, 1.2e-38, 7e-21, 1e-20, 1e-10, 1e-3),
    *(1e3, 1e6, 1e10, 9.9e14, 1e15, 1.1e15, 1e19, 1e30, 1e38, 3.4e38),
    *(np.inf, -np.inf, np.nan),
]
ODD = [
    *(None, True, False, -1, 0, 1, 2**31, 2**53, 2**63, 10**400, 1.5, -0.0, 1e308, "", " ", "x"),
    *([], {}, [[]], [1], ["a"], ["a", "a"], ["a", ""], ["a", " "], ["a", 1], {"a": {}}, {"": 1}),
    *(
        "\0",
        "\ud800",
        "cafe\u0301",
        "x" * 1001,
        ["cafe\u0301", "caf\u00e9", "b"],
        ["\ud800", "b", "c"],
    ),
]
TOKENS = [b"[", b"{", b'"', b"\\", b"]", b"}", b",", b":", b"NaN", b"1e999", b"-", b"\xff", b"\0"]


def document_of(kind, space):
    """Return the JSON text's content of an honest file."""
    common = {
        "class_names": list(NAMES),
        "space_name": space.name,
        "space_digest": space.digest,
        "num_examples": 90,
    }
    values = {
        "Specification": {**common, "about": {"licence": "MIT", "parameters": 1000}},
        "UserSpecification": common,
        "Space": {
            "name": space.name,
            "kernel": "Gaussian",
            "dimension": FEATURES,
            "digest": space.digest,
        },
    }[kind]
    version = 1 if kind == "Space" else 2
    return {"format": "jaxspec", "kind": kind, "format_version": version, "values": values}


def arrays_of(kind, space, rng):
    """Return the arrays of an honest file."""
    if kind == "Space":
        return {
            "kernel.bandwidth": np.asarray(space.kernel.bandwidth, np.float32),
            "probe": np.array(space.probe, np.float32),
        }

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    points = normal(POINTS, FEATURES)
    arrays = {
        "reduced_set.points": points,
        "reduced_set.weights": np.full(POINTS, 1 / POINTS, np.float32),
        "proxy.weights": normal(FEATURES, CLASSES),
        "proxy.bias": normal(CLASSES),
    }
    if kind == "UserSpecification":
        return {**arrays, "labels": np.arange(POINTS, dtype=np.int32) % CLASSES}
    return {
        **arrays,
        "probe_proxy.weights": normal(len(space.landmarks), CLASSES),
        "probe_proxy.bias": normal(CLASSES),
        "probe_proxy.fidelity": np.float32(0.7),
        "representation": normal(FEATURES, RANK),
    }


def checksum_of(document, arrays):
    """Return the checksum by its definition in the documentation."""
    checksum = zlib.crc32(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum


def packed(document, arrays, *, text=None, header=None):
    """Return a file's bytes, written by the layout of safetensors.

    Args:
        document: the content of the JSON text.
        arrays: {name: array}.
        text: the JSON text itself, in place of the document.
        header: called with the header, to change what it declares.
    """
    document = {**document, "checksum": checksum_of(document, arrays)}
    entries = {"__metadata__": {"jaxspec": json.dumps(document) if text is None else text}}
    data = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        entries[name] = {
            "dtype": TYPES.get(array.dtype.str[1:], "C64"),
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    if header is not None:
        header(entries)
    head = json.dumps(entries).encode()
    return len(head).to_bytes(8, "little") + head + data


def damaged(data, rng):
    """Return a file with damaged bytes: flips, cuts, insertions, repetitions, and other numbers."""
    data = bytearray(data)
    start = 8 + int.from_bytes(data[:8], "little")
    for _ in range(int(rng.integers(1, 4))):
        how = int(rng.integers(7))
        end = start if rng.random() < 0.6 else len(data)
        at = int(rng.integers(max(min(end, len(data)), 1)))
        if how == 0 and data:
            data[at % len(data)] ^= 1 << int(rng.integers(8))
        elif how == 1:
            del data[int(rng.integers(len(data) + 1)) :]
        elif how == 2:
            data[at:at] = TOKENS[int(rng.integers(len(TOKENS)))] * int(rng.integers(1, 4))
        elif how == 3:
            data[at:at] = data[at : at + int(rng.integers(1, 60))]
        elif how == 4:
            del data[at : at + int(rng.integers(1, 30))]
        elif how == 5:
            digits = [i for i in range(8, min(start, len(data))) if 48 <= data[i] < 58]
            if digits:
                data[digits[int(rng.integers(len(digits)))]] = 48 + int(rng.integers(10))
        else:
            data[:8] = int(rng.integers(2**62) >> int(rng.integers(62))).to_bytes(8, "little")
    return bytes(data)


def with_odd_value(document, arrays, rng):
    values = document["values"]
    fields = [*values, "format", "kind", "format_version", "other"]
    field = fields[int(rng.integers(len(fields)))]
    odd = ODD[int(rng.integers(len(ODD)))]
    target = values if field in values or rng.random() < 0.5 else document
    if field == "about" and rng.random() < 0.5:
        odd = {("k" * int(rng.integers(1, 1200))): ODD[int(rng.integers(len(ODD)))]}
    target[field] = odd
    return packed(document, arrays)


def with_other_array(document, arrays, rng):
    names = [*arrays, "labels", "representation", "other"]
    name = names[int(rng.integers(len(names)))]
    how = int(rng.integers(5))
    array = np.asarray(arrays.get(name, np.ones((4, 3), np.float32)))
    if how == 0:
        arrays.pop(name, None)
    elif how == 1:
        kind = ["f2", "f8", "i4", "i8", "u1", "b1", "c8"][int(rng.integers(7))]
        arrays[name] = array.astype(kind)
    elif how == 2:
        shape = [int(n) for n in rng.integers(0, 9, size=int(rng.integers(4)))]
        arrays[name] = np.ones(shape, np.float32)
    elif how == 3:
        arrays[name] = array.T.copy() if array.ndim else array[None]
    else:
        other = names[int(rng.integers(len(names)))]
        arrays[name] = arrays.get(other, array)
    return packed(document, arrays)


def with_other_declaration(document, arrays, rng):
    """The header declares what the numbers are not: huge sizes, overlaps, other types."""

    def change(entries):
        name = list(arrays)[int(rng.integers(len(arrays)))]
        entry, how = entries[name], int(rng.integers(6))
        huge = int(10 ** rng.integers(1, 19))
        if how == 0 and entry["shape"]:
            entry["shape"][0] = huge
        elif how == 1 and entry["shape"]:
            item = (entry["data_offsets"][1] - entry["data_offsets"][0]) // max(
                int(np.prod(entry["shape"])), 1
            )
            entry["shape"][0] = huge
            size = item * int(np.prod([int(n) for n in entry["shape"]], dtype=object))
            entry["data_offsets"][1] = entry["data_offsets"][0] + size
        elif how == 2:
            entry["dtype"] = ["F64", "BF16", "F8_E4M3", "I32", "X", 1, None][int(rng.integers(7))]
        elif how == 3:
            entry[["shape", "data_offsets", "dtype"][int(rng.integers(3))]] = ODD[
                int(rng.integers(len(ODD)))
            ]
        elif how == 4:
            entries[name + "x"] = dict(entry)
        else:
            entries["__metadata__"] = ODD[int(rng.integers(len(ODD)))]

    return packed(document, arrays, header=change)


def with_other_text(document, arrays, rng):
    """The JSON text itself is odd: names twice, deep, long, with constants that are not JSON."""
    whole = json.dumps({**document, "checksum": checksum_of(document, arrays)})
    depth = int(10 ** rng.integers(1, 6))
    texts = [
        whole[:-1] + ', "kind": "Specification"}',
        whole.replace('"values": {', '"values": {"num_examples": 1, "num_examples": 2, ', 1),
        whole.replace("90", "NaN"),
        whole.replace("90", "-Infinity"),
        whole.replace("90", "9" * depth),
        whole.replace('"MIT"', "[" * depth + "]" * depth),
        whole.replace('"MIT"', '"' + "\\u0041" * depth + '"'),
        "[" * depth,
        '{"a":' * depth,
        '"' * depth,
        " " * depth + whole,
        whole + "\0",
    ]
    return packed(document, arrays, text=texts[int(rng.integers(len(texts)))])


def with_extreme_numbers(document, arrays, rng):
    """A sound file but for its numbers: one, one row, or all of an array are extreme."""
    for _ in range(int(rng.integers(1, 3))):
        floats = [name for name in arrays if arrays[name].dtype.kind == "f"]
        name = floats[int(rng.integers(len(floats)))]
        array = np.array(arrays[name])
        value, how = EXTREME[int(rng.integers(len(EXTREME)))], int(rng.integers(5))
        with np.errstate(all="ignore"):
            if how == 0 or array.ndim == 0:
                array.flat[int(rng.integers(max(array.size, 1)))] = value
            elif how == 1:
                array[int(rng.integers(len(array)))] = value
            elif how == 2:
                array[...] = value
            elif how == 3:
                array = (array * np.float64(value)).astype(array.dtype)
            else:  # cancelling weights, coinciding points
                array[...] = array.flat[0]
                if name == "reduced_set.weights":
                    array[::2] *= -1
        arrays[name] = array
    return packed(document, arrays)


def with_other_sizes(document, arrays, rng):
    """A sound file of other sizes, from one to many."""
    values = document["values"]
    points = int([1, 2, 5, 600, 19_000][int(rng.integers(5))])
    classes = int([2, 5, 8, 1_100, 5_000][int(rng.integers(5))])
    if document["kind"] == "Space":
        arrays["probe"] = rng.normal(size=(points, FEATURES)).astype(np.float32)
        return packed(document, arrays)
    if rng.random() < 0.5:
        arrays["reduced_set.points"] = rng.normal(size=(points, FEATURES)).astype(np.float32)
        arrays["reduced_set.weights"] = np.full(points, 1 / points, np.float32)
        if "labels" in arrays:
            arrays["labels"] = np.arange(points, dtype=np.int32) % CLASSES
    else:
        values["class_names"] = [f"class {k}" for k in range(classes)]
        arrays["proxy.weights"] = rng.normal(size=(FEATURES, classes)).astype(np.float32)
        arrays["proxy.bias"] = np.zeros(classes, np.float32)
        for name in [name for name in arrays if name.startswith("probe_proxy")]:
            del arrays[name]
    return packed(document, arrays)


WAYS = (
    with_odd_value,
    with_other_array,
    with_other_declaration,
    with_other_text,
    with_extreme_numbers,
    with_extreme_numbers,
    with_other_sizes,
)


def mutant(number, space):
    """Return (kind, way, bytes) of file `number`, for a space of `FEATURES` features."""
    rng = np.random.default_rng([7, number])
    kind = KINDS[int(rng.choice(3, p=[0.6, 0.25, 0.15]))]
    document, arrays = document_of(kind, space), arrays_of(kind, space, rng)
    for part in ("probe_proxy", "representation", "labels", "probe"):  # with and without them
        if rng.random() < 0.25:
            arrays = {name: one for name, one in arrays.items() if name.partition(".")[0] != part}
    if rng.random() < 0.4:
        return kind, "damaged", damaged(packed(document, arrays), rng)
    way = WAYS[int(rng.integers(len(WAYS)))]
    return kind, way.__name__, way(document, arrays, rng)
