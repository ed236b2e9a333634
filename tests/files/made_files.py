"""Specifications, users, spaces and markets of random numbers, and saved markets to tamper with."""

import dataclasses
import functools
import json
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec as js
from jaxspec.base import FileError
from jaxspec.files.bounded_json import json_text
from jaxspec.market import FIXED_ARRAYS, ROW_ARRAYS
from jaxspec.specify import RANK, ProbeProxy

REPOSITORY = Path(__file__).resolve().parents[2]
DIMENSION = 6
KERNELS = [js.Gaussian, js.Laplacian, js.InverseMultiquadric]


@functools.cache
def made_space(probe=True, kernel=js.Gaussian, bandwidth=3.0, name="made-features"):
    rows = np.random.default_rng(9).normal(size=(30, DIMENSION)) if probe else None
    return js.Space(name, kernel(bandwidth=bandwidth), dimension=DIMENSION, probe=rows)


def numbers(rng, *shape, dtype=np.float32):
    return jnp.asarray(rng.normal(size=shape).astype(dtype))


def letters(classes):
    return tuple(f"class {chr(97 + k)}" for k in range(classes))


def made_specification(
    seed, classes=4, size=10, *, space=None, probe=False, hidden=False, **options
):
    """Return a specification of random numbers, with or without the optional parts."""
    rng = np.random.default_rng([seed, classes, size])
    space = space or made_space()
    d = space.dimension
    parts = {
        "reduced_set": js.ReducedSet(numbers(rng, size, d), numbers(rng, size)),
        "proxy": js.Proxy(numbers(rng, d, classes), numbers(rng, classes)),
        "class_names": letters(classes),
        "space_name": space.name,
        "space_digest": space.digest,
        "num_examples": 120,
    }
    if probe:
        landmarks = len(space.landmarks)
        weights, bias = numbers(rng, landmarks, classes), numbers(rng, classes)
        parts["probe_proxy"] = ProbeProxy(weights, bias, jnp.float32(0.75))
    if hidden:
        parts["representation"] = numbers(rng, d, RANK)
    return js.Specification(**{**parts, **options})


def made_user(seed, classes=4, *, space=None, share_labels=True, **options):
    rng = np.random.default_rng([seed, classes])
    space = space or made_space()
    labels = jnp.asarray(np.arange(40, dtype=np.int32) % classes)
    parts = {
        "reduced_set": js.ReducedSet(
            numbers(rng, 40, space.dimension), jnp.full(40, 1 / 40, jnp.float32)
        ),
        "proxy": js.Proxy(numbers(rng, space.dimension, classes), numbers(rng, classes)),
        "labels": labels if share_labels else None,
        "class_names": letters(classes),
        "space_name": space.name,
        "space_digest": space.digest,
        "num_examples": 40,
    }
    return js.UserSpecification(**{**parts, **options})


def made_market(count=6, *, space=None, precision="float32", **options):
    space = space or made_space()
    specs = {f"m{s}": made_specification(s, space=space, **options) for s in range(count)}
    return js.Market(space, specs, precision=precision)


def assert_same(one, two):
    """Check that two specifications agree in every bit, dtype and name."""
    assert type(one) is type(two)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).shape == np.asarray(b).shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_same_market(one, two):
    """Check that two markets agree in ids, metadata and every number of their learnwares."""
    assert one.ids == two.ids
    assert one.space == two.space
    assert one.precision == two.precision
    for learnware in one:
        assert_same(one[learnware], two[learnware])
    a, b = one.arrays, two.arrays
    for field in dataclasses.fields(a):
        if field.name in ROW_ARRAYS:
            np.testing.assert_array_equal(
                np.asarray(getattr(a, field.name))[one.rows],
                np.asarray(getattr(b, field.name))[two.rows],
            )
    for name in FIXED_ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


class SavedCopy:
    """A copy of a market of one segment, of which single files or entries can be changed."""

    def __init__(self, saved, folder):
        self.path = Path(shutil.copytree(saved, folder))
        (self.segment,) = (self.path / "segments").iterdir()
        (self.space,) = (self.path / "spaces").iterdir()
        (self.version,) = (self.path / "versions").iterdir()

    def pointer(self, **entries):
        """Change entries of `market.json` as they stand there."""
        file = self.path / "market.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    def contents(self, change):
        """Change what the pointer says, with a checksum that fits to the change."""
        contents = json.loads((self.path / "market.json").read_text())["contents"]
        change(contents)
        self.pointer(contents=contents, checksum=zlib.crc32(json_text(contents).encode()))

    def manifest(self, change):
        """Change the version's manifest, with a checksum that fits to the change."""
        manifest = json.loads(self.version.read_text())
        change(manifest)
        self.write_manifest(json.dumps(manifest).encode())

    def write_manifest(self, data):
        self.version.write_bytes(data)
        self.contents(lambda contents: contents["versions"][-1].__setitem__(1, zlib.crc32(data)))

    def facts(self, change):
        """Change the facts, with a checksum that fits to the change."""
        facts = json.loads((self.segment / "facts.json").read_text())
        change(facts)
        self.write_facts(json.dumps(facts).encode())

    def write_facts(self, data):
        (self.segment / "facts.json").write_bytes(data)
        checksum = zlib.crc32(data)
        self.manifest(lambda manifest: manifest["segments"][0].__setitem__(1, checksum))

    def note_files(self):
        """Write sizes and checksums of the files as they are now."""

        def change(facts):
            for name in list(facts["files"]):
                data = (self.segment / name).read_bytes()
                facts["files"][name] = [len(data), zlib.crc32(data)]

        self.facts(change)
        checksum = zlib.crc32(self.space.read_bytes())
        self.manifest(lambda manifest: manifest["space"].__setitem__(1, checksum))

    def refused(self, message, *, load=js.Market.load):
        refused(lambda: load(self.path), self.path, message)


def refused(call, path, message):
    """Check that a call raises a FileError of one line that names the file and says `message`."""
    with pytest.raises(FileError, match=message) as caught:
        call()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
