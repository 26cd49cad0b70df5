"""The toy experiments: their image sets, runs that go on where they were, measurements, and results beside the published ones."""
import math
import struct
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import ROOT, SHARED, needs_shared
from PIL import Image
from test_plots import assert_is_figure, drawn  # noqa: F401

import eval.__main__ as command_line
import train_toy
from datasets_toy import TOY_SETS, ToySet, cifar10, digits, mnist
from eval.show import curves, published, toy
from utils import InputError


def write_images(root, counts, size=(32, 32)):
    """An image folder whose classes have flat colours."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for image in range(count):
                pixels = rng.integers(0, 40, (size[1], size[0], 3)) + 120 * number
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{image}.png")
    return root


def write_mnist(root, counts=(6, 4)):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in zip(("train", "t10k"), counts):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + rng.bytes(count * 784))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(range(count)))
    return root


def assert_is_set(data, sizes, shape, classes=10):
    for images, labels, size in ((data.images, data.labels, sizes[0]), (data.test_images, data.test_labels, sizes[1])):
        assert images.shape == (size, *shape) and images.dtype == torch.uint8 and images.is_contiguous()
        assert labels.shape == (size,) and labels.dtype == torch.int64
    assert data.num_classes == classes


def test_digits(tmp_path):
    data = digits(tmp_path)
    assert_is_set(data, (1437, 360), (1, 28, 28))
    assert data.images.max() == 255 and data.images.min() == 0
    counts = data.test_labels.bincount()
    assert counts.min() >= 34 and counts.max() <= 37, "as many of each class"
    assert torch.equal(digits(tmp_path).test_images, data.test_images), "the same split every time"
    assert not {bytes(image.numpy()) for image in data.images} & {bytes(image.numpy()) for image in data.test_images}


def test_mnist_in_the_layout_of_torchvision(tmp_path):
    data = mnist(write_mnist(tmp_path))
    assert_is_set(data, (6, 4), (1, 28, 28), classes=6)
    assert bytes(data.images[0].flatten().numpy()) == np.random.default_rng(0).bytes(6 * 784)[:784]


@needs_shared
def test_the_whole_mnist():
    if not (SHARED / "data" / "mnist").is_dir():
        pytest.skip("MNIST is not here")
    assert_is_set(mnist(SHARED / "data" / "mnist"), (60000, 10000), (1, 28, 28))


def test_what_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("Error downloading x\nmore")
    for kind, read in ((torchvision.datasets.MNIST, mnist), (torchvision.datasets.CIFAR10, cifar10)):
        monkeypatch.setattr(kind, "download", fail)
        with pytest.raises(InputError, match=f"nowhere: no {kind.__name__} there, and it cannot be downloaded .Error downloading x."):
            read(tmp_path / "nowhere")


def test_cifar10_as_an_image_folder(tmp_path):
    data = cifar10(write_images(tmp_path, {"train": 3, "test": 2}))
    assert_is_set(data, (6, 4), (3, 32, 32), classes=2)
    assert (data.images.float().mean((1, 2, 3)) > 100).long().tolist() == data.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_cifar10_through_torchvision(tmp_path, monkeypatch):
    class Files:
        def __init__(self, root, train, download):
            self.data = np.arange(2 * 3072, dtype=np.uint16).astype(np.uint8).reshape(2, 32, 32, 3)
            self.targets = [1, 0]
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Files)
    data = cifar10(tmp_path)
    assert_is_set(data, (2, 2), (3, 32, 32), classes=2)
    assert data.images[0, :, 0, 1].tolist() == [3, 4, 5]


def test_bad_image_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="expected 32x32 pixels, found 30x32"):
        cifar10(write_images(tmp_path / "a", {"train": 1, "test": 1}, size=(30, 32)))
    write_images(tmp_path / "b", {"train": 1})
    (tmp_path / "b" / "test").mkdir()
    with pytest.raises(InputError, match="test"):
        cifar10(tmp_path / "b")


@pytest.fixture
def few(monkeypatch):
    """The digits, but few of them."""
    data = digits(None)
    part = ToySet(data.images[:64], data.labels[:64], data.test_images[:32], data.test_labels[:32])
    monkeypatch.setitem(TOY_SETS, "digits", TOY_SETS["digits"]._replace(read=lambda root: part))
    return part


def run(output, *arguments):
    return train_toy.run([f"output={output}", "batch_size=32", "device=cpu", *arguments])


def measured(folder):
    return toy.read_results(folder).drop(columns="seconds")


def same_weights(one, other):
    one, other = (torch.load(folder / "model_final.pt", weights_only=True) for folder in (one, other))
    return all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_and_its_files(few, tmp_path, capsys):
    assert run(tmp_path, "epochs=2", "xi=1", "seed=3") == 0
    folder = tmp_path / "digits_sll_xi1_seed3"
    assert {path.name for path in folder.iterdir()} == {"results.csv", "projections.csv", "model_final.pt", "header_final.pt",
                                                        "state_00000004.pt"}
    results = toy.read_results(folder)
    assert results[list(toy.KEYS)].drop_duplicates().values.tolist() == [["digits", "sll", 1.0, 3, "strict", 64, 32]]
    assert results["epoch"].tolist() == [1, 2] and results["step"].tolist() == [2, 4] and results.notna().all(axis=None)
    assert "epoch 2  loss" in capsys.readouterr().out
    network = train_toy.get_backbone("sllnet_mnist")
    network.load_state_dict(torch.load(folder / "model_final.pt", weights_only=True))
    weight = torch.load(folder / "header_final.pt", weights_only=True)["weight"]
    with torch.no_grad():
        embeddings = network.eval()(few.test_images / 255)
    accuracy = (torch.cosine_similarity(embeddings[:, None], weight[None], dim=2).argmax(1) == few.test_labels).double().mean()
    assert results["accuracy"].iloc[-1] == pytest.approx(accuracy.item())
    assert results["norm"].iloc[-1] == pytest.approx(embeddings.norm(dim=1).mean().item(), rel=1e-4)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    images = write_images(tmp_path / "images", {"train": 16, "test": 4})
    cifar = partial(run, tmp_path / "parts", "dataset=cifar10", f"data_root={images}", "network=net", "xi=0")
    assert run(tmp_path / "whole", "dataset=cifar10", f"data_root={images}", "network=net", "xi=0", "epochs=3") == 0
    assert cifar("epochs=1") == 0
    monkeypatch.setattr(toy, "write_results", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert cifar("epochs=2") == 2, "stopped after the state, before the results"
    monkeypatch.undo()
    assert cifar("epochs=3") == 0
    assert len(measured(tmp_path / "whole")) == 3
    pd.testing.assert_frame_equal(measured(tmp_path / "parts"), measured(tmp_path / "whole"))
    assert same_weights(*(tmp_path / name / "cifar10_net_xi0_seed0" for name in ("parts", "whole")))
    assert cifar("epochs=3") == 0 and len(measured(tmp_path / "parts")) == 3, "nothing left to do"


def test_another_seed_is_another_run(few, tmp_path):
    for seed in (0, 1):
        assert run(tmp_path, "epochs=1", f"seed={seed}") == 0
    assert toy.read_results(tmp_path).groupby("seed")["loss"].first().nunique() == 2


def test_images_are_varied_anew_in_each_epoch_on_cifar10_alone():
    torch.manual_seed(0)
    image = torch.arange(3072, dtype=torch.float32).view(3, 32, 32)
    varied = [TOY_SETS["cifar10"].augment(image) for _ in range(4)]
    assert all(each.shape == image.shape for each in varied) and not all(torch.equal(each, varied[0]) for each in varied)
    assert TOY_SETS["mnist"].augment is TOY_SETS["digits"].augment is None


def test_the_regulariser_keeps_the_norm_and_its_absence_lets_it_fall(few, tmp_path):
    for xi in (0, 3):
        assert run(tmp_path, "epochs=8", f"xi={xi}") == 0
    norms = toy.read_results(tmp_path).groupby("xi")["norm"].last()
    assert norms[0] < 2 < norms[3]


def test_the_protocol_of_the_paper_has_its_first_epoch_in_eval_mode(few, tmp_path):
    for protocol in ("strict", "paper"):
        assert run(tmp_path, "epochs=1", "network=net", "xi=0", f"protocol={protocol}") == 0
    strict, paper = (torch.load(tmp_path / f"digits_net_xi0_seed0{name}" / "model_final.pt", weights_only=True) for name in ("", "_paper"))
    assert (strict["body.0.layer.1.num_batches_tracked"], paper["body.0.layer.1.num_batches_tracked"]) == (2, 0)
    assert run(tmp_path, "epochs=2", "network=net", "xi=0", "protocol=paper") == 0
    assert toy.read_results(tmp_path)["protocol"].tolist() == ["paper", "paper", "strict"]
    assert toy.beside_published(toy.read_results(tmp_path))["network"].tolist() == ["unconstrained (paper protocol)", "unconstrained"]


def test_all_is_the_five_of_figure_2(few, tmp_path):
    assert run(tmp_path, "epochs=1", "network=all") == 0
    found = toy.read_results(tmp_path)[["network", "xi"]].drop_duplicates()
    assert set(map(tuple, found.to_numpy().tolist())) == set(toy.FIGURE_2) and len(toy.FIGURE_2) == 5


@pytest.mark.parametrize("argument, message", [
    ("dataset=imagenet", "expected one of digits, mnist, cifar10"), ("network=big", "expected one of sll, net, all"),
    ("epochs=0", "at least 1"), ("xi=-1", "not negative"), ("lr=1e999", "finite"), ("seed=-1", "at least 0"),
    ("epoch=3", "did you mean 'epochs'"), ("epochs=1.5", "int")])
def test_bad_settings_are_named(argument, message, capsys):
    assert train_toy.run([argument]) == 2
    error = capsys.readouterr().err
    assert message in error and argument.partition("=")[0] in error and error.count("\n") == 1


def test_the_state_of_other_settings_is_refused(few, tmp_path, capsys):
    assert run(tmp_path, "epochs=1") == 0
    assert run(tmp_path, "epochs=2", "lr=0.1") == 2
    assert "lr was 0.001 and is 0.1" in capsys.readouterr().err


def test_what_is_measured():
    embeddings = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]])
    accuracy, norm = toy.measure(embeddings, torch.tensor([[100.0, 0.0], [0.0, 0.1]]), torch.tensor([0, 1, 1]))
    assert accuracy == pytest.approx(2 / 3) and norm == pytest.approx(7 / 3), "rows are normalised: 3 < 4 in spite of their lengths"


def test_projections_are_principal_components(tmp_path):
    torch.manual_seed(0)
    embeddings = torch.randn(3000, 5) * torch.tensor([1.0, 9.0, 0.1, 4.0, 0.1])
    images, labels = torch.randint(256, (3000, 1, 2, 2), dtype=torch.uint8), torch.arange(3000) % 10
    toy.write_projections(tmp_path, images, embeddings, labels)
    found = pd.read_csv(tmp_path / "projections.csv")
    assert list(found) == ["label", "image_1", "image_2", "feature_1", "feature_2"] and found["label"].tolist() == labels.tolist()
    assert abs(np.corrcoef(found["feature_1"], embeddings[:, 1])[0, 1]) > 0.99
    assert found["feature_1"].std() > found["feature_2"].std() > 3 and found["image_1"].abs().max() < 2


def test_every_image_of_a_whole_test_set_is_a_point_of_figure_1b(tmp_path, drawn):  # noqa: F811
    torch.manual_seed(0)
    images, labels = torch.randint(256, (10000, 1, 4, 4), dtype=torch.uint8), torch.arange(10000) % 10
    toy.write_projections(tmp_path, images, torch.randn(10000, 3) + labels[:, None], labels)
    curves.plot_projections(toy.read_projections(tmp_path / "projections.csv"), tmp_path / "a.png")
    assert_is_figure(tmp_path / "a.png")
    assert [[len(values[0]) for values in drawn[f"{label}"]] for label in range(10)] == [[1000, 1000]] * 10


def test_published_values():
    for dataset in ("mnist", "cifar10"):
        table = published.toy(dataset)
        assert len(table) == 30
        assert table["epoch"].unique().tolist() == [1, 5, 10, 20, 50, 100]
        assert set(zip(table["network"], table["xi"])) == set(toy.FIGURE_2)
        assert table["accuracy"].between(0.1, 1).all()
    row = published.toy("cifar10").query("network == 'sll' and xi == 5 and epoch == 20").iloc[0]
    assert (row["accuracy"], row["norm"]) == (0.5117, 5.432) and published.toy("digits").empty


def results(dataset="mnist", xi=0.0, images=60000, epochs=6):
    """Results of a run whose accuracies and norms count the epochs."""
    rows = [dict(epoch=epoch, step=118 * epoch, loss=1.0, reg_loss=0.0, train_norm=2.0, accuracy=epoch / 100, norm=epoch + 0.5,
                 seconds=1.0) for epoch in range(1, epochs + 1)]
    return dict(dataset=dataset, network="sll", xi=xi, seed=0, protocol="strict", num_image=images, batch_size=512), rows


def test_results_beside_the_published_ones(tmp_path):
    toy.write_results(tmp_path / "a", *results())
    table = toy.beside_published(toy.read_results(tmp_path))
    assert table["epoch"].tolist() == [1, 5, 6] and table["accuracy"].tolist() == pytest.approx([1, 5, 6])
    assert table["published accuracy"].tolist()[:2] == pytest.approx([92.13, 98.46])
    assert table["published norm"].tolist()[:2] == [0.421, 0.134]
    assert table["published epoch"].isna().tolist() == [False, False, True]
    toy.write_results(tmp_path / "a", *results(images=120000))
    table = toy.beside_published(toy.read_results(tmp_path))
    assert table[["epoch", "published epoch"]].dropna().values.tolist() == [[5, 10]], "epochs with as many images stand side by side"
    toy.write_results(tmp_path / "a", *results("digits"))
    assert toy.beside_published(toy.read_results(tmp_path))["epoch"].tolist() == [6]


def test_figures_show_the_results(tmp_path, drawn, capsys):  # noqa: F811
    for dataset, xi in (("mnist", 0.0), ("mnist", 3.0), ("mnist", 2.0), ("digits", 0.0)):
        toy.write_results(tmp_path / toy.run_name(dataset, "sll", xi, 0), *results(dataset, xi))
    folder = tmp_path / toy.run_name("mnist", "sll", 0, 0)
    toy.write_projections(folder, torch.randint(256, (50, 1, 28, 28), dtype=torch.uint8), torch.randn(50, 8), torch.arange(50) % 10)
    assert command_line.main(["toy", str(tmp_path), "--out", str(tmp_path / "figures")]) == 0
    out = capsys.readouterr().out
    assert "mnist:" in out and "92.13" in out and "0.421" in out
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"fig2_digits.png", "fig2_mnist.png", "fig1b_mnist.png"}
    for path in (tmp_path / "figures").iterdir():
        assert_is_figure(path)
    accuracy, norm = drawn["SLL, xi = 3"]
    assert accuracy[1].tolist() == pytest.approx([1, 2, 3, 4, 5, 6]) and norm[1].tolist() == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    hollow = [values for values in drawn[None] if len(values[0]) == 2 and values[0].tolist() == [1, 5]]
    assert len(hollow) == 4 and [0.421, 0.134] in [values[1].tolist() for values in hollow]
    assert sum(len(values[0]) for label, lines in drawn.items() for values in lines if label in map(str, range(10))) == 100


ROW = dict(dataset="digits", network="sll", xi=0, seed=0, protocol="strict", num_image=9, batch_size=3, epoch=1, step=3, loss=1, reg_loss=1,
           train_norm=1, accuracy=0.5, norm=1, seconds=1)


@pytest.mark.parametrize("column, value", [("epoch", "one"), ("accuracy", "x"), ("norm", math.inf), ("dataset", "../x"), ("network", 3),
                                           ("protocol", "$x"), ("seed", math.nan)])
def test_results_with_values_of_another_kind(tmp_path, capsys, column, value):
    folder = tmp_path / toy.run_name("digits", "sll", 0, 0)
    folder.mkdir()
    pd.DataFrame([{**ROW, column: value}]).to_csv(folder / "results.csv", index=False)
    assert command_line.main(["toy", str(tmp_path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"results.csv: column {column} holds something else than" in error and error.count("\n") == 1


@pytest.mark.parametrize("content, words", [("", "cannot be read"), ("label\n1\n", "no column feature_1"),
                                            ("label,image_1,image_2,feature_1,feature_2\n10,1,1,1,1\n", "classes from 0 to 9"),
                                            ("label,image_1,image_2,feature_1,feature_2\n1,inf,1,1,1\n", "column image_1")])
def test_projections_that_are_none(tmp_path, content, words):
    (tmp_path / "projections.csv").write_text(content)
    with pytest.raises(InputError, match=f"projections.csv: .*{words}"):
        toy.read_projections(tmp_path / "projections.csv")


def test_folders_without_results_are_named(tmp_path, capsys):
    assert command_line.main(["toy", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "no results.csv" in capsys.readouterr().err
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="results.csv: no column accuracy"):
        toy.read_results(tmp_path)


def test_the_committed_mnist_runs_meet_the_published_values():
    found = toy.read_results(ROOT / "logs" / "toy").query("dataset == 'mnist'")
    table = toy.beside_published(found[found["protocol"] == "strict"])
    table = table[table["epoch"] == 10].set_index("network")
    assert len(table) == 5
    points = (table["accuracy"] - table["published accuracy"]).abs()
    assert (points <= [2.0 if name == "SLL, xi = 5" else 1.0 for name in table.index]).all(), points
    regularised = table.loc[["SLL, xi = 1", "SLL, xi = 3", "SLL, xi = 5"]]
    assert ((regularised["norm"] / regularised["published norm"] - 1).abs() <= 0.15).all()
    assert table.loc["SLL, xi = 0", "norm"] < 0.15
