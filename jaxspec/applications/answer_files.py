"""Files of the answers to many users: Parquet tables, or numpy arrays in an .npz file.

`write_answers` writes a part, `join_answers` makes one file of all parts, `read_answers` reads
either. Parquet needs pyarrow (the extra `batch`), which is imported on first use. docs/
files-and-formats.md describes the columns.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.base import existing_path, reading, write_atomically
from jaxspec.matching import BatchAnswers

__all__ = ["check_format", "join_answers", "read_answers", "write_answers"]

SEPARATOR = "\n"  # between the sentences of a user's notes: none of them holds a line break


def check_format(suffix: str) -> None:
    """Raise unless answers can be written to files of this suffix.

    Raises:
        ValueError: neither ".parquet" nor ".npz".
        ImportError: pyarrow is wanted and missing.
    """
    if suffix == ".parquet":
        _pyarrow()
    elif suffix != ".npz":
        raise ValueError(
            f"output: expected a file .parquet or .npz, or a folder, got the suffix {suffix!r:.80}"
        )


def write_answers(path: Path, answers: BatchAnswers) -> None:
    """Write answers to one file, in one step."""
    data = io.BytesIO()
    if path.suffix == ".parquet":
        _pyarrow().parquet.write_table(_table(answers), data)
    else:
        arrays: dict[str, Any] = _arrays(answers)
        np.savez(data, **arrays)
    write_atomically(path, data.getvalue())


def join_answers(parts: Sequence[Path], target: Path, k: int) -> None:
    """Write the answers of all parts to one file, in one step.

    A Parquet file is written part by part; an .npz file is put together in memory.
    """
    if target.suffix != ".parquet":
        write_answers(target, BatchAnswers.joined([read_answers(one) for one in parts], k))
        return
    arrow = _pyarrow()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    schema = _table(BatchAnswers.empty((), k)).schema
    try:
        with arrow.parquet.ParquetWriter(temporary, schema) as writer:
            for one in parts:
                writer.write_table(arrow.parquet.read_table(one).cast(schema))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_answers(path: Any) -> BatchAnswers:
    """Read a file of answers, or all parts in a folder of them.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        FileError: not such a file.
    """
    found = existing_path(path)
    if found.is_dir():
        parts = [read_answers(one) for one in sorted(found.glob("part-*"))]
        return BatchAnswers.joined(parts, parts[0].ids.shape[1] if parts else 1)
    with reading(found):
        if found.suffix == ".parquet":
            return _from_table(_pyarrow().parquet.read_table(found))
        with np.load(found, allow_pickle=False) as file:
            return _from_arrays({name: file[name] for name in file.files})


# Numpy


def _coded(values: Iterable[str], known: dict[str, int]) -> np.ndarray:
    return np.array([known.setdefault(value, len(known)) if value else -1 for value in values],
                    np.int32)  # fmt: skip


def _arrays(answers: BatchAnswers) -> dict[str, np.ndarray]:
    texts: dict[str, int] = {}
    notes = _coded([SEPARATOR.join(one) for one in answers.notes], texts)
    errors = _coded([one or "" for one in answers.errors], texts)
    ids = np.where(answers.ids == np.array(None), "", answers.ids).astype(str)
    return {
        "users": np.array(answers.users, str),
        "counts": answers.counts,
        "ids": ids,
        "scores": answers.scores,
        "squared_mmd": answers.squared_mmd,
        "methods": np.array(answers.methods, str),
        "reuses": np.array(answers.reuses, str),
        "label_spaces": np.array(answers.label_spaces, str),
        "notes": notes,
        "errors": errors,
        "texts": np.array(list(texts), str),
    }


def _from_arrays(arrays: dict[str, np.ndarray]) -> BatchAnswers:
    texts, ids = arrays["texts"].tolist(), arrays["ids"].astype(object)
    ids[np.arange(ids.shape[1]) >= arrays["counts"][:, None]] = None
    notes = [tuple(texts[one].split(SEPARATOR)) if one >= 0 else () for one in arrays["notes"]]
    return BatchAnswers(
        users=tuple(arrays["users"].tolist()),
        counts=arrays["counts"],
        ids=ids,
        scores=arrays["scores"],
        squared_mmd=arrays["squared_mmd"],
        methods=tuple(arrays["methods"].tolist()),
        reuses=tuple(arrays["reuses"].tolist()),
        label_spaces=tuple(arrays["label_spaces"].tolist()),
        notes=tuple(notes),
        errors=tuple(texts[one] if one >= 0 else None for one in arrays["errors"]),
    )


# Parquet


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'jaxspec-learnware[batch]', "
            "or write the answers to a file .npz"
        ) from error
    return pyarrow


def _table(answers: BatchAnswers) -> Any:
    arrow = _pyarrow()
    used = np.arange(answers.ids.shape[1]) < answers.counts[:, None]
    ends = np.concatenate([[0], np.cumsum(answers.counts)]).astype(np.int32)

    def listed(values: np.ndarray, kind: Any) -> Any:
        return arrow.ListArray.from_arrays(ends, arrow.array(values[used], kind))

    def repeated(values: Sequence[str]) -> Any:
        known: dict[str, int] = {}
        codes = _coded(values, known)
        return arrow.DictionaryArray.from_arrays(
            arrow.array(codes, mask=codes < 0), arrow.array(list(known), arrow.string())
        )

    columns = {
        "user": arrow.array(answers.users, arrow.string()),
        "ids": listed(answers.ids, arrow.string()),
        "scores": listed(answers.scores, arrow.float32()),
        "squared_mmd": listed(answers.squared_mmd, arrow.float32()),
        "method": repeated(answers.methods),
        "reuse": repeated(answers.reuses),
        "label_spaces": repeated(answers.label_spaces),
        "notes": repeated([SEPARATOR.join(one) for one in answers.notes]),
        "error": repeated([one or "" for one in answers.errors]),
    }
    width = str(answers.ids.shape[1])
    return arrow.table(columns).replace_schema_metadata({"jaxspec.k": width})


def _from_table(table: Any) -> BatchAnswers:
    k = int((table.schema.metadata or {})[b"jaxspec.k"])
    lists = {name: table[name].combine_chunks() for name in ("ids", "scores", "squared_mmd")}
    counts = np.asarray(lists["ids"].value_lengths(), np.int64)
    answers = BatchAnswers.empty(tuple(table["user"].to_pylist()), k)
    used = np.arange(k) < counts[:, None]
    answers.ids[used] = lists["ids"].flatten().to_pylist()
    answers.scores[used] = lists["scores"].flatten().to_numpy()
    answers.squared_mmd[used] = lists["squared_mmd"].flatten().to_numpy()
    answers.counts[:] = counts
    texts = {
        name: ["" if one is None else one for one in table[name].to_pylist()]
        for name in ("method", "reuse", "label_spaces", "notes", "error")
    }
    return BatchAnswers(
        answers.users,
        answers.counts,
        answers.ids,
        answers.scores,
        answers.squared_mmd,
        tuple(texts["method"]),
        tuple(texts["reuse"]),
        tuple(texts["label_spaces"]),
        tuple(tuple(one.split(SEPARATOR)) if one else () for one in texts["notes"]),
        tuple(one or None for one in texts["error"]),
    )
