"""The eleven visual contexts of Fashion-MNIST: how a picture is shown in each of them.

May be called: `render`, which gives the same bytes on every call. scipy and pillow are imported
only by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.datasets.features import SIDE

__all__ = ["CONTEXT_NAMES", "SEED", "render"]

CONTEXT_NAMES = (
    "upright",
    "inverted",
    "rotated",
    "textured",
    "edges",
    "pixelated",
    "noisy",
    "blurred",
    "tinted",
    "small",
    "upside down",
)
SEED = 20230712


def _resize(grey: np.ndarray, side: int, method: str = "BICUBIC") -> np.ndarray:
    """Return (h, w) floats in [0, 1] at (side, side), by eight bits, which are exact everywhere."""
    from PIL import Image

    eight = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    return np.asarray(eight.resize((side, side), Image.Resampling[method]), np.float64) / 255


def _hue(angle: float) -> np.ndarray:
    """Return a saturated colour (3,) for an angle in turns."""
    return 0.5 + 0.5 * np.cos(2 * np.pi * (angle - np.array([0.0, 1.0, 2.0]) / 3))


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _upright(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(grey)


def _inverted(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(1 - grey)


def _rotated(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn left by an eighth: after a quarter, other contexts can reuse little."""
    from PIL import Image

    eight = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    return _rgb(np.asarray(eight.rotate(45, Image.Resampling.BICUBIC), np.float64) / 255)


def _upside_down(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(np.rot90(grey, 2))


def _textured(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put the piece on a striped, blotched and coloured cloth."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, phase, frequency = rng.uniform([0, 0, 3], [np.pi, 2 * np.pi, 7])
    along = rows * np.sin(angle) + columns * np.cos(angle)
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * along + phase)
    blotches = _resize(rng.random((8, 8)), SIDE)
    cloth = (0.6 * stripes + 0.4 * blotches)[..., None]
    turn = rng.random()
    cloth = cloth * _hue(turn) + (1 - cloth) * 0.6 * _hue(turn + 0.4)
    cover = np.clip(3 * grey, 0, 1)[..., None]
    return cover * _rgb(grey) + (1 - cover) * cloth


def _edges(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw bright outlines on black: the size of the gradient at a scale of one pixel."""
    from scipy import ndimage

    size = ndimage.gaussian_gradient_magnitude(grey, sigma=1.0)
    return _rgb(np.clip(size / max(np.quantile(size, 0.98), 1e-3), 0, 1))


def _pixelated(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(_resize(_resize(grey, 16, "BOX"), SIDE, "NEAREST"))


def _noisy(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add grey noise with a grain of three pixels, so that the thumbnail shows it too."""
    grain = np.kron(rng.normal(0, 0.1, (SIDE // 3, SIDE // 3)), np.ones((3, 3)))
    return _rgb(0.15 + 0.7 * grey + grain)


def _blurred(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    return _rgb(ndimage.gaussian_filter(grey, sigma=3.0))


def _tinted(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace black and white by two colours that are opposite on the wheel."""
    turn = rng.uniform(-0.12, 0.12)
    shade, light = 0.75 * _hue(0.62 + turn), _hue(0.10 + turn)
    return (1 - grey[..., None]) * shade + grey[..., None] * light


def _small(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Show half the size, anywhere on a grey ground."""
    side = 48
    top, left = rng.integers(0, SIDE - side + 1, 2)
    ground = np.full((SIDE, SIDE), rng.uniform(0.3, 0.5))
    piece = _resize(grey, side, "LANCZOS")
    cover = np.clip(6 * piece, 0, 1)
    window = ground[top : top + side, left : left + side]
    ground[top : top + side, left : left + side] = cover * piece + (1 - cover) * window
    return _rgb(ground)


_RENDERERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "upright": _upright,
    "inverted": _inverted,
    "rotated": _rotated,
    "textured": _textured,
    "edges": _edges,
    "pixelated": _pixelated,
    "noisy": _noisy,
    "blurred": _blurred,
    "tinted": _tinted,
    "small": _small,
    "upside down": _upside_down,
}


def render(picture: np.ndarray, context: str, index: int, *, seed: int = SEED) -> np.ndarray:
    """Return one picture as one context shows it.

    Args:
        picture: (28, 28) uint8, bright on black.
        context: one of `CONTEXT_NAMES`.
        index: the picture's row; with `seed` it fixes every random choice.
        seed: of the study.

    Returns:
        (96, 96, 3) uint8, the same bytes on every call.
    """
    rng = np.random.default_rng([seed, index])
    grey = _resize(picture / 255, SIDE)
    return np.round(255 * np.clip(_RENDERERS[context](grey, rng), 0, 1)).astype(np.uint8)
