"""Which learnwares of a market stand for all of them, and the calibration that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxspec.base import pad_to
from jaxspec.kernels import Kernel
from jaxspec.market import devices
from jaxspec.market.calibration import SAMPLE, Calibration, calibrate
from jaxspec.market.derived import CHANCE_STEPS, Rows
from jaxspec.market.growing_arrays import GrowingArrays
from jaxspec.market.ledger import Ledger
from jaxspec.market.precision import decode_points

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = [
    "SAMPLED_ARRAYS",
    "calibrate_market",
    "calibrate_rows",
    "evenly_spaced",
    "most_publish_probes",
    "sample_slots",
]

SAMPLED_ARRAYS = (
    "points",
    "scales",
    "weights",
    "self_terms",
    "class_ids",
    "probe_chances",
    "has_probe",
)


def evenly_spaced(values: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """Return at most `count` of the values, evenly spaced."""
    places = np.linspace(0, len(values) - 1, min(len(values), count))
    return values[places.round().astype(int)]


def sample_slots(ledger: Ledger, slots: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """Return which of the slots stand for all of them, at most `SAMPLE`.

    Learnwares with a probe proxy are preferred: only they show their behaviour.
    """
    candidates = evenly_spaced(slots, 4 * SAMPLE)
    probed = np.array([ledger.entries[slot].fidelity is not None for slot in candidates])
    return evenly_spaced(candidates[probed] if probed.any() else candidates, SAMPLE)


def most_publish_probes(ledger: Ledger, slots: Int[np.ndarray, " n"]) -> bool:
    """Tell whether at least half of the learnwares in these slots publish a probe proxy."""
    entries = [ledger.entries[slot] for slot in evenly_spaced(slots, 4 * SAMPLE)]
    return 2 * sum(entry.fidelity is not None for entry in entries) >= max(len(entries), 1)


def calibrate_market(shared: GrowingArrays, slots: Int[np.ndarray, " n"]) -> Calibration:
    """Return the calibration of the learnwares in these slots, on every device of the mesh."""
    arrays = shared.arrays
    kernel = jax.tree.map(np.asarray, arrays.kernel)
    if len(slots) == 0:
        rows = shared.layout.empty(SAMPLE, shared.precision)
        found = calibrate_rows(kernel, np.asarray(arrays.landmarks), rows, 0, probed=False)
    else:
        chosen = sample_slots(shared.ledger, slots)
        probed = most_publish_probes(shared.ledger, slots)
        rows = shared.take(pad_to(chosen, (SAMPLE,), value=chosen[0]), all_processes=True)
        found = calibrate_rows(
            kernel, np.asarray(arrays.landmarks), rows, len(chosen), probed=probed
        )
    if shared.mesh is None:
        return found
    return devices.replicated(jax.tree.map(np.asarray, found), shared.mesh)


@devices.in_float32()
def calibrate_rows(
    kernel: Kernel, landmarks: Float[np.ndarray, "D d"], rows: Rows, count: int, *, probed: bool
) -> Calibration:
    """Return the calibration of stored rows, of which the first `count` are no padding.

    Args:
        kernel: of the space, with a float32 bandwidth.
        landmarks: relative to the market's origin.
        rows: {name: (SAMPLE, ...)} of `SAMPLED_ARRAYS`.
        count: learnwares in the sample.
        probed: from `most_publish_probes`.
    """
    return calibrate(
        kernel,
        landmarks,
        decode_points(rows["points"], rows["scales"]),
        rows["weights"],
        rows["self_terms"],
        rows["probe_chances"].astype(np.float32) / CHANCE_STEPS,
        rows["class_ids"] >= 0,
        np.arange(SAMPLE) < count,
        np.bool_(probed),
    )
