"""A tiny market whose models can be run: regions with rotated class boundaries, in four dimensions.

The probe has rows of all regions. A model is a smooth function of the features, so that a probe
proxy follows it well; a useless one answers without relation to the classes.
"""

import dataclasses
import functools

import jax
import numpy as np

import jaxspec as js

D, CLASSES, REGIONS = 4, 3, 9
NAMES = ("a", "b", "c")


def rows_of(region, count, seed=0):
    """Return features (count, 4) around the centre of a region, and their classes."""
    rng = np.random.default_rng([region, seed])
    centre = 1.5 * np.random.default_rng([7, region]).normal(size=D)
    features = (centre + rng.normal(size=(count, D))).astype(np.float32)
    return features, truth(features - centre.astype(np.float32), region).argmax(axis=1)


def truth(apart, region):
    """Return logits (n, 3) of a region's classes from features relative to its centre."""
    return 3.0 * apart @ np.random.default_rng([8, region]).normal(size=(D, CLASSES))


def softmax(logits):
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float32), axis=-1))


def model_of(region, seed=0):
    """Return a model that knows its region's classes, and has its own mind elsewhere."""
    rng = np.random.default_rng([9, region, seed])
    centre = 1.5 * np.random.default_rng([7, region]).normal(size=D).astype(np.float32)
    other = rng.normal(size=(D, CLASSES))

    def model(features):
        features = np.asarray(features)
        return softmax(truth(features - centre, region) + 2.0 * np.sin(features @ other))

    return model


def useless_model(features):
    """Answer by a function of the features that has nothing to do with any class."""
    mixed = np.asarray(features) @ np.random.default_rng(5).normal(size=(D, CLASSES))
    return softmax(4.0 * np.sin(0.7 * mixed + np.arange(CLASSES)))


@functools.cache
def probe():
    return np.concatenate([rows_of(region, 30, seed=1)[0] for region in range(REGIONS + 1)])


@functools.cache
def space(probed=True):
    kernel = js.Gaussian(bandwidth=2.5)
    return js.Space("made", kernel, dimension=D, probe=probe() if probed else None)


def specified(pairs, probed=True):
    """Return {id: specification} of {id: (region, model)}, fitted in one batch."""
    data = [rows_of(region, 150) for region, _ in pairs.values()]
    specs = js.specify_many(
        space(probed),
        [features for features, _ in data],
        [labels for _, labels in data],
        class_names=[NAMES] * len(data),
        teachers=[model(z) for (z, _), (_, model) in zip(data, pairs.values(), strict=True)],
        probe_outputs=[model(probe()) for _, model in pairs.values()] if probed else None,
        size=10,
    )
    return dict(zip(pairs, specs, strict=True))


@functools.cache
def made():
    """Return (market, models, honest specification of a useless model)."""
    pairs = {f"m{region}": (region, model_of(region)) for region in range(REGIONS)}
    specs = specified({**pairs, "useless": (0, useless_model)})
    useless = specs.pop("useless")
    return js.Market(space(), specs), {name: model for name, (_, model) in pairs.items()}, useless


def averaged(market, useless):
    """Return the useless specification with the mean of the others' answers on the probe."""
    from jaxspec.specify import fit_probe_proxies

    own = space()
    answers = np.mean([model(probe()) for model in made()[1].values()], axis=0)
    answers = answers / answers.sum(axis=1, keepdims=True)
    (proxy,) = fit_probe_proxies(own.kernel, own.landmarks, own.whitening, probe(), [answers])
    return dataclasses.replace(useless, probe_proxy=proxy)
