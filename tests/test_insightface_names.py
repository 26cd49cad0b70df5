"""The names of eval.verification that forks of insightface call, against loops over pairs, thresholds and folds written here."""
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from eval import verification
from eval.verification import load_bin, read_bin, resized
from utils import InputError
from utils.images import decode_image, encode_image
from utils.recordio import import_mxnet


def pictures(count, size=16, seed=0):
    """Smooth pictures, as interpolation has to do with them: uint8 [3, size, size] each."""
    noise = torch.randint(0, 256, (count, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return list(nn.functional.interpolate(noise, (size, size), mode="bilinear"))


@pytest.fixture
def write(tmp_path):
    def writer(images, same, kind="png"):
        (tmp_path / "faces.bin").write_bytes(pickle.dumps(([encode_image(image, kind) for image in images], same)))
        return tmp_path / "faces.bin"
    return writer


def embedded(pairs=53, dimension=6, seed=0):
    """Unit embeddings [2 pairs, D] of which true pairs are nearer, and labels."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    left, other = rng.normal(size=(2, pairs, dimension))
    right = np.where(same[:, None], left + 0.9 * other, other)
    both = np.stack([left, right], 1).reshape(2 * pairs, dimension)
    return both / np.linalg.norm(both, axis=1, keepdims=True), same


def rates(distances, same, threshold):
    true = [d < threshold for d, s in zip(distances, same) if s]
    false = [d < threshold for d, s in zip(distances, same) if not s]
    right = [(d < threshold) == s for d, s in zip(distances, same)]
    return sum(true) / len(true) if true else 0, sum(false) / len(false) if false else 0, sum(right) / len(right)


def folds_of(count, folds):
    from sklearn.model_selection import KFold
    return list(KFold(folds, shuffle=False).split(np.zeros(count))) if folds > 1 else [(np.arange(count), np.arange(count))]


# rates

@pytest.mark.parametrize("folds", [1, 2, 10])
def test_folds(folds):
    found = list(verification.LFold(n_splits=folds, shuffle=False).split(np.zeros(23)))
    for (train, test), (expected_train, expected_test) in zip(found, folds_of(23, folds), strict=True):
        assert train.tolist() == expected_train.tolist() and test.tolist() == expected_test.tolist()
    for wrong in ((0, False), (3, True)):
        with pytest.raises(InputError, match="not shuffled"):
            verification.LFold(*wrong)
    with pytest.raises(InputError, match="24-fold accuracy needs at least 24 pairs, found 23"):
        list(verification.LFold(24).split(np.zeros(23)))


def test_rates_at_a_threshold():
    embeddings, same = embedded()
    distances = ((embeddings[0::2] - embeddings[1::2]) ** 2).sum(1)
    for threshold in (0., 0.5, 1.3, 4.1, distances[7]):
        expected = rates(distances, same, threshold)
        assert verification.calculate_accuracy(threshold, distances, same.tolist()) == pytest.approx(expected)
        assert verification.calculate_val_far(threshold, distances, same) == pytest.approx(expected[:2])
    assert verification.calculate_accuracy(9., distances[same], same[same]) == (1, 0, 1)


@pytest.mark.parametrize("folds", [1, 5, 10])
def test_roc_and_accuracy_by_fold(folds):
    embeddings, same = embedded()
    left, right, thresholds = embeddings[0::2], embeddings[1::2], np.arange(0, 4, 0.05)
    distances = [sum((a - b) ** 2 for a, b in zip(u, v)) for u, v in zip(left, right)]
    distances = np.array(distances)
    tpr, fpr, accuracies = [], [], []
    for train, test in folds_of(len(same), folds):
        best = max(thresholds, key=lambda t: rates(distances[train], same[train], t)[2])  # the first of the best
        accuracies.append(rates(distances[test], same[test], best)[2])
        tpr.append([rates(distances[test], same[test], t)[0] for t in thresholds])
        fpr.append([rates(distances[test], same[test], t)[1] for t in thresholds])
    found = verification.calculate_roc(thresholds, left, right, same, nrof_folds=folds)
    for one, other in zip(found, (np.mean(tpr, 0), np.mean(fpr, 0), accuracies), strict=True):
        assert one == pytest.approx(np.array(other), abs=1e-12)


def test_principal_components_are_those_of_the_training_folds():
    from sklearn.decomposition import PCA
    embeddings, same = embedded(40, 8)
    left, right, thresholds = embeddings[0::2], embeddings[1::2], np.arange(0, 4, 0.01)
    accuracies = []
    for train, test in folds_of(40, 10):
        model = PCA(n_components=3, svd_solver="full").fit(np.concatenate([left[train], right[train]]))
        u, v = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (model.transform(left), model.transform(right)))
        distances = ((u - v) ** 2).sum(1)
        best = max(thresholds, key=lambda t: rates(distances[train], same[train], t)[2])
        accuracies.append(rates(distances[test], same[test], best)[2])
    assert verification.calculate_roc(thresholds, left, right, same, pca=3)[2] == pytest.approx(np.array(accuracies))
    assert verification.evaluate(embeddings, same, pca=3)[2] == pytest.approx(np.array(accuracies))


@pytest.mark.parametrize("far_target", [1e-3, 0.03, 0.1])
def test_validation_rate_at_a_far(far_target):
    embeddings, same = embedded(90, seed=3)
    left, right, thresholds = embeddings[0::2], embeddings[1::2], np.arange(0, 4, 0.01)
    distances = ((left - right) ** 2).sum(1)
    vals, fars = [], []
    for train, test in folds_of(90, 10):
        threshold = max(t for t in thresholds if rates(distances[train], same[train], t)[1] <= far_target)
        val, far, _ = rates(distances[test], same[test], threshold)
        vals.append(val), fars.append(far)
    found = verification.calculate_val(thresholds, left, right, same, far_target, nrof_folds=10)
    assert found == pytest.approx((np.mean(vals), np.std(vals), np.mean(fars)))
    assert 0 < np.mean(vals) < 1
    assert verification.calculate_val(np.array([3.9]), left, right, same, 1e-9) == (0, 0, 0)  # no threshold is strict enough


def test_evaluate_is_all_of_these():
    embeddings, same = embedded(60)
    tpr, fpr, accuracy, val, val_std, far = verification.evaluate(embeddings, same.tolist(), nrof_folds=5)
    expected = verification.calculate_roc(np.arange(0, 4, 0.01), embeddings[0::2], embeddings[1::2], same, 5)
    assert np.array_equal(tpr, expected[0]) and np.array_equal(fpr, expected[1]) and np.array_equal(accuracy, expected[2])
    assert (val, val_std, far) == verification.calculate_val(np.arange(0, 4, 0.001), embeddings[0::2], embeddings[1::2], same, 1e-3, 5)
    cosines = (embeddings[0::2] * embeddings[1::2]).sum(1)
    assert verification.ten_fold_accuracy(cosines, same, 5) == pytest.approx((accuracy.mean(), accuracy.std()))
    lost = embeddings.copy()
    lost[0::2][same] = np.where(np.arange(6) == 0, np.nan, 0)  # no direction: rejected, at every threshold
    assert verification.evaluate(lost, same)[0].max() == 0
    for labels in (same[:-1], np.append(same, True)):
        with pytest.raises(InputError, match="for (59|61) labels"):
            verification.evaluate(embeddings, labels)


# images

class Flat(nn.Module):
    def __init__(self, size=16):
        super().__init__()
        self.linear, self.seen = nn.Linear(3 * size * size, 5), []

    def forward(self, images):
        self.seen.append((images.min().item(), images.max().item(), len(images), self.training))
        return self.linear(images.flatten(1))


def test_load_bin_has_every_image_of_every_pair_and_its_mirror(write):
    shown = pictures(5)
    order = [0, 1, 2, 0, 3, 4, 1, 1]
    (images, mirrored), same = load_bin(write([shown[k] for k in order], [True, False, False, True]), (16, 16))
    assert same == [True, False, False, True] and images.shape == mirrored.shape == (8, 3, 16, 16)
    for place, k in enumerate(order):
        assert torch.equal(images[place], shown[k]) and torch.equal(mirrored[place], shown[k].flip(-1))
    assert torch.allclose(((images / 255) - 0.5) / 0.5, (images.float() - 127.5) / 127.5, atol=1e-6)  # as scripts write it


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_test_is_ten_fold_accuracy_of_both_views(write, dtype):
    people = pictures(12, seed=1)
    noise = torch.Generator().manual_seed(2)
    near = [(p.float() + 60 * torch.randn(p.shape, generator=noise)).clamp(0, 255).to(torch.uint8) for p in people]
    shown = [image for k in range(12) for image in (people[k], near[k], people[k], people[(k + 5) % 12])]
    data, same = load_bin(write(shown, [True, False] * 12), (16, 16))
    network = Flat().train()
    acc1, std1, acc2, std2, xnorm, views = verification.test(([view.to(dtype) for view in data], same), network, batch_size=10, nfolds=10)
    assert network.training and not any(training for *_, training in network.seen)
    assert min(low for low, *_ in network.seen) >= -0.5 and max(high for _, high, *_ in network.seen) <= 0.5
    assert max(count for *_, count, _ in network.seen) <= 10
    with torch.no_grad():
        expected = [network((view.float() - 127.5) / 255).double().numpy() for view in data]
    for view, rows in zip(views, expected, strict=True):
        assert isinstance(view, np.ndarray) and view == pytest.approx(rows, abs=1e-5)
    assert xnorm == pytest.approx(np.mean([np.linalg.norm(rows, axis=1).mean() for rows in expected]), rel=1e-5)
    for rows, found in ((expected[0], (acc1, std1)), (sum(expected), (acc2, std2))):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        accuracy = verification.evaluate(rows, same)[2]
        assert found == pytest.approx((accuracy.mean(), accuracy.std()))
    assert acc1 != acc2 or std1 != std2
    assert verification.test((data, same), network, 10, protocol="paper")[:4] == pytest.approx((acc1, std1, acc1, std1))
    for wrong in (data[0] / 255, data[0].float() - 127.5):
        with pytest.raises(InputError, match="image 0: values from .*, expected whole numbers from 0 to 255"):
            verification.test(([wrong, wrong], same), network, 10)


def cubic(image, size):
    """Bicubic interpolation, pixel by pixel: a = -0.75, pixel centres at half numbers, edges repeated."""
    def weight(x, a=-0.75):
        x = abs(x)
        return (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1 if x <= 1 else a * (x ** 3 - 5 * x ** 2 + 8 * x - 4) if x < 2 else 0

    old = image.shape[-1]
    matrix = np.zeros((size, old))
    for row in range(size):
        centre = (row + 0.5) * old / size - 0.5
        for k in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[row, min(max(k, 0), old - 1)] += weight(centre - k)
    return np.stack([matrix @ channel @ matrix.T for channel in image.double().numpy()])


@pytest.mark.parametrize("old, new", [(16, 24), (20, 16), (33, 14)])
def test_images_of_another_size_are_resized_as_the_field_does(write, old, new):
    shown = pictures(4, old, seed=old)
    path = write(shown, [True, False])
    (images, _), _ = load_bin(path, (new, new))
    for image, original in zip(images, shown, strict=True):
        expected = cubic(original, new).clip(0, 255)
        assert np.abs(image.numpy() - expected).max() <= 0.5 + 1e-3
    pairs = read_bin(path)
    smaller = resized(pairs, [new, new])
    assert smaller.left is pairs.left and smaller.name == pairs.name
    assert [torch.equal(decode_image(data, ""), image) for data, image in zip(smaller.images, images, strict=True)] == [True] * 4
    assert resized(pairs, (old, old)).images == pairs.images  # byte for byte


def test_resized_as_by_mxnet(write):
    try:
        mx = import_mxnet()
    except (InputError, ImportError):
        pytest.skip("mxnet cannot be imported here")
    shown = pictures(3, 37)
    (images, _), _ = load_bin(write([*shown, shown[0]], [True, False]), (28, 28))
    for image, original in zip(images, shown):
        theirs = mx.image.resize_short(mx.nd.array(original.permute(1, 2, 0).numpy(), dtype="uint8"), 28).asnumpy()
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("shape, size", [((16, 20), (16, 16)), ((16, 16), (16, 20)), ((16, 20), (32, 40))])
def test_only_square_images_are_resized(write, shape, size):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    path = write([image, image], [True])
    with pytest.raises(InputError, match=f"faces.bin: image 0 is {shape[0]} x {shape[1]}, which is not resized to {size[0]} x {size[1]}"):
        load_bin(path, size)
    assert load_bin(path, shape)[0][0].shape == (2, 3, *shape)  # as they are


def test_images_are_the_same_by_bytes_or_by_pixels(tmp_path):
    from io import BytesIO

    from PIL import Image
    shown = pictures(3)
    png = [encode_image(image, "png") for image in shown]
    again = BytesIO()  # the pixels of the first one in other bytes
    Image.fromarray(shown[0].permute(1, 2, 0).numpy()).save(again, "BMP")
    turned = encode_image(torch.zeros(3, 8, 16, dtype=torch.uint8), "png"), encode_image(torch.zeros(3, 16, 8, dtype=torch.uint8), "png")
    content = [png[0], png[1], again.getvalue(), png[2], *turned, png[1], again.getvalue()]
    path = tmp_path / "faces.bin"
    path.write_bytes(pickle.dumps((content, [True, False, True, False])))
    by_bytes = read_bin(path)
    assert len(by_bytes.images) == 6 and by_bytes.left.tolist() == [0, 2, 4, 1] and by_bytes.right.tolist() == [1, 3, 5, 2]
    by_pixels = read_bin(path, unique="pixels")
    assert by_pixels.images == [png[0], png[1], png[2], *turned]
    assert by_pixels.left.tolist() == [0, 0, 3, 1] and by_pixels.right.tolist() == [1, 2, 4, 0]
    assert by_pixels.positions.tolist() == [0, 1, 3, 4, 5] and by_pixels.describe(2) == f"{path}: image 3"
    with pytest.raises(InputError, match="names"):
        read_bin(path, unique="names")
    path.write_bytes(pickle.dumps(([png[0], b"\xff\xd8 no picture"], [True])))
    assert len(read_bin(path).images) == 2
    with pytest.raises(InputError, match="faces.bin: image 1"):
        read_bin(path, unique="pixels")
