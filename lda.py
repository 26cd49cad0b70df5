"""Linear discriminant analysis as a 1-Lipschitz network, in closed form: a control that is not trained at all.

    python lda.py data=FOLDER output=FILE.pt                     # FOLDER: as rec of train.py
    python -m eval certify --bin FILE.bin --backbone linear_lda --weights FILE.pt --out DIR

Principal components of the images, and of these the directions in which people differ most for what images of one person differ by
(scikit-learn's PCA and LinearDiscriminantAnalysis). Their map W becomes a linear layer V (x - mean) with ||V|| <= 1 in one of two ways:
variant=scaled is W / ||W||, variant=orthonormal an orthonormal basis of the span of its rows. As in training, mirror images are images too.
The lowest frequencies of all of them are in memory. Exit status: 0 done, 2 a setting or a file cannot be used.
"""
import sys
from collections.abc import Sequence
from pathlib import Path

import utils.cores  # noqa: F401  # isort: skip  # ahead of torch

import numpy as np
import torch
from easydict import EasyDict
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from backbones.linear import LinearLDA
from datasets import Faces, get_dataset, to_float
from utils import InputError
from utils.checkpoint import save_weights
from utils.console import lasting_console
from utils.cores import limit_threads
from utils.settings import check_choices, check_least, run_command

NETWORK = "linear_lda"
MOST_IMAGES = 2**16
ROOM = 1 - 2**-20  # more than what float32 makes of a norm of 1: each entry is off by 2**-24 of itself, ||V||_F <= sqrt(128)

config = EasyDict()
config.data = "synthetic"           # faces with identities, as rec of train.py
config.output = "out/lda/model_final.pt"
# chosen by CRA_D at 0.25 and TAR on pairs of people who were not in the data, among 4 numbers of components and 3 of shrinkage
config.variant = "scaled"           # or orthonormal
config.components = 500             # principal components that the analysis is made in
config.shrinkage = 0.3              # of covariances, towards a multiple of the identity: 0 to 1
config.seed = 0                     # of scikit-learn's approximate principal components


def lda(cfg: EasyDict) -> None:
    """Fit and write a checkpoint. Raises InputError for settings and data that cannot be used."""
    check_choices(cfg, variant=("orthonormal", "scaled"))
    check_least(cfg, dict(components=1, seed=0), bits=32)
    if not 0 <= cfg.shrinkage <= 1:
        raise InputError(f"setting shrinkage={cfg.shrinkage}: expected a number from 0 to 1")
    limit_threads()
    network = LinearLDA().eval()
    dataset = get_dataset(cfg.data)
    if dataset.image_size != (112, 112):
        raise InputError(f"{cfg.data}: images of {list(dataset.image_size)}, expected [112, 112]")
    if len(dataset) > MOST_IMAGES:
        raise InputError(f"{cfg.data}: {len(dataset)} images, expected at most {MOST_IMAGES}: they are all held in memory")
    features = features_of(network.stem, dataset)
    labels = np.tile(dataset.labels(), 2)
    mean, directions = fit(features, labels, len(network.linear.weight), cfg.components, cfg.shrinkage, cfg.seed)
    fill(network.linear, mean, non_expansive(directions, cfg.variant))
    Path(cfg.output).parent.mkdir(parents=True, exist_ok=True)
    save_weights(cfg.output, network, NETWORK)
    print(f"{cfg.output}: {len(directions)} directions from {len(dataset)} images of {len(np.unique(labels))} identities")


@torch.no_grad()
def features_of(stem: nn.Module, dataset: Faces, batch_size: int = 64) -> np.ndarray:
    """float32 [2 N, d]: what the linear layer gets of the images, and then of their mirror images."""
    found: list[Tensor] = []
    for mirrored in (False, True):
        for start in range(0, len(dataset), batch_size):
            images = to_float(torch.stack([dataset[index][0] for index in range(start, min(start + batch_size, len(dataset)))]))
            found.append(stem(images.flip(-1) if mirrored else images))
    return torch.cat(found).numpy()


def fit(features: np.ndarray, labels: np.ndarray, most: int, components: int, shrinkage: float, seed: int = 0
        ) -> tuple[np.ndarray, np.ndarray]:
    """(mean [d], the discriminant directions [m, d] with m <= most, the best first), float64, of features [N, d] and labels [N].

    Raises InputError where there are fewer than two people or no more images than people, which leaves nothing to compare them by.
    """
    people = len(np.unique(labels))
    if not 1 < people < len(labels):
        raise InputError(f"{len(labels)} images of {people} identities, expected at least two, with two images of one of them")
    pca = PCA(min(components, len(labels) - people, features.shape[1]), random_state=seed)
    projected = pca.fit_transform(features).astype(np.float64)
    analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage)
    try:
        analysis.fit(projected, labels)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise InputError(f"the covariance within people cannot be inverted; more shrinkage or fewer components help ({error})") from error
    best = analysis.scalings_[:, :min(most, people - 1)]
    return pca.mean_.astype(np.float64), best.T @ pca.components_.astype(np.float64)


def non_expansive(directions: np.ndarray, variant: str) -> np.ndarray:
    """The map [m, d] with norm 1: an orthonormal basis of the span of the rows, or the rows divided by their norm as a matrix."""
    _, values, basis = np.linalg.svd(directions, full_matrices=False)
    return basis if variant == "orthonormal" else directions / values[0]


@torch.no_grad()
def fill(linear: nn.Linear, mean: np.ndarray, directions: np.ndarray) -> None:
    """x -> V (x - mean) as the layer's weights, with the rows that there are not as zeros."""
    linear.weight.zero_()
    linear.bias.zero_()
    weight = torch.from_numpy(ROOM * directions)
    linear.weight[:len(weight)] = weight
    linear.bias[:len(weight)] = -weight @ torch.from_numpy(mean)


@lasting_console()
def run(arguments: Sequence[str] | None = None) -> int:
    """The command line: settings from `arguments` (default: the process's own); returns the exit status."""
    return run_command("lda", lda, config, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(run())
