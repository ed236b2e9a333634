"""Make the embedded demo data, ``jaxspec/data/fashion_contexts.npz``, from the study data.

    python -m benchmarks.datasets.build_demo_data --cache DIR [--check]

chooses pictures and thumbnails, reduces the features to eight bits and writes a zip file that is
identical on every run; ``--check`` also prints linear probes that say what the data are worth. The
study data are never changed.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np

from benchmarks.datasets.fashion import SOURCE, FashionStudy, build_cache, load_cache
from benchmarks.datasets.fashion_contexts import SEED

__all__ = ["choose_rows", "compact", "probe_accuracy", "quantise", "write_npz"]

TARGET = Path(__file__).resolve().parents[2] / "jaxspec" / "data" / "fashion_contexts.npz"
PER_CELL = 250  # pictures of one class in one context: 250 x 10 x 11 = 27,500
THUMBNAILS_PER_CELL = 7  # one to stand for the cell, six more for showing examples


def choose_rows(labels: np.ndarray, contexts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` rows of every class in every context, context by context, shuffled in each.

    Args:
        labels: (N,) integers.
        contexts: (N,) integers.
        count: rows of one class in one context.
        seed: of the choice.

    Returns:
        rows (contexts x classes x count,) integers.

    Raises:
        ValueError: when a class has fewer than `count` pictures in a context.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for context in np.unique(contexts):
        cells = []
        for label in np.unique(labels):
            cell = np.flatnonzero((contexts == context) & (labels == label))
            if len(cell) < count:
                raise ValueError(
                    f"class {label} in context {context}: expected at least {count} pictures, "
                    f"got {len(cell)}"
                )
            cells.append(rng.permutation(cell)[:count])
        chosen.append(rng.permutation(np.concatenate(cells)))
    return np.concatenate(chosen)


def quantise(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce features to eight bits with one scale per dimension; ``codes * scales`` undoes it.

    Args:
        features: (N, d) floats.

    Returns:
        codes (N, d) int8 and scales (d,) float32. Nothing is clipped: the largest value of a
        dimension becomes 127, so that no entry is off by more than half its dimension's scale.
    """
    scales = (np.abs(features).max(0).astype(np.float64) / 127).astype(np.float32)
    codes = np.rint(features.astype(np.float64) / scales)
    return np.clip(codes, -127, 127).astype(np.int8), scales


def compact(study: FashionStudy) -> dict[str, np.ndarray]:
    """Return the arrays of the embedded file; ``jaxspec/data/README.md`` has their shapes."""
    rows = choose_rows(study.labels, study.contexts, PER_CELL, SEED)
    labels, contexts = study.labels[rows], study.contexts[rows]
    shown = np.sort(choose_rows(labels, contexts, THUMBNAILS_PER_CELL, SEED + 1))
    codes, scales = quantise(study.features[rows])
    return {
        "feature_codes": codes,
        "feature_scales": scales,
        "labels": labels,
        "contexts": contexts,
        "class_names": np.array(study.class_names),
        "context_names": np.array(study.context_names),
        "thumbnails": study.images[rows[shown]],
        "thumbnail_index": shown.astype(np.int32),
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` that holds no time of day, so that a rebuild is identical."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(entry, data.getvalue(), compresslevel=9)


def probe_accuracy(
    features: np.ndarray, labels: np.ndarray, contexts: np.ndarray, *, trained: int = 4_500
) -> np.ndarray:
    """Return the accuracy of logistic regressions, trained in one context and tested in all.

    Args:
        features: (N, d).
        labels: (N,) integers.
        contexts: (N,) integers.
        trained: pictures per context to train on; the others are the test.

    Returns:
        accuracy (C, C): row is the context of training, column that of the test.
    """
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(SEED)
    orders = [rng.permutation(np.flatnonzero(contexts == k)) for k in np.unique(contexts)]
    accuracy = np.empty((len(orders), len(orders)))
    for row, order in enumerate(orders):
        rows = order[:trained]
        model = LogisticRegression(C=0.1, max_iter=500).fit(features[rows], labels[rows])
        for column, other in enumerate(orders):
            held_out = other[trained:]
            accuracy[row, column] = model.score(features[held_out], labels[held_out])
    return accuracy


def _print_probe(title: str, accuracy: np.ndarray, names: tuple[str, ...]) -> None:
    print(f"\n{title}: accuracy in %, a row for the context of training, a column for the test")
    for name, row in zip(names, 100 * accuracy, strict=True):
        print(f"{name:>12} " + " ".join(f"{value:5.1f}" for value in row))
    count = len(names)
    within = accuracy.trace() / count
    across = (accuracy.sum() - accuracy.trace()) / (count * (count - 1))
    print(f"mean within a context {100 * within:.1f}, across contexts {100 * across:.1f}")


def _check(study: FashionStudy, arrays: dict[str, np.ndarray]) -> None:
    """Print the probes of the study, then before and after the reduction to eight bits."""
    names, features = study.context_names, study.features.astype(np.float32)
    for width in (64, 256):
        accuracy = probe_accuracy(features[:, :width], study.labels, study.contexts)
        _print_probe(f"study, {width} dimensions, 4,500 trained on", accuracy, names)
    rows = choose_rows(study.labels, study.contexts, PER_CELL, SEED)
    coded = arrays["feature_codes"] * arrays["feature_scales"]
    for width in (64, 256):
        for title, values in (("float16", features[rows]), ("int8", coded)):
            accuracy = probe_accuracy(
                values[:, :width], arrays["labels"], arrays["contexts"], trained=1_750
            )
            print(
                f"embedded, {width} dimensions, {title}: "
                f"mean within a context {100 * accuracy.diagonal().mean():.2f}"
            )


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description="Build the embedded demo data from the cache.")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the study cache")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the pictures")
    parser.add_argument("--target", type=Path, default=TARGET, help="file to write")
    parser.add_argument("--check", action="store_true", help="print the linear probe, too")
    arguments = parser.parse_args()
    build_cache(arguments.cache, source=arguments.source)
    study = load_cache(arguments.cache)
    arrays = compact(study)
    write_npz(arguments.target, arrays)
    print(f"{arguments.target.name}: {arguments.target.stat().st_size / 1e6:.2f} MB")
    if arguments.check:
        _check(study, arrays)


if __name__ == "__main__":
    main()
