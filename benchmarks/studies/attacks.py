"""Who buys a better rank? Useless models that lie, withhold or scale, and what finds them out.

    python -m benchmarks.studies.attacks --cache DIR [--markets 10] [--first 1000] [--part table]

draws markets of the demo (22 trained heads, 22 users) and adds one useless model, specified
honestly or by an attack. Every user asks a market without its own learnware.

    --part table    how often the useless model comes into the first three, beside its honest
                    specification, and how often the search of `admit` finds it suspicious
    --part bare     the same in markets without probe proxies
    --part rules    what a missing probe proxy may count as
    --part verify   agreements, and both kinds of errors of `verify`

Markets with seeds 0 to 7 served to choose rules and thresholds; reported ones start at 1000.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
from benchmarks.records import merge_results, print_table, progress
from benchmarks.studies.attack_markets import USELESS, AttackMarket, load_market
from jaxspec.admission.suspicions import FLOORS, Suspicions, threshold_of
from jaxspec.applications.demo_data import load_fashion_contexts
from jaxspec.kernels import lift
from jaxspec.scoring import Score, as_score
from jaxspec.specify import fit_probe_proxies, fit_proxy

__all__ = ["FORMAL", "LIES", "attacks_on", "first_three", "ranks_of"]

FORMAL = (
    "W times 10",
    "W times 0.1",
    "weights times 10",
    "weights times 0.1",
    "weights negated",
    "200 further classes",
    "all class names",
    "confident constants",
    "hidden principal directions",
)
LIES = (
    "mixture with averaged answers",
    "averaged answers",
    "half of the answers averaged",
    "shuffled answers",
    "copy of the best",
    "jittered copy",
)
PROBE_ONLY = ("averaged answers", "half of the answers averaged", "shuffled answers")
HIDDEN = ("honest", "hidden principal directions", "without representation")
WITHHELD = ("without probe", "without representation", "mixture without probe")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis."""
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float32), axis=-1), np.float64)


def answers(space: js.Space, spec: js.Specification, rows: np.ndarray) -> np.ndarray:
    """Return the class probabilities that a specification publishes, (n, C)."""
    if spec.probe_proxy is None:
        return softmax(rows @ np.asarray(spec.proxy.weights) + np.asarray(spec.proxy.bias))
    lifted = np.asarray(lift(space.kernel, space.landmarks, space.whitening, rows))
    return softmax(
        lifted @ np.asarray(spec.probe_proxy.weights) + np.asarray(spec.probe_proxy.bias)
    )


def attacks_on(market: AttackMarket, kind: str) -> dict[str, js.Specification]:
    """Return {attack: specification} of a useless model, with "honest" first.

    Args:
        market: that is attacked.
        kind: of the useless model.
    """
    space, honest = market.space, market.useless[kind]
    made = {"honest": honest}
    made |= _formal(market, honest)
    made |= _lies(market, honest)
    made["without probe"] = dataclasses.replace(honest, probe_proxy=None)
    made["without representation"] = dataclasses.replace(honest, representation=None)
    mixture = made["mixture with averaged answers"]
    made["mixture without probe"] = dataclasses.replace(mixture, probe_proxy=None)
    assert space.digest == honest.space_digest
    return made


def _formal(market: AttackMarket, honest: js.Specification) -> dict[str, js.Specification]:
    """Return attacks that change the form of what is said, and nothing of what the model does."""
    replace, rng = dataclasses.replace, np.random.default_rng(market.seed)
    reduced, proxy, probe = honest.reduced_set, honest.proxy, honest.probe_proxy
    assert probe is not None
    made = {}
    for name, factor in (("W times 10", 10.0), ("W times 0.1", 0.1)):
        scaled = js.Proxy(proxy.weights * factor, proxy.bias * factor)
        answers_scaled = replace(probe, weights=probe.weights * factor, bias=probe.bias * factor)
        made[name] = replace(honest, proxy=scaled, probe_proxy=answers_scaled)
    for name, factor in (
        ("weights times 10", 10.0),
        ("weights times 0.1", 0.1),
        ("weights negated", -1.0),
    ):
        made[name] = replace(
            honest, reduced_set=js.ReducedSet(reduced.points, reduced.weights * factor)
        )

    def widened(names: Sequence[str], columns: np.ndarray) -> js.Specification:
        """Return the specification with further classes whose columns are `columns` of its own."""
        noise = [
            rng.normal(size=(len(one), len(columns))) for one in (proxy.weights, probe.weights)
        ]
        extra = [
            np.asarray(one)[:, columns] + 0.1 * np.asarray(one).std() * more
            for one, more in zip((proxy.weights, probe.weights), noise, strict=True)
        ]
        wide = [
            jnp.asarray(np.concatenate([np.asarray(one), more], axis=1), jnp.float32)
            for one, more in zip((proxy.weights, probe.weights), extra, strict=True)
        ]
        biases = [
            jnp.concatenate([one.bias, jnp.asarray(np.asarray(one.bias)[columns])])
            for one in (proxy, probe)
        ]
        return replace(
            honest,
            class_names=tuple(names),
            proxy=js.Proxy(wide[0], biases[0]),
            probe_proxy=replace(probe, weights=wide[1], bias=biases[1]),
        )

    own = honest.class_names
    more = tuple(f"further class {i}" for i in range(200))
    made["200 further classes"] = widened((*own, *more), rng.integers(0, len(own), 200))
    every = dict.fromkeys(name for one in market.honest.values() for name in one.class_names)
    other = tuple(name for name in every if name not in own)
    made["all class names"] = widened((*own, *other), rng.integers(0, len(own), len(other)))
    constant = np.zeros(len(own), np.float32)
    constant[0] = 20.0
    made["confident constants"] = replace(
        honest,
        proxy=js.Proxy(jnp.zeros_like(proxy.weights), jnp.asarray(constant)),
        probe_proxy=replace(
            probe, weights=jnp.zeros_like(probe.weights), bias=jnp.asarray(constant)
        ),
    )
    rows = np.asarray(market.space.probe)
    directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2]
    rank = np.shape(honest.representation)[1]
    made["hidden principal directions"] = replace(
        honest, representation=jnp.asarray(directions[:rank].T)
    )
    return made


def _lies(market: AttackMarket, honest: js.Specification) -> dict[str, js.Specification]:
    """Return attacks that say what other learnwares say."""
    space, replace = market.space, dataclasses.replace
    rng = np.random.default_rng(market.seed)
    probe = np.asarray(space.probe)
    alike = [one for one in market.honest.values() if one.class_names == honest.class_names]
    mean = np.mean([answers(space, one, probe) for one in alike], axis=0)
    (averaged,) = fit_probe_proxies(space.kernel, space.landmarks, space.whitening, probe, [mean])
    kind = next(name for name, one in market.useless.items() if one is honest)
    own = np.asarray(market.models[kind](market.probe_inputs), np.float64)
    half = np.where((rng.random(len(probe)) < 0.5)[:, None], own, mean)
    shuffled = own[rng.permutation(len(own))]
    (halved, permuted) = fit_probe_proxies(
        space.kernel, space.landmarks, space.whitening, probe, [half, shuffled]
    )
    low = replace(halved, fidelity=jnp.float32(0.3))  # what it states is up to the submitter
    points = np.concatenate([np.asarray(one.reduced_set.points) for one in market.honest.values()])
    weights = np.concatenate(
        [np.asarray(one.reduced_set.weights) for one in market.honest.values()]
    )
    chance = np.maximum(weights, 0) / np.maximum(weights, 0).sum()
    rows = points[rng.choice(len(points), size=800, p=chance)]
    near = float(space.kernel.bandwidth)
    pooled = np.mean(
        [answers(space, replace(one, probe_proxy=None), rows) for one in alike], axis=0
    )
    labels = pooled.argmax(axis=1)
    proxy = fit_proxy(rows, labels, num_classes=pooled.shape[1], teacher=pooled)
    jittered = rows + 0.02 * near * rng.normal(size=rows.shape).astype(np.float32) / np.sqrt(
        rows.shape[1]
    )
    mixed = js.reduce_set(jittered, size=50, kernel=space.kernel)
    mixture = replace(honest, reduced_set=mixed, proxy=proxy, probe_proxy=averaged)
    best = list(market.honest)[int(market.accuracy.mean(axis=0).argmax())]
    copied = market.honest[best]
    size = np.asarray(copied.reduced_set.points).std()

    def shaken(value: Any, by: float) -> Any:
        noise = rng.normal(size=np.shape(value)).astype(np.float32)
        return value + by * noise

    assert copied.probe_proxy is not None
    jitter = replace(
        copied,
        reduced_set=js.ReducedSet(
            shaken(copied.reduced_set.points, 0.02 * size), copied.reduced_set.weights
        ),
        proxy=replace(
            copied.proxy,
            weights=shaken(copied.proxy.weights, 0.05 * float(copied.proxy.weights.std())),
        ),
        probe_proxy=replace(
            copied.probe_proxy,
            weights=shaken(
                copied.probe_proxy.weights, 0.05 * float(copied.probe_proxy.weights.std())
            ),
        ),
    )
    return {
        "mixture with averaged answers": mixture,
        "averaged answers": replace(honest, probe_proxy=averaged),
        "half of the answers averaged": replace(honest, probe_proxy=low),
        "shuffled answers": replace(honest, probe_proxy=permuted),
        "copy of the best": copied,
        "jittered copy": jitter,
    }


@partial(jax.jit, static_argnames="score")
def _scores(arrays: Any, users: Any, alive: Any, *, score: Score) -> Any:
    def one(user: Any, own: Any) -> Any:
        return js.score_arrays(dataclasses.replace(arrays, alive=own), user, method=score)

    return jax.lax.map(lambda pair: one(*pair), (users, alive))


def ranks_of(
    grown: js.Market,
    users: Sequence[js.UserSpecification],
    score: Score,
    absent: Sequence[Sequence[str]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of the learnware that was added last, (Q,), and all scores (Q, M + 1).

    Args:
        grown: the market with it.
        users: who ask.
        score: which score.
        absent: of each user, the learnwares that its market lacks.
    """
    arrays, count = grown.arrays, len(grown)
    assert arrays.alive is not None
    alive = np.repeat(np.asarray(arrays.alive)[None], len(users), axis=0)
    for row, names in zip(alive, absent, strict=True):
        row[[grown.ids.index(name) for name in names]] = False
    found = _scores(arrays, js.user_arrays(grown, list(users)), alive, score=score)
    scores = np.asarray(found)[:, :count]
    own = scores[:, -1]
    ranks = (scores[:, :-1] > own[:, None]).sum(axis=1)
    return ranks, scores


def first_three(ranks: np.ndarray) -> np.ndarray:
    """Return whether each rank is among the first three."""
    return ranks < 3


def stripped(spec: js.Specification) -> js.Specification:
    """Return a specification without a probe proxy."""
    return dataclasses.replace(spec, probe_proxy=None)


# What a missing probe proxy counts as: the rules that were compared.


@dataclasses.dataclass(frozen=True)
class Rule:
    """The score for direct use with another rule for learnwares without a probe proxy.

    Attributes:
        name: of the rule.
        rule: function of (evidence, default score) that returns p and G where no probe proxy is.
    """

    name: str
    rule: Callable[[Any, js.Likelihood], tuple[Any, Any]]
    needs = js.Likelihood.needs

    def __call__(self, evidence: Any) -> Any:
        """Return the score."""
        default, known = js.Likelihood(), evidence.has_probe
        guess, agree = self.rule(evidence, default)
        probability = jnp.where(known, evidence.label_probability, guess)
        agreement = jnp.where(known, evidence.agreement, agree)
        centred = evidence.closeness - evidence.mean_closeness
        nearness = evidence.reliability * agreement + evidence.slope * centred
        return probability + default.weight * evidence.share * nearness


def _guessed(e: Any, s: js.Likelihood) -> tuple[Any, Any]:
    return e.share * s.probability_guess(e), s.agreement_guess(e)


def _chance(e: Any, s: js.Likelihood) -> tuple[Any, Any]:
    return 0.2 * e.share, jnp.zeros_like(e.share)


def _smaller(e: Any, s: js.Likelihood) -> tuple[Any, Any]:
    p, g = _guessed(e, s)
    return jnp.minimum(p, e.label_probability), jnp.minimum(g, 0.0)


def _proxy(e: Any, s: js.Likelihood) -> tuple[Any, Any]:
    return e.label_probability, jnp.zeros_like(e.share)


def _quantile(share: float) -> Callable[[Any, js.Likelihood], tuple[Any, Any]]:
    def rule(e: Any, s: js.Likelihood) -> tuple[Any, Any]:
        known = e.has_probe & (e.share > 0)

        def low(values: Any) -> Any:
            kept = jnp.where(known, values, jnp.nan)
            return jnp.broadcast_to(
                jnp.nanquantile(kept, share, axis=0, keepdims=True), values.shape
            )

        part = e.label_probability / jnp.maximum(e.share, 1e-6)
        return e.share * low(part), low(e.agreement)

    return rule


def _smallest(e: Any, s: js.Likelihood) -> tuple[Any, Any]:
    p, g = _smaller(e, s)
    return jnp.minimum(p, 0.2 * e.share), g


RULES = {
    "guess from similarity and closeness": _guessed,
    "chance": _chance,
    "the linear proxy, no agreement": _proxy,
    "smaller of guess and linear proxy": _smaller,
    "smaller of those and chance": _smallest,
    "worst of the market": _quantile(0.0),
    "lowest tenth of the market": _quantile(0.1),
    "lowest quarter of the market": _quantile(0.25),
}


def compare_rules(markets: Sequence[AttackMarket]) -> list[tuple[Any, ...]]:
    """Return rows of a table: rates in the first three, and what honest owners lose.

    The last columns are the regret, in points, of the first answer in markets where a random half
    of the honest learnwares publishes no probe proxy.
    """
    rows = []
    for name, rule in RULES.items():
        score = Rule(name, rule)
        rates: dict[str, list[np.ndarray]] = {}
        lost, hit, half_first = [], [], []
        for market in markets:
            base = js.Market(market.space, market.honest)
            names, users = list(market.honest), market.users
            absent = [[one] for one in names]
            for kind in USELESS:
                honest = market.useless[kind]
                for how, spec in (("published", honest), ("withheld", stripped(honest))):
                    ranks, _ = ranks_of(base.add({"added": spec}), users, score, absent)
                    rates.setdefault(f"{kind}, {how}", []).append(first_three(ranks))
            rng = np.random.default_rng(market.seed)
            some = rng.random(len(names)) < 0.5
            mixed = {
                one: stripped(spec) if hidden else spec
                for (one, spec), hidden in zip(market.honest.items(), some, strict=True)
            }
            half = js.Market(market.space, mixed)
            grown = half.add({"added": stripped(market.useless[USELESS[0]])})
            ranks, scores = ranks_of(grown, users, score, absent)
            chosen = scores[:, :-1].argmax(axis=1)
            truth = np.where(np.eye(len(names), dtype=bool), -np.inf, market.accuracy)
            lost.append(truth.max(axis=1) - truth[np.arange(len(names)), chosen])
            hit.append(chosen == truth.argmax(axis=1))
            half_first.append(some[chosen])
        figures = [100 * np.mean(np.concatenate(one)) for one in rates.values()]
        figures += [100 * np.mean(np.concatenate(one)) for one in (lost, hit, half_first)]
        rows.append((name, *map(float, figures)))
        progress(f"{name}: {[round(one, 1) for one in figures]}")
    headers = ["missing probe proxy", *rates, "regret, half publish", "Pre@1", "withheld first"]
    print_table("First three, % of users; direct use, unseen", headers, rows)
    return rows


def table_of_attacks(markets: Sequence[AttackMarket], *, probed: bool) -> dict[str, Any]:
    """Return {attack: figures} over all users of all markets, and print them.

    Figures are the share of users for whom the useless model comes into the first three, in direct
    use and in fine-tuning; the difference to its honest specification with a 95 % bootstrap
    interval over markets and useless models; and how often the specification is suspicious.
    """
    hits: dict[str, dict[str, dict[Any, np.ndarray]]] = {}
    refused: dict[str, list[bool]] = {}
    searches: list[Suspicions] = []
    for market in markets:
        honest = market.honest
        if not probed:
            honest = {name: stripped(spec) for name, spec in honest.items()}
        base = js.Market(market.space, honest)
        names = list(honest)
        search = Suspicions(base, js.Policy())
        searches.append(search)
        apart = [
            [name for name in names if name.rsplit(" ", 1)[0] == names[2 * i].rsplit(" ", 1)[0]]
            for i in range(len(market.strangers))
        ]
        asked = {
            "direct": ("likelihood", market.users, [[name] for name in names]),
            "fine-tuning": ("transfer", market.users, [[name] for name in names]),
            "other classes": ("transfer", market.strangers, apart),
        }
        for kind in USELESS:
            specs = attacks_on(market, kind)
            if not probed:
                kept = {name for name, spec in specs.items() if spec.probe_proxy is not None}
                specs = {name: stripped(specs[name]) for name in specs if name in kept}
                specs = {name: spec for name, spec in specs.items() if name not in PROBE_ONLY}
            suspicious = search.of(specs)
            for attack, spec in specs.items():
                if attack in FORMAL and kind != USELESS[market.seed % 2]:
                    continue  # half of the time: they are many and gain nothing
                grown = base.add({"added": spec})
                refused.setdefault(attack, []).append(bool(suspicious[attack]))
                for use, (method, users, absent) in asked.items():
                    if use == "other classes" and attack not in HIDDEN:
                        continue
                    ranks, _ = ranks_of(grown, users, as_score("method", method), absent)
                    own = hits.setdefault(attack, {}).setdefault(use, {})
                    own[market.seed, kind] = first_three(ranks)
        progress(f"market {market.seed}")
    rng, table = np.random.default_rng(0), {}
    for attack, uses in hits.items():
        figures: dict[str, Any] = {}
        for use, found in uses.items():
            own = np.array([found[place].mean() for place in found])
            gain = own - np.array([hits["honest"][use][place].mean() for place in found])
            draws = gain[rng.integers(0, len(gain), (2000, len(gain)))].mean(axis=1)
            interval = np.quantile(draws, [0.025, 0.975])
            figures[use] = [100 * float(own.mean()), *(100 * interval).tolist()]
        figures["admit flags"] = 100 * float(np.mean(refused[attack]))
        table[attack] = figures
    rows = []
    for attack, figures in table.items():
        cells = [
            f"{figures[use][0]:.1f} ({figures[use][1]:+.1f}..{figures[use][2]:+.1f})"
            if use in figures
            else ""
            for use in ("direct", "fine-tuning", "other classes")
        ]
        rows.append((attack, *cells, f"{figures['admit flags']:.0f}"))
    users = sum(len(market.users) for market in markets)
    headers = ["attack", "direct", "fine-tuning", "other classes", "flagged by admit, %"]
    title = "with probes" if probed else "without probes"
    print_table(
        f"First three, % of {users} users (gain over honest), {title}",
        headers,
        rows,
    )
    return {"attacks": table, "false alarms": false_alarms(searches)}


def false_alarms(searches: Sequence[Suspicions]) -> dict[str, float]:
    """Return {kind: % of honest learnwares that are flagged}, with thresholds of the others."""
    found: dict[str, list[bool]] = {}
    for search in searches:
        flags = np.zeros(len(search.own), bool)
        for kind in next(iter(search.own.values())):
            values = np.array([one[kind][0] for one in search.own.values()])
            for i, value in enumerate(values):
                limit = max(threshold_of(np.delete(values, i), 0.01), FLOORS[kind])
                alarm = bool(value > limit)
                found.setdefault(kind, []).append(alarm)
                flags[i] |= alarm
        found.setdefault("any", []).extend(flags.tolist())
    shares = {kind: 100 * float(np.mean(values)) for kind, values in found.items()}
    print_table("Honest learnwares that are flagged, %", list(shares), [list(shares.values())])
    return shares


def errors_of_verify(markets: Sequence[AttackMarket], keys: int = 2) -> dict[str, Any]:
    """Return {specification: runs, refused %, range of agreement}, with 200 rows of the probe."""
    found: dict[str, list[js.Verification]] = {}
    for market in markets:
        named: list[tuple[str, js.Specification, Any]] = []
        for name, spec in market.honest.items():
            named.append(("honest models", spec, market.models[name]))
            named.append(("honest models, without probe", stripped(spec), market.models[name]))
        for kind in USELESS:
            specs = attacks_on(market, kind)
            model = market.models[kind]
            named.append(("useless models, honest specification", specs["honest"], model))
            named += [(name, specs[name], model) for name in (*LIES, "mixture without probe")]
        for name, spec, model in named:
            for number in range(keys):
                own = jax.random.key(number)
                for fresh in (False, True):
                    features = market.fresh_inputs[:, :64] if fresh else None
                    inputs = market.fresh_inputs if fresh else market.probe_inputs
                    ran = js.verify(
                        spec, model, market.space, inputs=inputs, features=features, key=own
                    )
                    found.setdefault(name + (", fresh rows" if fresh else ""), []).append(ran)
        progress(f"market {market.seed}")
    table, rows = {}, []
    for name, ran in found.items():
        agreements = np.array([one.agreement for one in ran])
        share = 100 * float(np.mean([not one.accepted for one in ran]))
        table[name] = [len(ran), share, float(agreements.min()), float(agreements.max())]
        rows.append((name, len(ran), f"{share:.1f}", *table[name][2:]))
    print_table("verify, 200 rows", ["specification", "runs", "refused, %", "least", "most"], rows)
    return table


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--markets", type=int, default=10)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first market")
    parser.add_argument("--part", choices=("rules", "table", "bare", "verify"), default="table")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    data = load_fashion_contexts()
    seeds = range(options.first, options.first + options.markets)
    markets = [load_market(seed, options.cache, data) for seed in seeds]
    found: dict[str, Any] = {}
    if options.part == "rules":
        found["rules"] = compare_rules(markets)
    elif options.part == "verify":
        found["verify"] = errors_of_verify(markets)
    else:
        found = table_of_attacks(markets, probed=options.part == "table")
    if options.output:
        merge_results(options.output, {options.part: found}, seeds=list(seeds))


if __name__ == "__main__":
    main()
