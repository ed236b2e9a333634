"""A market on disk is loaded onto eight devices, and answers as on one."""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from eight_devices import outcome_of, run_checks

sys.path.insert(0, str(Path(__file__).parent))


def loads_onto_a_mesh():
    from killed_writer import small_space, small_specification

    import jaxspec as js

    path = Path(tempfile.mkdtemp()) / "m"
    specs = {f"m{i}": small_specification(i) for i in range(11)}
    folder = js.MarketFolder.create(path, small_space(), specs)
    folder = folder.append({"new": small_specification(20)}).remove(["m3"])
    mesh = jax.make_mesh((8,), ("market",))
    spread, alone = folder.load(mesh=mesh), folder.load()
    assert spread.mesh.size == 8
    assert spread.ids == alone.ids == folder.ids
    rng = np.random.default_rng(0)
    user = js.specify_user(
        small_space(), rng.normal(size=(20, 4)), np.arange(20) % 2, class_names=["a", "b"]
    )
    one, other = (js.match(market, user, k=4, method="rkme") for market in (spread, alone))
    assert one.ids == other.ids
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    spread.save(path)  # and back from eight devices
    js.MarketFolder(path, verify=True).verify()
    assert js.Market.load(path).ids == folder.ids


CHECKS = {"loads_onto_a_mesh": loads_onto_a_mesh}


@pytest.fixture(scope="module")
def outcome():
    return outcome_of(__file__, list(CHECKS))


@pytest.mark.parametrize("name", CHECKS)
def test_on_eight_devices(outcome, name):
    assert outcome[name] is None, outcome[name]


if __name__ == "__main__":
    run_checks({name: CHECKS[name] for name in sys.argv[2:]})
