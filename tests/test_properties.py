"""Odd arguments to public functions: a right answer, or an error that names the argument.

Hypothesis draws types, shapes, sizes, names, NaN and masked arrays. What comes back is compared
with numpy in float64 or with an invariance; what is raised is a TypeError or a ValueError that
begins with the name of an argument. Few examples by default, many with the slow tests.
"""

import re
import warnings

import numpy as np
import pytest

import jaxspec as js

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

KERNEL = js.Gaussian(bandwidth=1.5)
ROWS = np.random.default_rng(0).normal(size=(6, 2))
SPACE = js.Space("made", KERNEL, dimension=2)
LABELS = np.arange(6) % 2
ODD = settings(derandomize=True, deadline=None, database=None)


def numeric(draw, base):
    """Return `base` as some library or program might hold it, with the same numbers."""
    kinds = [np.float32, np.float64, ">f4", ">f8", np.float16, list, "fortran", "sliced", "masked"]
    kind = draw(st.sampled_from(kinds))
    if kind is list:
        return base.tolist()
    if kind == "fortran":
        return np.asfortranarray(base)
    if kind == "sliced":
        return np.repeat(base, 2, axis=0)[::2]
    if kind == "masked":
        return np.ma.masked_array(base, mask=False)
    return base.astype(kind)


def odd(draw, base):
    """Return something that a caller might give in place of `base`, right or wrong."""
    how = draw(st.sampled_from(["right", "number", "shape", "type", "mask", "other"]))
    if how == "right":
        return numeric(draw, base)
    wrong = np.array(base, np.float64)
    if how == "number":
        values = [np.nan, np.inf, -np.inf, 1e30, 1e300, -1e19, 1e-40, 0.0]
        wrong.flat[draw(st.integers(0, base.size - 1))] = draw(st.sampled_from(values))
        return wrong
    if how == "shape":
        shapes = [base[0], base[None], base[:0], base[:, :0], base[:, :1], base.T, base[:3]]
        return draw(st.sampled_from([*shapes, np.zeros(()), base.ravel()]))
    if how == "type":
        types = [np.complex64, str, object, "M8[s]", "m8[s]", bool, np.int8, np.uint64]
        return base.astype(np.int64).astype(draw(st.sampled_from(types)))
    if how == "mask":
        mask = np.zeros(base.shape, bool)
        mask[0] = True
        return np.ma.masked_array(base, mask=mask)
    others = [None, "rows", b"rows", 3, {"a": 1}, [[1, 2], [3]], [], [["a", "b"]], object(), True]
    return draw(st.sampled_from(others))


def odd_labels(draw):
    choices = [
        *(LABELS, LABELS.tolist(), LABELS.astype(np.int8), LABELS.astype(np.uint64)),
        *(np.array(["a", "b"] * 3), ["a", "b"] * 3, ["a", "c"] * 3, ["a", None] * 3, LABELS * 1.0),
        *(LABELS[:5], LABELS[:0], LABELS * 0, LABELS - 1, LABELS + 2**40, LABELS.astype(bool)),
        *(
            np.ma.masked_array(LABELS, mask=LABELS == 0),
            LABELS[None],
            None,
            "abab",
            3,
            {},
            [[0], 1],
        ),
    ]
    return draw(st.sampled_from(choices))


def odd_names(draw):
    texts = st.text(max_size=3)
    choices = st.sampled_from(
        [None, ["a", "b"], ("a", "b"), np.array(["a", "b"]), ["a", "a"], ["a"], [], "ab", ["a", 1]]
    )
    return draw(st.one_of(choices, st.lists(texts, min_size=2, max_size=2)))


def one_odd(draw, **arguments):
    """Return {name: value} of which one, mostly, is odd; arguments are (right value, function)."""
    which = draw(st.sampled_from([*arguments, *arguments, "all"]))
    return {
        name: make(draw) if which in (name, "all") else right
        for name, (right, make) in arguments.items()
    }


def of(*choices):
    return lambda draw: draw(st.sampled_from(choices))


def attempt(names, call):
    """Return what a call gives, or None if it raises an error that names one of its arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except (TypeError, ValueError) as error:
        start = re.match(r"[A-Za-z_]+", str(error))
        assert start and start.group() in names, f"{type(error).__name__}: {error}"
        return None


def double(value):
    return np.asarray(value, np.float64)


def oracle_mmd(x, y):
    def mean(a, b):
        squared = np.square(a[:, None] - b[None]).sum(axis=2)
        return np.exp(-squared / (2 * 1.5**2)).mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def check_squared_mmd(draw):
    drawn = one_odd(
        draw, x=(ROWS, lambda draw: odd(draw, ROWS)), y=(ROWS + 1, lambda draw: odd(draw, ROWS + 1))
    )
    x, y = drawn["x"], drawn["y"]
    found = attempt({"x", "y", "a", "b"}, lambda: js.squared_mmd(KERNEL, x, y))
    if found is not None:
        x, y = np.atleast_2d(double(x)), np.atleast_2d(double(y))
        np.testing.assert_allclose(found, oracle_mmd(x, y), atol=5e-3 if x.size else 0)


FEATURES = (ROWS, lambda draw: odd(draw, ROWS))


def check_reduce_set(draw):
    sizes = of(3, np.int8(3), 3.0, True, 0, -1, None, "3")
    drawn = one_odd(draw, Z=FEATURES, size=(3, sizes))
    found = attempt(drawn, lambda: js.reduce_set(**drawn, kernel=KERNEL))
    if found is not None:
        rows = double(drawn["Z"])
        assert found.points.shape == (3, rows.shape[1])
        assert np.isfinite(double(found.points)).all()
        assert np.isfinite(double(found.weights)).all()
        # No reduced set is worse than none: the projection shortens the embedding.
        whole = js.ReducedSet(np.float32(rows), np.full(len(rows), 1 / len(rows), np.float32))
        assert float(js.squared_mmd(KERNEL, found, whole)) <= 1.0


def check_fit_proxy(draw):
    classes = of(2, np.int64(2), 1, 0, None, 2.0, "2")
    drawn = one_odd(draw, Z=FEATURES, labels=(LABELS, odd_labels), num_classes=(2, classes))
    call = lambda: js.fit_proxy(  # noqa: E731
        drawn["Z"], drawn["labels"], num_classes=drawn["num_classes"]
    )
    found = attempt(drawn, call)
    if found is not None:
        assert found.weights.shape == (np.shape(drawn["Z"])[1], 2)
        assert np.isfinite(double(found.weights)).all()
        assert np.isfinite(double(found.bias)).all()
        size = np.abs(double(found.weights)).max() + 1
        np.testing.assert_allclose(double(found.weights).sum(axis=1) / size, 0, atol=1e-3)


TASK = {
    "features": FEATURES,
    "labels": (LABELS, odd_labels),
    "class_names": (["a", "b"], odd_names),
}


def check_specify(draw):
    abouts = of(None, {}, {"a": 1}, {"a": np.nan}, {1: 2}, {"a": None}, "x")
    drawn = one_odd(draw, **TASK, about=(None, abouts))
    check_made(attempt(drawn, lambda: js.specify(SPACE, **drawn, size=3)))


def check_specify_user(draw):
    drawn = one_odd(draw, **TASK)
    user = attempt(drawn, lambda: js.specify_user(SPACE, **drawn))
    check_made(user)
    if user is not None:
        found = js.match(market(), user, method="rkme")
        assert np.isfinite(found.scores).all()


def check_made(found):
    if found is None:
        return
    assert (
        found.class_names
        == js.specify_user(SPACE, ROWS, LABELS, class_names=found.class_names).class_names
    )
    for part in (found.reduced_set.points, found.reduced_set.weights, found.proxy.weights):
        assert np.isfinite(double(part)).all()


def check_evaluation(draw):
    table = np.random.default_rng(1).normal(size=(3, 4))
    drawn = one_odd(
        draw,
        scores=(table, lambda draw: odd(draw, table)),
        performance=(table + 0.1, lambda draw: odd(draw, table + 0.1)),
        k=(1, of(1, 2, 4, 5, 0, None, 1.5)),
    )
    scores, truth, k = drawn.values()
    arguments = {"scores", "performance", "k"}
    found = attempt(arguments, lambda: js.evaluation.precision_at_k(scores, truth, k))
    if found is not None:
        assert 0 <= np.mean(found) <= 1
    tau = attempt(arguments, lambda: js.evaluation.kendall_tau(scores, truth))
    if tau is not None:
        assert not np.isinf(tau).any() and (np.abs(np.nan_to_num(tau)) <= 1).all()


def check_match(draw):
    user = js.specify_user(SPACE, ROWS, LABELS, class_names=["a", "b"])
    two = np.array([True, False])
    drawn = one_odd(
        draw,
        user=(user, of(user, [user, user], (), None, "user", {"a": user}, [user, None])),
        k=(1, of(None, 1, np.int8(1), 10**6, 0, -1, 1.0, "1", True)),
        method=(None, of(None, "rkme", "classwise", "best", 3, "", ["rkme"])),
        reuse=(None, of(None, "direct", "fine-tune", "both", 3, [])),
        label_spaces=("auto", of("auto", "homogeneous", "heterogeneous", None, 3, "x")),
        among=(None, of([True, False], two, two & False, [1, 0], [True], "ab", np.nan, [[True]])),
        recall=(0.99, of(0.99, 1, 0, 2, np.nan, None, "x", True)),
    )
    found = attempt({*drawn, "where"}, lambda: js.match(market(), **drawn))
    for one in found if isinstance(found, list) else [found] * (found is not None):
        assert np.isfinite(one.scores).all()
        assert len(one) <= 2


_MARKET = []


def market():
    if not _MARKET:
        specs = {
            f"m{i}": js.specify(SPACE, ROWS + i, LABELS, class_names=["a", "b"], size=3)
            for i in range(2)
        }
        _MARKET.append(js.Market(SPACE, specs))
    return _MARKET[0]


CHECKS = [
    *(check_squared_mmd, check_reduce_set, check_fit_proxy, check_specify, check_specify_user),
    *(check_evaluation, check_match),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
@settings(ODD, max_examples=25)
@given(data=st.data())
def test_odd_arguments_give_a_right_answer_or_an_error_that_names_one(check, data):
    check(data.draw)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
@settings(ODD, max_examples=1000)
@given(data=st.data())
def test_many_odd_arguments_give_a_right_answer_or_an_error_that_names_one(check, data):
    check(data.draw)
