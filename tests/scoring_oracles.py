"""The evidence and the four scores in plain float64 numpy, one learnware and one user at a time.

Nothing here calls the library or reads its constants: every number is one of its documentation.
Specifications and users are only read (points, weights, proxies, class names, labels).
"""

import numpy as np

RIDGE_OUTPUTS, RIDGE_HIDDEN = 0.3, 0.1  # penalties of the leave-one-out regression


def array(value):
    return np.asarray(value, np.float64)


# Embeddings


def kernel_values(kernel, x, y):
    """Return k(x_i, y_j) of a Gaussian, inverse multiquadric or Laplacian kernel."""
    x, y, h = array(x), array(y), float(kernel.bandwidth)
    apart = x[:, None, :] - y[None, :, :]
    name = type(kernel).__name__
    if name == "Laplacian":
        return np.exp(-np.abs(apart).sum(axis=2) / h)
    square = (apart**2).sum(axis=2) / h**2
    return np.exp(-square / 2) if name == "Gaussian" else 1 / np.sqrt(1 + square)


def inner(kernel, one, other):
    """Return <Phi_1, Phi_2> of two specifications."""
    values = kernel_values(kernel, one.reduced_set.points, other.reduced_set.points)
    return array(one.reduced_set.weights) @ values @ array(other.reduced_set.weights)


def squared_mmd(kernel, one, other):
    return inner(kernel, one, one) + inner(kernel, other, other) - 2 * inner(kernel, one, other)


def closeness(kernel, one, other):
    norms = inner(kernel, one, one) * inner(kernel, other, other)
    return inner(kernel, one, other) / np.sqrt(norms)


# Classes


def class_vectors(spec):
    """Return the proxy's weights, a row per class, centred over the classes."""
    vectors = array(spec.proxy.weights).T
    return vectors - vectors.mean(axis=0)


def cosines(one, other):
    norms = np.linalg.norm(one, axis=-1)[:, None] * np.linalg.norm(other, axis=-1)[None]
    return one @ other.T / norms


def class_map(spec, user, by_name):
    """Return which class of the learnware stands for each class of the user, or -1."""
    if by_name:
        own = list(spec.class_names)
        return [own.index(name) if name in own else -1 for name in user.class_names]
    return greedy(cosines(class_vectors(spec), class_vectors(user)))


def greedy(similarity):
    """Return the row for every column: one to one, best pair first; left-over columns share."""
    rows, columns = similarity.shape
    pairs = sorted(
        ((-similarity[r, c], r, c) for r in range(rows) for c in range(columns)), key=lambda p: p[0]
    )
    found, used = {}, set()
    for _, row, column in pairs:
        if row not in used and column not in found:
            found[column] = row
            used.add(row)
    return [found.get(c, int(similarity[:, c].argmax())) for c in range(columns)]


def class_similarity(spec, user, chosen):
    """Return the cosine per user class, of vectors centred over the matched classes; -1 for none.

    A class that is matched alone has no direction left after centring: zero.
    """
    matched = [k for k, row in enumerate(chosen) if row >= 0]
    found = np.full(len(chosen), -1.0)
    if not matched:
        return found
    one = class_vectors(spec)[[chosen[k] for k in matched]]
    other = class_vectors(user)[matched]
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    alike = (one * other).sum(axis=1)
    found[matched] = np.where(norms > 1e-9, alike / np.maximum(norms, 1e-9), 0.0)
    return found


# Proxies


def lifted(space, points):
    """Return Nystroem features of points on the space's landmarks."""
    landmarks = array(space.landmarks)
    values, vectors = np.linalg.eigh(kernel_values(space.kernel, landmarks, landmarks))
    values = np.maximum(values, 1e-6 * values[-1])
    white = vectors / np.sqrt(values) @ vectors.T
    return kernel_values(space.kernel, points, landmarks) @ white


def own_logits(spec, points):
    """Return the linear proxy's logits, (n, C)."""
    return array(points) @ array(spec.proxy.weights) + array(spec.proxy.bias)


def probe_logits(space, spec, points):
    """Return the probe proxy's logits, (n, C)."""
    weights, bias = array(spec.probe_proxy.weights), array(spec.probe_proxy.bias)
    return lifted(space, points) @ weights + bias


def logits_of(space, spec, points):
    """Return the logits of the probe proxy, or of the linear one where there is none."""
    if spec.probe_proxy is None:
        return own_logits(spec, points)
    return probe_logits(space, spec, points)


def probabilities(logits):
    """Return probabilities (n, C) of logits brought to a root mean square of one, times two."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).mean())
    powers = np.exp(2 * (centred / size if size > 0 else centred))
    return powers / powers.sum(axis=1, keepdims=True)


def label_probability(space, spec, user, chosen):
    """Return the mean probability of the user's labels; zero for classes without a counterpart."""
    matched = [k for k, row in enumerate(chosen) if row >= 0]
    if not matched:
        return 0.0
    logits = logits_of(space, spec, user.reduced_set.points)[:, [chosen[k] for k in matched]]
    chance = probabilities(logits)
    labels = np.asarray(user.labels)
    found = np.zeros(len(labels))
    for place, k in enumerate(matched):
        found[labels == k] = chance[labels == k, place]
    return found.mean()


def share(user, chosen):
    """Return the part of the user's examples whose class has a counterpart."""
    return np.mean([chosen[label] >= 0 for label in np.asarray(user.labels)])


def explained(inputs, labels, classes, ridge):
    """Return 1 - error / variance of a ridge regression, solved anew without each example.

    Inputs (n, C) are centred and brought to a total variance of one.
    """
    n = len(labels)
    x = inputs - inputs.mean(axis=0)
    x = x / np.sqrt((x**2).sum() / n)
    y = np.eye(classes)[np.asarray(labels)]
    y = y - y.mean(axis=0)
    design = np.c_[x, np.ones(n)]
    penalty = n * np.diag([ridge] * x.shape[1] + [0.0])
    error = 0.0
    for i in range(n):
        rest = np.arange(n) != i
        matrix = design[rest].T @ design[rest] + penalty
        fitted = design[i] @ np.linalg.solve(matrix, design[rest].T @ y[rest])
        error += ((y[i] - fitted) ** 2).sum()
    return 1 - error / (y**2).sum()


def explained_by_outputs(space, spec, user):
    logits = logits_of(space, spec, user.reduced_set.points)
    logits = logits - logits.mean(axis=1, keepdims=True)
    return explained(logits, user.labels, len(user.class_names), RIDGE_OUTPUTS)


def explained_by_hidden(spec, user):
    hidden = array(user.reduced_set.points) @ array(spec.representation)
    return explained(hidden, user.labels, len(user.class_names), RIDGE_HIDDEN)


# What a market says of itself


def witness(space, spec):
    """Return the unit embedding's values at the landmarks."""
    values = kernel_values(space.kernel, space.landmarks, spec.reduced_set.points)
    return values @ array(spec.reduced_set.weights) / np.sqrt(inner(space.kernel, spec, spec))


def region(space, specs, spec):
    """Return how much each landmark counts for one learnware of the market's sample."""
    mean = np.mean([witness(space, one) for one in specs], axis=0)
    above = np.maximum(witness(space, spec) - mean, 0)
    return above / above.sum()


def kept_chances(space, spec):
    """Return the probe proxy's probabilities at the landmarks in 255 steps, (D, C)."""
    return np.rint(255 * probabilities(probe_logits(space, spec, space.landmarks))) / 255


def agreement(space, spec, peer, weights):
    """Return the mutual information of two probe proxies' classes over weighted landmarks."""
    one, other = kept_chances(space, spec), kept_chances(space, peer)
    joint = np.einsum("dc,db,d->cb", one, other, weights) + 1e-4
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    return (joint * np.log(joint / apart)).sum()


def sampled(specs):
    """Return which learnwares a market of at most 64 calibrates itself by: those with a probe."""
    probed = [spec for spec in specs if spec.probe_proxy is not None]
    return probed or list(specs)


def slope(space, specs):
    """Return nats of agreement per unit of closeness, shrunk towards 0.7."""
    sample = sampled(specs)
    if any(one.probe_proxy is None for one in sample):
        return 0.7
    top, bottom = 0.1 * 0.7, 0.1
    for i, one in enumerate(sample):
        weights = region(space, sample, one)
        others = [other for j, other in enumerate(sample) if j != i]
        if not others:
            continue
        x = np.array([closeness(space.kernel, one, other) for other in others])
        y = np.array([agreement(space, other, one, weights) for other in others])
        top += ((x - x.mean()) * (y - y.mean())).sum()
        bottom += ((x - x.mean()) ** 2).sum()
    return max(top / bottom, 0.0)


# Scores


def rkme(space, specs, user, by_name):
    return np.array([-squared_mmd(space.kernel, spec, user) for spec in specs])


def classwise(space, specs, user, by_name):
    found = []
    for spec in specs:
        chosen = class_map(spec, user, by_name)
        alike = class_similarity(spec, user, chosen).mean()
        found.append(alike + 2 * closeness(space.kernel, spec, user))
    return np.array(found)


def likelihood(space, specs, user, by_name):
    near = np.array([closeness(space.kernel, spec, user) for spec in specs])
    mean = np.mean([closeness(space.kernel, spec, user) for spec in sampled(specs)])
    apart = np.array([squared_mmd(space.kernel, spec, user) for spec in specs])
    has_probe = np.array([spec.probe_proxy is not None for spec in specs])
    maps = [class_map(spec, user, by_name) for spec in specs]
    part = np.array([share(user, chosen) for chosen in maps])
    shared = []
    for spec, chosen in zip(specs, maps, strict=True):
        matched = np.array(chosen) >= 0
        alike = class_similarity(spec, user, chosen)
        shared.append(alike[matched].mean() if matched.any() else 0.0)
    shared = np.array(shared)
    probability = part * (0.57 * shared + 1.14 * near - 0.61)
    agree = 0.25 * shared + 1.36 * near - 1.04
    if has_probe.mean() >= 0.5:  # what is withheld counts as answers without knowledge
        chance = np.clip(0.57 * shared + 1.14 * near - 0.61, 0, 1) / len(user.class_names)
        probability = part * chance
        agree = np.minimum(agree, 0)
    reliability = 0.0
    if has_probe.any():
        peer = int(np.where(has_probe, apart, np.inf).argmin())
        noise = (1 - inner(space.kernel, specs[peer], specs[peer])) / user.num_examples
        reliability = np.clip(3 - apart[peer] / noise, 0, 1)
        weights = region(space, sampled(specs), specs[peer])
        known = {
            i: agreement(space, spec, specs[peer], weights)
            for i, spec in enumerate(specs)
            if has_probe[i]
        }
        # A peer agrees with itself whatever it is worth: it gets the best of the others.
        known[peer] = max((value for i, value in known.items() if i != peer), default=0.0)
        for i, value in known.items():
            agree[i] = value
            probability[i] = label_probability(space, specs[i], user, maps[i])
    nearness = reliability * agree + slope(space, specs) * (near - mean)
    return probability + 0.6 * part * nearness


def transfer(space, specs, user, by_name):
    follow = min((slope(space, specs) / 0.7) ** 2, 1.0)
    some_represented = any(spec.representation is not None for spec in specs)
    probed = np.mean([spec.probe_proxy is not None for spec in specs]) >= 0.5
    found = []
    for spec in specs:
        outputs = explained_by_outputs(space, spec, user)
        if probed and spec.probe_proxy is None:
            outputs -= 1
        if by_name or not some_represented or spec.representation is None:
            hidden = outputs
        else:
            hidden = explained_by_hidden(spec, user)
        near = 2 * closeness(space.kernel, spec, user)
        found.append(outputs + follow * (hidden - outputs) + follow * near)
    return np.array(found)


SCORES = {"rkme": rkme, "classwise": classwise, "likelihood": likelihood, "transfer": transfer}
