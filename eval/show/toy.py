"""The toy experiments of Section 3.2: what is measured on the test images, the files of a run, its results beside the published ones."""
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor, nn

from eval.show import published
from eval.store import schema
from utils import InputError
from utils.files import atomic_write, found_in

FIGURE_2 = published.TOY_RUNS
PathLike = str | os.PathLike[str]
NETWORKS = {"sll": "sllnet_", "net": "net_"}  # the first half of the names of the backbones
KEYS = ("dataset", "network", "xi", "seed", "protocol", "num_image", "batch_size")  # what tells runs apart
MEASURED = ("epoch", "step", "loss", "reg_loss", "train_norm", "accuracy", "norm", "seconds")


def run_name(dataset: str, network: str, xi: float, seed: int, protocol: str = "strict") -> str:
    """The folder of a run."""
    return f"{dataset}_{network}_xi{xi:g}_seed{seed}" + ("_paper" if protocol == "paper" else "")


def to_unit(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [N, C, H, W] -> float in [0, 1] on `device`, channels last."""
    return images.to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)


@torch.inference_mode()
def embed(network: nn.Module, images: Tensor, device: torch.device, batch_size: int = 1000) -> Tensor:
    """Embeddings [N, D] on the CPU of uint8 images [N, C, H, W], by the network in eval mode."""
    network.eval()
    return torch.cat([network(to_unit(part, device)).cpu() for part in images.split(batch_size)])


def measure(embeddings: Tensor, weight: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy of the class whose normalised weight [C, D] has the largest product with the embedding [N, D], and the mean norm ||e||."""
    products = embeddings @ F.normalize(weight.detach().cpu()).T
    return (products.argmax(1) == labels).double().mean().item(), embeddings.norm(dim=1).mean().item()


def write_results(folder: Path, settings: Mapping[str, Any], rows: Iterable[Mapping[str, float]]) -> None:
    """`folder`/results.csv: a row an epoch, headed by the settings that tell runs apart."""
    table = pd.DataFrame([{key: settings[key] for key in KEYS} | dict(row) for row in rows], columns=[*KEYS, *MEASURED])
    with atomic_write(folder / "results.csv") as file:
        table.to_csv(file, index=False, float_format="%.6g")


def write_projections(folder: Path, images: Tensor, embeddings: Tensor, labels: Tensor) -> None:
    """`folder`/projections.csv: two principal components of each image and of its embedding, fitted to all of them.

    images: uint8 [N, C, H, W]; embeddings: [N, D]; labels: [N].
    """
    columns = {"label": labels.numpy()}
    for name, values in (("image", images.flatten(1).float() / 255), ("feature", embeddings)):
        points = PCA(2, random_state=0).fit_transform(values.numpy())
        columns |= {f"{name}_1": points[:, 0], f"{name}_2": points[:, 1]}
    with atomic_write(folder / "projections.csv") as file:
        pd.DataFrame(columns).to_csv(file, index=False, float_format="%.4g")


def read_results(folder: PathLike) -> pd.DataFrame:
    """The results of the run in `folder`, or of all runs whose folders are in it: a row an epoch, columns KEYS and MEASURED.

    norm and accuracy (0 to 1) are of the test images, train_norm and the losses are means over the steps of the epoch. Raises
    InputError where there is no results.csv, or one without these columns.
    """
    paths = sorted(path for pattern in ("results.csv", "*/results.csv") for path in found_in(folder, pattern))
    if not paths:
        raise InputError(f"{folder}: no results.csv in it or in its folders; train_toy.py makes them")
    results = pd.concat([_read(path, KEYS + MEASURED) for path in paths], ignore_index=True)
    return results.sort_values([*KEYS, "epoch"], ignore_index=True)


def read_projections(path: PathLike) -> pd.DataFrame:
    """What `write_projections` wrote. Raises InputError where a column is missing or a label is none of ten classes."""
    table = _read(path, ("label", "image_1", "image_2", "feature_1", "feature_2"))
    if not (table["label"] == table["label"].astype(int)).all() or not schema.within(table["label"], 0, 9):
        raise InputError(f"{path}: column label holds something else than classes from 0 to 9")
    return table


def _read(path: PathLike, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table of a toy run: dataset, network and protocol are words, everything else is numbers, unless it was not measured."""
    table = schema.read_csv(Path(path))
    if missing := set(columns) - set(table.columns):
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}; not the results of a toy run")
    for column in columns:
        words = column in ("dataset", "network", "protocol")
        values = table[column].dropna() if column in MEASURED[2:] else table[column]
        if not (all(map(_is_word, values)) if words else schema.within(values)):
            raise InputError(f"{path}: column {column} holds something else than {'words' if words else 'numbers'}")
    return table


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w{1,40}", value, re.ASCII) is not None


def label(network: str, xi: float, protocol: str = "strict") -> str:
    """What a run is called in tables and figures."""
    name = "unconstrained" + (f", xi = {xi:g}" if xi else "") if network == "net" else f"SLL, xi = {xi:g}"
    return name + (" (paper protocol)" if protocol == "paper" else "")


def full_epochs(results: pd.DataFrame) -> pd.Series:
    """How many times as many images as the whole dataset has were trained on: the epoch, unless it is of a part of the dataset."""
    return results["epoch"] * results["num_image"] / results["dataset"].map(published.TOY_IMAGES).fillna(results["num_image"])


def beside_published(results: pd.DataFrame) -> pd.DataFrame:
    """The results of runs beside the published ones: a row for each run and published epoch, and one for the run's last epoch.

    Epochs correspond where as many images were trained on, to a tenth: with the whole dataset these are the same epochs. Accuracies in
    percent.
    """
    rows = []
    results = results.assign(full=full_epochs(results))
    for (dataset, network, xi, seed, protocol), run in results.groupby(["dataset", "network", "xi", "seed", "protocol"], sort=False):
        known = published.toy(dataset)
        known = known[(known["network"] == network) & (known["xi"] == xi)]
        pairs = [(run.loc[(run["full"] - theirs.epoch).abs().idxmin()], theirs) for theirs in known.itertuples()]
        pairs = [(ours, theirs) for ours, theirs in pairs if abs(ours["full"] - theirs.epoch) <= 0.1 * theirs.epoch]
        if not pairs or pairs[-1][0]["epoch"] < run["epoch"].max():
            pairs.append((run.iloc[-1], None))
        for ours, theirs in pairs:
            rows.append({"network": label(network, xi, protocol), "seed": seed, "epoch": ours["epoch"],
                         "accuracy": 100 * ours["accuracy"], "norm": ours["norm"]})
            if theirs is not None:
                rows[-1] |= {"published epoch": theirs.epoch, "published accuracy": 100 * theirs.accuracy, "published norm": theirs.norm}
    return pd.DataFrame(rows)


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """What `beside_published` returns, as text: accuracies with two decimals, norms with four digits, "-" where there is none."""
    def text(column: str) -> Callable[[float], str]:
        form = ".2f" if "accuracy" in column else ".4g" if "norm" in column else ".0f"
        return lambda value: value if isinstance(value, str) else "-" if pd.isna(value) else format(value, form)
    return pd.DataFrame({column: table[column].map(text(column)) for column in table})
