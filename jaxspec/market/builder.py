"""What the versions of one market share: arrays with spare slots, and a ledger of names.

`build` stacks specifications block by block, so that no second copy of everything exists, and
`append` writes one more. `Storage` is only ever appended to; `jaxspec.market.Market` is the value
that users see. `check_specification` is where a specification is checked before it enters.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.base import bucket, pad_to
from jaxspec.kernels import Kernel, ReducedSet, as_kernel
from jaxspec.market import arrays as market_arrays
from jaxspec.market.arrays import ROW_FIELDS, VECTORS, MarketArrays
from jaxspec.market.calibration import SAMPLE, Calibration, calibrate
from jaxspec.specify.probe_proxy import lift, whitening
from jaxspec.specify.proxy import Proxy
from jaxspec.specify.representation import RANK
from jaxspec.specify.specification import Specification, as_class_names, check_part

__all__ = ["Facts", "Layout", "Storage", "append", "build", "check_specification", "layout_of"]

Array = Any
BLOCK = 1024  # specifications that are stacked on the host at a time


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What a slot holds beside numbers."""

    class_names: tuple[str, ...]
    size: int
    num_examples: int
    format_version: int
    fidelity: float | None = None


class Storage:
    """Arrays and names that the versions of one market share; only ever appended to."""

    arrays: MarketArrays

    def __init__(self, precision: str = "float32", mesh: Mesh | None = None) -> None:
        self.ids: list[str] = []
        self.facts: list[Facts] = []
        self.index: dict[str, tuple[int, ...]] = {}  # id -> slots it was ever given
        self.label_spaces: dict[tuple[str, ...], list[int]] = {}  # class names -> slots
        self.spaces_with: dict[str, set[tuple[str, ...]]] = {}  # class name -> its label spaces
        self.names: dict[str, int] = {}  # class name -> number
        self.probe: str | None = None  # fingerprint of the probe set
        self.precision = precision
        self.mesh = mesh
        self.anchors = np.zeros((0, 0), np.float32)  # the landmarks lifted, (D, D)
        self.lock = threading.Lock()

    @property
    def total(self) -> int:
        """Slots there are, used or not."""
        return int(self.arrays.weights.shape[0])

    def rows(self, slots: np.ndarray) -> np.ndarray:
        """Return where slots lie in the arrays."""
        devices = market_arrays.device_count(self.mesh)
        return market_arrays.rows_of_slots(slots, self.total, devices)

    def enter(self, learnware: str, facts: Facts) -> None:
        """Note what the next slot holds."""
        slot = len(self.ids)
        self.ids.append(learnware)
        self.index[learnware] = (*self.index.get(learnware, ()), slot)
        self.note_space(facts.class_names, slot)
        self.facts.append(facts)

    def note_space(self, names: tuple[str, ...], slot: int) -> None:
        """Note the label space of a slot."""
        if names not in self.label_spaces:
            self.label_spaces[names] = []
            for name in names:
                self.spaces_with.setdefault(name, set()).add(names)
        self.label_spaces[names].append(slot)

    def spaces_of(self, names: Sequence[str]) -> set[tuple[str, ...]]:
        """Return the label spaces that have all of these names."""
        found = sorted((self.spaces_with.get(name, set()) for name in names), key=len)
        return set.intersection(*found)

    def number(self, names: tuple[str, ...], classes: int) -> np.ndarray:
        """Return numbers of class names, giving new names the next ones; -1 in the padding."""
        numbers = [self.names.setdefault(name, len(self.names)) for name in names]
        return pad_to(np.array(numbers, np.int32), (classes,), value=-1)

    def copy_of_names(self, length: int) -> Storage:
        """Return a storage without arrays that knows the first `length` slots."""
        other = Storage(self.precision, self.mesh)
        other.names, other.probe = dict(self.names), self.probe
        for learnware, facts in zip(self.ids[:length], self.facts[:length], strict=True):
            other.enter(learnware, facts)
        return other


def check_specification(learnware: Any, spec: Any, batch: tuple[int, ...] = ()) -> None:
    """Raise unless a specification (or a stacked one, with leading axis `batch`) is sound."""
    if not isinstance(learnware, str) or not learnware:
        raise ValueError(f"id: expected a non-empty string, got {learnware!r:.80}")
    owner = f"specification {learnware!r}"
    if not isinstance(spec, Specification):
        raise TypeError(f"{owner}: expected a Specification, got {type(spec).__name__}")
    as_kernel(f"{owner}: kernel", spec.kernel)
    if not isinstance(spec.class_names, tuple):  # they are looked up as a whole
        raise TypeError(f"{owner}: expected a tuple of class_names, got {spec.class_names!r:.80}")
    as_class_names(f"{owner}: class_names", spec.class_names)
    if not isinstance(spec.reduced_set, ReducedSet) or not isinstance(spec.proxy, Proxy):
        raise TypeError(
            f"{owner}: expected a ReducedSet and a Proxy in it, got "
            f"{type(spec.reduced_set).__name__} and {type(spec.proxy).__name__}"
        )
    shape = np.shape(spec.reduced_set.points)
    if len(shape) != 2 + len(batch) or 0 in shape[-2:]:
        raise ValueError(
            f"{owner}: expected reduced_set.points with {2 + len(batch)} axes, none empty, "
            f"got shape {shape}"
        )
    (m, d), classes = shape[-2:], len(spec.class_names)
    expected = [
        ("reduced_set.weights", spec.reduced_set.weights, (*batch, m)),
        ("proxy.weights", spec.proxy.weights, (*batch, d, classes)),
        ("proxy.bias", spec.proxy.bias, (*batch, classes)),
        ("reduced_set.points", spec.reduced_set.points, (*batch, m, d)),
    ]
    if spec.representation is not None:
        expected.append(("representation", spec.representation, (*batch, d, RANK)))
    if spec.probe is not None:
        landmarks = np.shape(spec.probe.landmarks)[0]
        expected += [
            ("probe.landmarks", spec.probe.landmarks, (landmarks, d)),
            ("probe.weights", spec.probe.weights, (*batch, landmarks, classes)),
            ("probe.bias", spec.probe.bias, (*batch, classes)),
        ]
    for name, array, wanted in expected:
        check_part(owner, name, array, wanted)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What every slot of a storage shares: padded sizes, the origin, and the probe's landmarks.

    `hidden` is RANK in a market where somebody has a representation, else zero.
    """

    size: int
    classes: int
    origin: np.ndarray
    landmarks: np.ndarray
    hidden: int = 0

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """Return rows of zeros for `count` learnwares, in float32."""
        d, landmarks = len(self.origin), len(self.landmarks)
        shapes = {
            "points": (self.size, d),
            "weights": (self.size,),
            "class_vectors": (self.classes, d),
            "class_bias": (self.classes,),
            "probe_weights": (self.classes, landmarks),
            "probe_bias": (self.classes,),
            "has_probe": (),
            "hidden_maps": (self.hidden, d),
        }
        rows = {name: np.zeros((count, *shape), np.float32) for name, shape in shapes.items()}
        rows["class_ids"] = np.full((count, self.classes), -1, np.int32)
        return rows

    def put(self, rows: dict[str, np.ndarray], at: Any, spec: Specification) -> None:
        """Write a specification to row `at`, or a stacked one to the rows of a slice `at`."""
        m, classes = np.shape(spec.reduced_set.points)[-2], len(spec.class_names)
        points = np.asarray(spec.reduced_set.points, np.float32)
        vectors = np.swapaxes(np.asarray(spec.proxy.weights, np.float32), -1, -2)
        bias = np.asarray(spec.proxy.bias, np.float32)
        rows["points"][at, ..., :m, :] = points - self.origin
        rows["weights"][at, ..., :m] = np.asarray(spec.reduced_set.weights, np.float32)
        rows["class_vectors"][at, ..., :classes, :] = vectors - vectors.mean(axis=-2, keepdims=True)
        rows["class_bias"][at, ..., :classes] = bias - bias.mean(axis=-1, keepdims=True)
        if spec.probe is not None:
            weights = np.swapaxes(np.asarray(spec.probe.weights, np.float32), -1, -2)
            rows["probe_weights"][at, ..., :classes, :] = weights
            rows["probe_bias"][at, ..., :classes] = np.asarray(spec.probe.bias, np.float32)
            rows["has_probe"][at] = 1.0
        if spec.representation is not None:
            maps = np.asarray(spec.representation, np.float32)
            rows["hidden_maps"][at] = np.swapaxes(maps, -1, -2)


def layout_of(arrays: MarketArrays) -> Layout:
    """Return the layout of existing arrays."""
    return Layout(
        arrays.points.shape[1],
        arrays.class_ids.shape[1],
        np.asarray(arrays.origin),
        np.asarray(arrays.landmarks),
        arrays.hidden_maps.shape[1],
    )


def _finish(storage: Storage, kernel: Kernel, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows in the storage's precision with everything that follows from them."""
    said = market_arrays.probe_chances(rows, storage.anchors)
    rows = market_arrays.encode_rows({**rows, "probe_chances": said}, storage.precision)
    return {**rows, "self_terms": market_arrays.self_terms(kernel, rows)}


def prepare(storage: Storage, kernel: Kernel, landmarks: np.ndarray) -> np.ndarray:
    """Note the lifted landmarks in the storage and return their whitening, (D, D)."""
    if not len(landmarks):
        return np.zeros((0, 0), np.float32)
    white = whitening(kernel, landmarks)
    storage.anchors = np.asarray(lift(kernel, landmarks, white, landmarks))
    return np.asarray(white)


def facts_of(spec: Specification, which: int | None = None) -> Facts:
    """Return the facts of a specification, or of one of a stacked one."""
    fidelity = None
    if spec.probe is not None:
        values = np.asarray(spec.probe.fidelity)
        fidelity = float(values if which is None or values.ndim == 0 else values[which])
    size = int(np.shape(spec.reduced_set.points)[-2])
    return Facts(spec.class_names, size, spec.num_examples, spec.format_version, fidelity)


def append(storage: Storage, learnware: str, spec: Specification) -> None:
    """Write one specification to the next slot, which must be free and large enough."""
    layout, arrays = layout_of(storage.arrays), storage.arrays
    rows = layout.empty(1)
    layout.put(rows, 0, spec)
    rows["class_ids"][0] = storage.number(spec.class_names, layout.classes)
    kernel = jax.tree.map(np.asarray, arrays.kernel)  # off the mesh, if there is one
    write(storage, len(storage.ids), _finish(storage, kernel, rows))
    storage.enter(learnware, facts_of(spec))


def write(storage: Storage, slot: int, rows: dict[str, np.ndarray]) -> None:
    """Write finished rows from `slot` on."""
    whole = {name: getattr(storage.arrays, name) for name in ROW_FIELDS}
    written = market_arrays.write_rows(whole, slot, rows, storage.mesh)
    storage.arrays = dataclasses.replace(storage.arrays, **written)


def build(
    blocks: Iterable[tuple[Sequence[str], Specification | Sequence[Specification]]],
    count: int,
    layout: Layout,
    kernel: Kernel,
    *,
    fingerprint: str | None = None,
    precision: str = "float32",
    mesh: Mesh | None = None,
    spare: float = 0.25,
    progress: Callable[[int, int], None] | None = None,
) -> Storage:
    """Stack blocks of (ids, specifications), checked before, of at most `BLOCK` learnwares each.

    Args:
        blocks: every one a list of specifications, or one stacked specification.
        count: learnwares in all.
        layout: padded sizes that hold the largest of them.
        kernel: of all.
        fingerprint: of the probe set, or None.
        precision: a key of `market_arrays.STORAGES`.
        mesh: devices to spread the rows over.
        spare: share of slots to keep free.
        progress: called with (learnwares done, learnwares).
    """
    storage = Storage(precision, mesh)
    storage.probe = fingerprint
    kernel = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), kernel)
    white = prepare(storage, kernel, layout.landmarks)
    devices = market_arrays.device_count(mesh)
    total = market_arrays.capacity(count, spare)
    total = -(-total // devices) * devices
    done, stacked = 0, None
    block_size = min(BLOCK, bucket(count))
    waiting: list[dict[str, np.ndarray]] = []  # short blocks are finished and written together

    last: dict[str, np.ndarray] = {}

    def flush() -> None:
        nonlocal stacked, done, last
        rows = {name: np.concatenate([one[name] for one in waiting]) for name in waiting[0]}
        waiting.clear()
        rows = _finish(storage, kernel, rows)
        if stacked is None:
            stacked = market_arrays.allocate(rows, total, mesh)
        stacked = _write_block(stacked, done, rows, block_size, mesh)
        done += len(rows["weights"])
        last = {name: value[-1:] for name, value in rows.items()}
        if progress is not None:
            progress(done, count)

    for ids, specs in blocks:
        rows = layout.empty(len(ids))
        if isinstance(specs, Specification):
            layout.put(rows, slice(None), specs)
            facts = [facts_of(specs, i) for i in range(len(ids))]
        else:
            for i, spec in enumerate(specs):
                layout.put(rows, i, spec)
            facts = [facts_of(spec) for spec in specs]
        for i, (learnware, own) in enumerate(zip(ids, facts, strict=True)):
            rows["class_ids"][i] = storage.number(own.class_names, layout.classes)
            storage.enter(learnware, own)
        waiting.append(rows)
        if sum(len(one["weights"]) for one in waiting) >= BLOCK:
            flush()
    if waiting:
        flush()
    assert stacked is not None
    fixed = {"landmarks": layout.landmarks, "white": white, "origin": layout.origin}
    storage.arrays = MarketArrays(
        **stacked,
        **market_arrays.replicated(fixed, mesh),
        kernel=market_arrays.replicated(kernel, mesh),
    )
    _warm(storage, kernel, layout, done - 1, last)
    return storage


def _write_block(
    stacked: dict[str, Array], done: int, rows: dict[str, np.ndarray], size: int, mesh: Mesh | None
) -> dict[str, Array]:
    """Write rows from slot `done` on, as one block of `size` or as blocks of powers of two."""
    count, at = len(rows["weights"]), 0
    while at < count:
        step = size
        while step > count - at:
            step //= 2
        part = {name: value[at : at + step] for name, value in rows.items()}
        stacked = market_arrays.write_rows(stacked, done + at, part, mesh)
        at += step
    return stacked


def _warm(
    storage: Storage, kernel: Kernel, layout: Layout, slot: int, row: dict[str, np.ndarray]
) -> None:
    """Write a slot again and finish an empty row: the first `append` finds all compiled."""
    write(storage, slot, row)
    empty = layout.empty(1)
    empty["has_probe"][:] = len(layout.landmarks) > 0
    _finish(storage, kernel, empty)


def blocks_of(
    specifications: dict[str, Specification],
) -> Iterator[tuple[list[str], list[Specification]]]:
    """Yield {id: specification} in blocks."""
    ids, specs = list(specifications), list(specifications.values())
    for start in range(0, len(ids), BLOCK):
        yield ids[start : start + BLOCK], specs[start : start + BLOCK]


def find_origin(points: Sequence[Any], bandwidth: float) -> np.ndarray:
    """Return where features lie if that is over ten bandwidths from zero, else zero.

    It is the median of the learnwares' mean points: one of them that lies far out must not move
    all others to where float32 cannot tell their points apart. With zero, points are kept bit by
    bit; the rounding of a distance formed from a matrix product grows with (offset / bandwidth)^2,
    about 1e-5 of the kernel's value at ten bandwidths.

    Args:
        points: arrays (m, d) of single learnwares or (b, m, d) of b.
        bandwidth: of the market's kernel.
    """
    means = [np.atleast_2d(np.asarray(one).mean(axis=-2, dtype=np.float64)) for one in points]
    centre = np.median(np.concatenate(means), axis=0)
    far = np.linalg.norm(centre) > 10.0 * bandwidth
    return (centre if far else np.zeros_like(centre)).astype(np.float32)


@partial(jax.jit, static_argnames="mesh")
def _take(rows: dict[str, Array], at: Array, *, mesh: Mesh | None) -> dict[str, Array]:
    found = {name: value[at] for name, value in rows.items()}
    if mesh is None:
        return found
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))


def take(storage: Storage, slots: np.ndarray, *, together: bool = False) -> dict[str, np.ndarray]:
    """Return the stored rows of slots as numpy arrays {field: (len(slots), ...)}.

    Args:
        storage: what to read.
        slots: (n,).
        together: whether all processes that the rows are spread over are here; they must ask for
            the same slots.
    """
    whole = {name: getattr(storage.arrays, name) for name in ROW_FIELDS}
    if not together and not whole["weights"].is_fully_addressable:
        raise ValueError(
            "market: its rows are spread over several processes and cannot be read from one of "
            "them; read, save and grow it where it is whole"
        )
    at = storage.rows(slots)
    padded = pad_to(at, (bucket(len(at), minimum=1),))
    with market_arrays.on_mesh(storage.mesh):
        found = _take(whole, padded, mesh=storage.mesh)
    return {name: np.asarray(value)[: len(at)] for name, value in found.items()}


def copy(
    storage: Storage,
    slots: np.ndarray,
    *,
    layout: Layout | None = None,
    fingerprint: str | None = None,
    precision: str | None = None,
    mesh: Mesh | None = None,
) -> Storage:
    """Return a new storage of some slots, with room to grow.

    Args:
        storage: what to copy; it stays as it is.
        slots: (n,) slots to keep, in order.
        layout: larger padded sizes, or landmarks where there were none.
        fingerprint: of the probe set that these landmarks come from.
        precision: another precision.
        mesh: devices to spread the rows over, None for the default device.
    """
    layout = layout or layout_of(storage.arrays)
    other = Storage(precision or storage.precision, mesh)
    other.names, other.probe = dict(storage.names), fingerprint or storage.probe
    devices = market_arrays.device_count(mesh)
    total = -(-market_arrays.capacity(len(slots)) // devices) * devices
    kernel = jax.tree.map(np.asarray, storage.arrays.kernel)
    white = prepare(other, kernel, layout.landmarks)
    stacked, block_size = None, min(BLOCK, bucket(len(slots)))
    rows: dict[str, np.ndarray] = {}
    for start in range(0, max(len(slots), 1), BLOCK):
        part = slots[start : start + BLOCK]
        rows = take(storage, part if len(slots) else np.zeros(1, int))  # any row has the shapes
        if other.precision != storage.precision:
            floats = {name: rows[name].astype(np.float32) for name in VECTORS}
            floats["points"] = market_arrays.decode_points(rows["points"], rows["scales"])
            rows = _finish(other, kernel, rows | floats)
        wanted = layout.empty(1)
        for name, value in rows.items():
            if name in wanted:
                fill = -1 if name == "class_ids" else 0
                rows[name] = pad_to(value, (len(value), *wanted[name].shape[1:]), value=fill)
        norms = rows["square_norms"]
        rows["square_norms"] = pad_to(norms, (len(norms), layout.size))
        rows["probe_chances"] = pad_to(rows["probe_chances"], rows["probe_weights"].shape)
        rows["class_grams"] = market_arrays.class_grams(rows["class_vectors"])
        for slot in part:
            other.enter(storage.ids[slot], storage.facts[slot])
        if stacked is None:
            stacked = market_arrays.allocate(rows, total, mesh)
        stacked = _write_block(stacked, start, rows, block_size, mesh)
    assert stacked is not None
    fixed = {"landmarks": layout.landmarks, "origin": layout.origin, "white": white}
    other.arrays = MarketArrays(
        **stacked,
        **market_arrays.replicated(fixed, mesh),
        kernel=market_arrays.replicated(kernel, mesh),
    )
    last = {name: value[-1:] for name, value in rows.items()}
    _warm(other, kernel, layout, max(len(slots) - 1, 0), last)
    return other


def sample_calibration(storage: Storage, slots: np.ndarray) -> Calibration:
    """Return the calibration of the learnwares in `slots`, from an even sample of them.

    Learnwares with a probe proxy are preferred: only they show their behaviour.
    """
    chosen = sample_slots(storage, slots)
    rows = take(storage, pad_to(chosen, (SAMPLE,), value=chosen[0]), together=True)
    arrays = storage.arrays
    kernel = jax.tree.map(np.asarray, arrays.kernel)
    return calibrate_rows(kernel, np.asarray(arrays.landmarks), rows, len(chosen))


def sample_slots(storage: Storage, slots: np.ndarray) -> np.ndarray:
    """Return which of `slots` stand for all of them, (n,), n at most `SAMPLE`."""
    some = spaced(slots, 4 * SAMPLE)
    probed = np.array([storage.facts[slot].fidelity is not None for slot in some])
    return spaced(some[probed] if probed.any() else some, SAMPLE)


def calibrate_rows(
    kernel: Kernel, landmarks: np.ndarray, rows: dict[str, np.ndarray], count: int
) -> Calibration:
    """Return the calibration of stored rows, of which the first `count` are no padding.

    Args:
        kernel: the market's, with float32 leaves.
        landmarks: (D, d).
        rows: {field: (SAMPLE, ...)}.
        count: of learnwares in the sample.
    """
    return calibrate(
        kernel,
        landmarks,
        market_arrays.decode_points(rows["points"], rows["scales"]),
        rows["weights"],
        rows["self_terms"],
        rows["probe_chances"].astype(np.float32) / market_arrays.CHANCE_STEPS,
        rows["class_ids"] >= 0,
        np.arange(SAMPLE) < count,
    )


def spaced(values: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the values, evenly spaced."""
    places = np.linspace(0, len(values) - 1, min(len(values), count))
    return values[places.round().astype(int)]
