"""What a question leaves open and how it is decided, and that bad questions are named."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SPACE, made_specification, made_user, names
from oracles import oracle_closeness

import jaxspec as js

OTHERS = list("wxyz")


def answered(market, user, **options):
    """Return the answer and the class-name warnings that it came with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = js.match(market, user, **options)
    return found, [str(one.message) for one in caught if one.category is js.ClassNameWarning]


# What is decided and said


@pytest.mark.parametrize(
    ("known", "label_spaces", "reuse", "method"),
    [
        (4, "homogeneous", "direct", "likelihood"),
        (3, "homogeneous", "direct", "likelihood"),
        (2, "heterogeneous", "fine-tune", "transfer"),
        (1, "heterogeneous", "fine-tune", "transfer"),
        (0, "heterogeneous", "fine-tune", "transfer"),
    ],
)
def test_classes_are_compared_by_name_if_a_learnware_has_more_than_half(
    market, known, label_spaces, reuse, method
):
    user = made_user(1, class_names=[*names(4)[:known], *OTHERS[known:]])
    found, _ = answered(market, user)
    assert (found.label_spaces, found.reuse, found.method) == (label_spaces, reuse, method)
    which = {4: "has all of your 4 classes", 0: "has none of your 4 class names"}
    middle = f"{known} of your 4 class"
    assert which.get(known, middle) in found.notes[0]
    assert f"({label_spaces} label spaces)" in found.notes[0]
    assert f"the score for it is {method!r}" in found.notes[1]
    assert ("direct use" if reuse == "direct" else "fine-tuning") in found.notes[1]


def test_the_share_is_that_of_one_learnware_and_not_of_all_together():
    left, right = ("a", "b", "x", "y"), ("c", "d", "x", "y")
    specs = {
        "left": dataclasses.replace(made_specification(0), class_names=left),
        "right": dataclasses.replace(made_specification(1), class_names=right),
    }
    market = js.Market(SPACE, specs)
    user = made_user(0, class_names=list("abcd"))
    assert js.match(market, user).label_spaces == "heterogeneous"
    both = market.add({"both": dataclasses.replace(specs["left"], class_names=tuple("abcx"))})
    assert js.match(both, user).label_spaces == "homogeneous"
    assert js.match(both.remove(["both"]), user).label_spaces == "heterogeneous"


def test_what_was_asked_for_is_said_too(market):
    found, _ = answered(market, made_user(1), reuse="fine-tune", label_spaces="heterogeneous")
    assert (found.reuse, found.label_spaces, found.method) == (
        "fine-tune",
        "heterogeneous",
        "transfer",
    )
    assert found.notes[0] == "Label spaces are heterogeneous, as asked for."
    assert "fine-tuning, as asked for" in found.notes[1]
    found, _ = answered(market, made_user(1), method="rkme")
    assert "the score 'rkme' was asked for" in found.notes[1]


@pytest.mark.parametrize("reuse", ["direct", "fine-tune", None])
def test_a_user_who_keeps_labels_back_is_scored_by_class_vectors(market, reuse):
    found, _ = answered(market, made_user(1, share_labels=False), reuse=reuse)
    assert found.method == "classwise"
    assert "'classwise', since labels are not shared" in found.notes[1]
    assert found.top_k(1)[0][0] == "m1"


@pytest.mark.parametrize("method", ["likelihood", "transfer"])
def test_a_score_that_needs_labels_is_refused_without_them(market, method):
    with pytest.raises(
        ValueError, match=f"method: '{method}' needs the labels.*'classwise' and 'rk"
    ):
        js.match(market, made_user(1, share_labels=False), method=method)


# Names of classes


def cars_market():
    words = ("automobile", "aeroplane", "bird", "cat", "deer", "ship")
    specs = {}
    for seed in range(4):
        spec = made_specification(seed, classes=6)
        specs[f"m{seed}"] = dataclasses.replace(spec, class_names=words)
    return js.Market(SPACE, specs), words


@pytest.mark.parametrize("method", ["likelihood", "classwise", "transfer"])
@pytest.mark.parametrize("name", ["automobiles", "auto mobile", "xylophone"])
def test_one_unknown_class_of_six_does_not_change_the_question(method, name):
    market, words = cars_market()
    user = made_user(2, classes=6, class_names=[name, *words[1:]])
    found, caught = answered(market, user, method=method)
    assert found.label_spaces == "homogeneous"
    assert found.reuse == "direct"
    assert found.top_k(1)[0][0] == "m2"
    np.testing.assert_array_equal(found.class_map, np.tile([-1, 1, 2, 3, 4, 5], (4, 1)))
    np.testing.assert_array_equal(found.class_similarity[:, 0], -1)
    assert len(caught) == 1
    assert caught[0] in found.notes
    assert f"No learnware has a class {name!r}" in caught[0]
    assert "5 of your 6 classes" in found.notes[0]
    if name == "automobiles":
        assert "the nearest names are ['automobile'" in caught[0]
        assert "It counts for no learnware." in caught[0]
    elif name == "auto mobile":
        assert "there is 'automobile', which differs only in letter case, spaces" in caught[0]
    else:
        assert "no name is near it" in caught[0]


def oracle_shared_cosines(spec, user, shared):
    """Cosines of the class vectors of shared classes, centred over these classes only."""
    units = []
    for one in (spec, user):
        vectors = np.asarray(one.proxy.weights, np.float64).T[shared]
        vectors = vectors - vectors.mean(axis=0)
        units.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return (units[0] * units[1]).sum(axis=1)


def test_matched_classes_still_count_and_an_unknown_one_counts_as_the_least_similar():
    market, words = cars_market()
    user = made_user(2, classes=6, class_names=["Cars", *words[1:]])
    found, _ = answered(market, user, method="classwise")
    for row, spec in enumerate(market.values()):
        similar = oracle_shared_cosines(spec, user, slice(1, None))
        np.testing.assert_allclose(found.class_similarity[row, 1:], similar, atol=1e-5)
        want = (similar.sum() - 1) / 6 + 2 * oracle_closeness(SPACE.kernel, spec, user)
        np.testing.assert_allclose(found.scores[row], want, atol=1e-5)


@pytest.mark.parametrize("name", ["Class A", "class  a", "class_a", "CLASS-A"])
def test_letter_case_and_spaces_are_warned_of_with_both_names(market, name):
    for others in (names(4)[1:], OTHERS[1:]):  # compared by name, and by class vectors
        user = made_user(1, class_names=[name, *others])
        found, caught = answered(market, user)
        assert len(caught) == 1
        assert repr(name) in caught[0]
        assert "'class a'" in caught[0]
        assert caught[0] in found.notes


def test_a_stranger_is_not_warned_of_every_name(market):
    found, caught = answered(market, made_user(1, class_names=OTHERS))
    assert caught == []
    assert len(found.notes) == 2


def test_both_unicode_forms_of_class_names_get_the_same_answer():
    composed = ["caf\u00e9", "na\u00efve", "\u00fcber", "class d"]
    decomposed = ["cafe\u0301", "nai\u0308ve", "u\u0308ber", "class d"]
    specs = {}
    for seed in range(3):
        spec = made_specification(seed)
        specs[f"m{seed}"] = dataclasses.replace(spec, class_names=tuple(composed))
    market = js.Market(SPACE, specs)
    one, caught = answered(market, made_user(1, class_names=composed))
    other, more = answered(market, made_user(1, class_names=decomposed))
    assert caught == more == []
    assert one.notes == other.notes
    assert one.class_names == other.class_names == tuple(composed)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert one.label_spaces == other.label_spaces == "homogeneous"


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "best"}, ValueError, "method: expected one of .*'rkme'.*, got 'best'"),
        ({"method": ["rkme"]}, TypeError, "method: expected one of .* or a score"),
        ({"method": np.array(["rkme", "classwise"])}, TypeError, "method: expected one of"),
        ({"method": 1}, TypeError, "method: expected one of"),
        ({"method": js.Rkme}, TypeError, "method: expected one of .* or a score"),
        ({"reuse": "again"}, ValueError, "reuse: expected one of"),
        ({"reuse": ["direct"]}, ValueError, "reuse: expected one of"),
        ({"reuse": 1}, ValueError, "reuse: expected one of"),
        ({"label_spaces": "same"}, ValueError, "label_spaces: expected one of"),
        ({"label_spaces": ["auto"]}, ValueError, "label_spaces: expected one of"),
        ({"label_spaces": None}, ValueError, "label_spaces: expected one of"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"k": 2.0}, TypeError, "k: expected an integer, got 2.0"),
        ({"k": "2"}, TypeError, "k: expected an integer"),
        ({"k": True}, TypeError, "k: expected an integer"),
        ({"recall": 0}, ValueError, "recall: expected a share above 0 and at most 1, got 0"),
        ({"recall": 1.1}, ValueError, "recall: expected a share"),
        ({"recall": "high"}, TypeError, "recall: expected a number"),
        ({"resume": "state"}, ValueError, "resume: expected None, as only a MarketFolder"),
    ],
)
def test_options_that_are_not_as_described_are_named(market, options, error, message):
    with pytest.raises(error, match=message):
        js.match(market, made_user(1), **options)
    with pytest.raises(error, match=message):
        js.match(market, [made_user(1), made_user(2)], **options)


@pytest.mark.parametrize(
    ("who", "error", "message"),
    [
        (lambda: [], ValueError, "user: expected at least one user, got an empty sequence"),
        (lambda: [made_specification(0)], TypeError, r"user\[0\]: expected a UserSpecification"),
        (lambda: [made_user(0), None], TypeError, r"user\[1\]: expected a UserSpecification"),
        (lambda: None, TypeError, "user: expected a UserSpecification or a sequence"),
        (lambda: made_specification(0), TypeError, "user: expected a UserSpecification or a seq"),
        (lambda: {"me": made_user(0)}, TypeError, "user: expected a UserSpecification or a seq"),
        (lambda: 3, TypeError, "user: expected a UserSpecification or a sequence"),
        (lambda: "me", TypeError, "user: expected a UserSpecification or a sequence"),
    ],
)
def test_what_is_no_user_is_refused(market, who, error, message):
    for k in (None, 2):
        with pytest.raises(error, match=message):
            js.match(market, who(), k=k)


@pytest.mark.parametrize("where", [{}, None, "market", 3, SPACE])
def test_what_cannot_be_asked_is_refused(where):
    with pytest.raises(
        TypeError, match="where: expected a Market, an Index or a MarketFolder, got"
    ):
        js.match(where, made_user(0))


def changed(user, **fields):
    """Return the user with another reduced set or proxy where a field of these is given."""
    weights, points = fields.pop("weights", None), fields.pop("points", None)
    phi, vectors = user.reduced_set, fields.pop("vectors", None)
    if weights is not None or points is not None:
        fields["reduced_set"] = js.ReducedSet(
            phi.points if points is None else points, phi.weights if weights is None else weights
        )
    if vectors is not None:
        fields["proxy"] = js.Proxy(vectors, user.proxy.bias)
    return dataclasses.replace(user, **fields)


def with_infinity(points):
    return jnp.asarray(points).at[1, 1].set(jnp.inf)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda u: {"labels": u.labels + 1}, ValueError, r"labels: expected values in 0\.\.3"),
        (lambda u: {"labels": u.labels - 1}, ValueError, r"labels: expected values in 0\.\.3"),
        (lambda u: {"labels": u.labels[:1]}, ValueError, r"labels: expected shape \(40,\)"),
        (lambda u: {"labels": u.labels * 1.0}, TypeError, "labels: expected integer"),
        (lambda u: {"class_names": ("a", "b", "c", "a")}, ValueError, "class_names: .*different"),
        (lambda u: {"class_names": ("a", "b")}, ValueError, r"proxy.weights of shape \(6, 2\)"),
        (lambda u: {"class_names": "abcd"}, TypeError, "class_names: expected a sequence"),
        (lambda u: {"weights": u.reduced_set.weights[:1]}, ValueError, "reduced_set.weights of sh"),
        (lambda u: {"points": u.reduced_set.points[0]}, ValueError, r"points of shape \(n, 6\)"),
        (
            lambda u: {"points": u.reduced_set.points[:, :3]},
            ValueError,
            r"points of shape \(n, 6\)",
        ),
        (
            lambda u: {"points": with_infinity(u.reduced_set.points)},
            ValueError,
            "finite numbers in",
        ),
        (lambda u: {"vectors": u.proxy.weights[:1]}, ValueError, r"proxy.weights of shape \(6, 4"),
        (lambda u: {"vectors": u.proxy.weights[:, :1]}, ValueError, "proxy.weights of shape"),
        (lambda u: {"vectors": u.proxy.weights * 1e20}, ValueError, "at most 1e.15 in proxy.wei"),
        (lambda u: {"points": u.reduced_set.points * 1e20}, ValueError, "in reduced_set.points"),
        (lambda u: {"reduced_set": None}, TypeError, "expected a ReducedSet and a Proxy"),
        (lambda u: {"proxy": None}, TypeError, "expected a ReducedSet and a Proxy"),
        (lambda u: {"space_name": "x", "space_digest": "0"}, ValueError, "'x'.*'made-features'"),
        (lambda u: {"space_digest": "0"}, ValueError, "the kernel, its bandwidth, the dimension"),
    ],
)
def test_a_user_that_is_not_sound_is_refused_and_not_broadcast(market, change, error, message):
    user = made_user(1)
    broken = changed(user, **change(user))
    with pytest.raises(error, match=r"user[:.].*" + message):
        js.match(market, broken)
    with pytest.raises(error, match=r"user\[1\][:.].*" + message):
        js.match(market, [user, broken])


def test_user_arrays_are_those_of_the_answer(market):
    users = [made_user(1), made_user(2, classes=3)]
    arrays = js.user_arrays(market, users)
    assert arrays.points.shape[0] == 2
    np.testing.assert_array_equal(arrays.counts, [40, 30])
    np.testing.assert_array_equal(arrays.class_mask.sum(axis=1), [4, 3])
    np.testing.assert_allclose(arrays.weights.sum(axis=1), 1, rtol=1e-6)
    one = js.user_arrays(market, users[0])
    np.testing.assert_array_equal(one.points[:40], users[0].reduced_set.points)
    np.testing.assert_array_equal(one.labels[:40], users[0].labels)
    assert (one.labels[40:] == -1).all()
    with pytest.raises(TypeError, match="user: expected a UserSpecification"):
        js.user_arrays(market, 3)
