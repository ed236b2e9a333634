"""A table, four owners with different subpopulations, and users who need a model.

The table is scikit-learn's digits: 1,797 rows of 64 numbers, ten classes. The rows of every class
are divided by how far the writing leans, so that each owner knows one kind of writer only. Owners
train random forests. A user of each kind has 60 labelled rows; the owner of that kind is taken out
of the market first, so that the answer is not obvious.

Run it with `python docs/examples/scikit_learn_table.py` after `pip install scikit-learn`.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler

import jaxspec as js

KINDS = ("far left", "left", "right", "far right")
NAMES = [f"digit {k}" for k in range(10)]
PUBLIC, OWNERS, LABELLED = 100, 200, 60  # rows of each kind


def kinds_of_writing(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 0..3 for every row: the quarter of its class into which its slant falls."""
    pictures = table.reshape(-1, 8, 8)
    row, column = np.mgrid[:8, :8]
    ink = pictures.sum(axis=(1, 2))
    down = row - ((pictures * row).sum(axis=(1, 2)) / ink)[:, None, None]
    right = column - ((pictures * column).sum(axis=(1, 2)) / ink)[:, None, None]
    slant = (pictures * down * right).sum(axis=(1, 2)) / (pictures * down**2).sum(axis=(1, 2))
    kinds = np.zeros(len(labels), int)
    for label in range(10):
        own = np.flatnonzero(labels == label)
        kinds[own[np.argsort(slant[own])]] = 4 * np.arange(len(own)) // len(own)
    return kinds


def main() -> None:
    """Make the market, ask it for four users, and compare with the truth."""
    table, labels = load_digits(return_X_y=True)
    kinds = kinds_of_writing(table, labels)
    rng = np.random.default_rng(0)
    rows = {name: rng.permutation(np.flatnonzero(kinds == i)) for i, name in enumerate(KINDS)}

    # The market publishes a space. Everybody scales columns by the same public rows.
    public = np.concatenate([own[:PUBLIC] for own in rows.values()])
    scaler = StandardScaler().fit(table[public])
    features = scaler.transform(table).astype(np.float32)
    space = js.Space.from_features("digits, scaled", features[public], probe=features[public])

    # Owners train models on their own rows and submit specifications.
    owned = {name: own[PUBLIC : PUBLIC + OWNERS] for name, own in rows.items()}
    models = {
        name: RandomForestClassifier(100, random_state=0).fit(table[own], labels[own])
        for name, own in owned.items()
    }
    specs = js.specify_many(
        space,
        [features[own] for own in owned.values()],
        [labels[own] for own in owned.values()],
        class_names=[NAMES] * len(owned),
        teachers=[models[name].predict_proba(table[own]) for name, own in owned.items()],
        probe_outputs=[model.predict_proba(table[public]) for model in models.values()],
        about=[{"owner": name, "rows": len(own)} for name, own in owned.items()],
    )
    market = js.Market(space, dict(zip(owned, specs, strict=True)))
    print(market)

    # Users ask; the truth is measured on rows that nobody has seen.
    for name, own in rows.items():
        fresh = own[PUBLIC + OWNERS :]
        mine, test = fresh[:LABELLED], fresh[LABELLED:]
        user = js.specify_user(space, features[mine], labels[mine], class_names=NAMES)
        found = js.match(market.remove([name]), user)
        accuracy = {other: models[other].score(table[test], labels[test]) for other in found.ids}
        chosen = found.top_k(1)[0][0]
        best = max(accuracy, key=accuracy.__getitem__)
        average = np.mean(list(accuracy.values()))
        print(
            f"user {name!r}: recommended {chosen!r}, right on {accuracy[chosen]:.1%} of "
            f"{len(test)} rows; best {best!r}, {accuracy[best]:.1%}; average {average:.1%}"
        )


if __name__ == "__main__":
    main()
