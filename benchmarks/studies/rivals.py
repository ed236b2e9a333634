"""Transferability scores from the literature, as rivals: LEEP, NCE, H-score and LogME.

Each takes what one model says about n labelled examples and returns one number, larger is better.
Plain numpy, one model at a time, as their papers write them; `identification.py` feeds them both
with the outputs of the specifications' proxies and with those of the real models.
"""

from __future__ import annotations

import numpy as np

__all__ = ["h_score", "leep", "logme", "nce"]


def leep(probabilities: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Log expected empirical prediction; Nguyen et al., ICML 2020, eq. 2.

    Args:
        probabilities: (n, C) of the source model.
        labels: (n,) target classes.
        classes: number of target classes.
    """
    joint = np.eye(classes)[labels].T @ probabilities / len(labels)  # (classes, C)
    conditional = joint / np.maximum(joint.sum(axis=0), 1e-12)
    expected = probabilities @ conditional.T
    return float(np.log(np.maximum(expected[np.arange(len(labels)), labels], 1e-12)).mean())


def nce(probabilities: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Negative conditional entropy of labels given hard source predictions; Tran et al. 2019."""
    joint = np.zeros((classes, probabilities.shape[1]))
    np.add.at(joint, (labels, probabilities.argmax(axis=1)), 1.0 / len(labels))
    conditional = joint / np.maximum(joint.sum(axis=0), 1e-12)
    return float((joint * np.log(np.maximum(conditional, 1e-12))).sum())


def h_score(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Trace of cov(f)^-1 cov(E[f|y]); Bao et al., ICIP 2019, with 1e-3 shrinkage for n = 50.

    Args:
        features: (n, p).
        labels: (n,) target classes.
        classes: number of target classes.
    """
    centred = features - features.mean(axis=0)
    means = np.stack([centred[labels == k].mean(axis=0) for k in range(classes)])[labels]
    covariance = centred.T @ centred / len(labels)
    shrink = 1e-3 * np.trace(covariance) / len(covariance) + 1e-12
    covariance += shrink * np.eye(len(covariance))
    return float(np.trace(np.linalg.solve(covariance, means.T @ means / len(labels))))


def logme(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Log maximum evidence of a linear model, mean over one-hot targets; You et al., ICML 2021."""
    n, p = features.shape
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    squared = s**2
    evidences = []
    for k in range(classes):
        y = (labels == k).astype(float)
        projected = (u.T @ y) ** 2
        rest = max(float(y @ y - projected.sum()), 0.0)
        alpha = beta = 1.0
        for _ in range(50):
            gamma = (beta * squared / (alpha + beta * squared)).sum()
            weight = (beta**2 * squared * projected / (alpha + beta * squared) ** 2).sum()
            residual = rest + (projected * alpha**2 / (alpha + beta * squared) ** 2).sum()
            new_alpha = gamma / max(weight, 1e-12)
            new_beta = (n - gamma) / max(residual, 1e-12)
            done = abs(new_alpha / alpha - 1) < 1e-3 and abs(new_beta / beta - 1) < 1e-3
            alpha, beta = new_alpha, new_beta
            if done:
                break
        evidence = (
            p / 2 * np.log(alpha)
            + n / 2 * np.log(beta)
            - n / 2 * np.log(2 * np.pi)
            - beta / 2 * residual
            - alpha / 2 * weight
            - np.log(alpha + beta * squared).sum() / 2
            - max(p - len(s), 0) * np.log(alpha) / 2
        )
        evidences.append(evidence / n)
    return float(np.mean(evidences))
