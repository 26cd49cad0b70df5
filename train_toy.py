"""Train the toy networks of Section 3.2 and measure, after every epoch, what Fig. 2 shows: test accuracy and mean feature norm.

    python train_toy.py                                                       # digits, SLL network, xi = 3: two minutes on one core
    python train_toy.py network=all                                           # the five networks of Fig. 2
    python train_toy.py dataset=mnist network=all epochs=10 data_root=data    # the same on MNIST, downloaded to data/ if it is not there
    python train_toy.py dataset=mnist network=net xi=0 seed=1                 # one network: the unconstrained one
    python -m eval toy out/toy --out out/toy                                  # the figures, and a table beside the published values

A run has a folder in `output`, named after its dataset, network, xi, seed and protocol. It holds `results.csv` (one row an epoch),
`projections.csv` (Fig. 1b) and the weights. The same command goes on with a run that was interrupted, as if it had not been; with more
epochs it makes a finished one longer. Exit status: 0 done, 2 a setting or a file cannot be used, 75
stopped by Ctrl-C or a signal: the same command goes on.
"""
import sys
import time
from pathlib import Path
from typing import Sequence

import pandas as pd

import utils.cores  # noqa: F401  # isort: skip  # ahead of torch

import torch
from easydict import EasyDict
from tqdm import tqdm

from backbones import get_backbone
from backbones.toyexamples import EMBEDDING
from datasets_toy import TOY_SETS, ToySet
from eval.show import toy
from headers import get_header
from train import objective
from utils import InputError
from utils.console import lasting_console
from utils.distributed import process_group
from utils.faults.folder import owned
from utils.faults.signals import stopped, stops
from utils.settings import check_choices, check_least, check_not_negative, run_command
from utils.utils_callbacks import CallBackCheckpoint
from utils.utils_logging import AverageMeter, means_over_ranks

config = EasyDict()
config.dataset = "digits"       # digits, mnist or cifar10 (see datasets_toy.py)
config.data_root = "data"       # the folder that holds the images, or receives them; digits need none
config.network = "sll"          # sll: 1-Lipschitz; net: unconstrained; all: the five of Fig. 2, each with its own xi
config.xi = 3.0                 # 0: no regulariser
config.lambda_ = 10.0
config.epochs = None            # None: 40 on digits, else 100 as in the paper
config.batch_size = None        # None: 128 on digits, else 512 as in the paper
config.lr = 1e-3                # of AdamW, constant
config.protocol = "strict"      # paper: as the published script, in eval mode in the first epoch and with its assignment of margins
config.seed = 0
config.device = None            # None: cuda where there is one, else cpu
config.output = "out/toy"

FREE = {"data_root", "epochs", "device", "output"}  # settings that may differ between a run and its continuation


@lasting_console()
def train_toy(cfg: EasyDict, device: torch.device) -> pd.DataFrame:
    """The run of the settings `cfg` (or the five of network=all), or what is left of it; returns the results, a row an epoch, as
    eval.show.toy.read_results does.

    Raises InputError for settings, data or a state that cannot be used.
    """
    check(cfg)
    if cfg.network == "all":
        return pd.concat([train_toy(EasyDict(cfg, network=network, xi=xi), device) for network, xi in toy.FIGURE_2], ignore_index=True)
    kind = TOY_SETS[cfg.dataset]
    epochs, batch_size = cfg.epochs or kind.epochs, cfg.batch_size or kind.batch_size
    folder = Path(cfg.output) / toy.run_name(cfg.dataset, cfg.network, cfg.xi, cfg.seed, cfg.protocol)
    data = kind.read(Path(cfg.data_root))
    with owned(folder):
        return _trained(cfg, device, folder, data, epochs, batch_size)


def _trained(cfg: EasyDict, device: torch.device, folder: Path, data: ToySet, epochs: int, batch_size: int) -> pd.DataFrame:
    kind = TOY_SETS[cfg.dataset]
    torch.manual_seed(cfg.seed)
    network = get_backbone(toy.NETWORKS[cfg.network] + kind.networks).to(device, memory_format=torch.channels_last)
    assign = "published" if cfg.protocol == "paper" else "rank"
    header = get_header("ecosface", data.num_classes, EMBEDDING, seed=cfg.seed, assign=assign).to(device)
    optimizer = torch.optim.AdamW([p for p in (*network.parameters(), *header.parameters()) if p.requires_grad], cfg.lr, weight_decay=0)

    settings = {key: value for key, value in cfg.items() if key not in FREE} | {"batch_size": batch_size, "num_image": len(data.images)}
    checkpoints = CallBackCheckpoint(folder, dict(model=network, header=header, optimizer=optimizer), settings, keep=1)
    rows = checkpoints.restore("auto").get("epochs", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) and list(row) == list(toy.MEASURED) for row in rows):
        raise InputError(f"{folder}: the state is none of this script")
    print(f"{folder}: {len(data.images)} training and {len(data.test_images)} test images, {len(rows)} of {epochs} epochs done", flush=True)

    for epoch in range(len(rows), epochs):
        began, meters = time.perf_counter(), [AverageMeter() for _ in range(3)]
        batches = torch.randperm(len(data.images)).split(batch_size)
        network.train(epoch > 0 or cfg.protocol == "strict")
        for number, batch in enumerate(tqdm(batches, f"epoch {epoch + 1}", unit="step", leave=False, dynamic_ncols=True, disable=None)):
            images = data.images[batch]
            if kind.augment:
                images = torch.stack([kind.augment(image) for image in images])
            header.step = epoch * len(batches) + number  # random margins are keyed by the step, so that a resumed run draws the same ones
            optimizer.zero_grad(set_to_none=True)
            embeddings = network(toy.to_unit(images, device))
            loss, reg_loss, norm = objective(header, embeddings, data.labels[batch].to(device), cfg.lambda_, cfg.xi)
            loss.backward()
            optimizer.step()
            for meter, value in zip(meters, (loss, reg_loss, norm)):
                meter.update(value)
        accuracy, test_norm = toy.measure(toy.embed(network, data.test_images, device), header.weight, data.test_labels)
        seconds = time.perf_counter() - began
        step, means = (epoch + 1) * len(batches), means_over_ranks(meters)
        rows.append(dict(zip(toy.MEASURED, (epoch + 1, step, *means, accuracy, test_norm, seconds))))
        checkpoints.save_state({"step": rows[-1]["step"], "epochs": rows})
        toy.write_results(folder, settings, rows)
        print("epoch {epoch}  loss {loss:.4f}  reg_loss {reg_loss:.4f}  accuracy {accuracy:.2%}  norm {norm:.4f}  {seconds:.0f} s".format(
            **rows[-1]), flush=True)

    checkpoints.save_weights("final")
    toy.write_results(folder, settings, rows)
    toy.write_projections(folder, data.test_images, toy.embed(network, data.test_images, device), data.test_labels)
    return toy.read_results(folder)


def check(cfg: EasyDict) -> None:
    """Raise InputError, naming the setting, for a value out of range."""
    check_choices(cfg, dataset=tuple(TOY_SETS), network=(*toy.NETWORKS, "all"), protocol=("strict", "paper"))
    check_least(cfg, dict(epochs=1, batch_size=1, seed=0))
    check_not_negative(cfg, "xi", "lambda_", "lr")


@lasting_console()
def run(arguments: Sequence[str] | None = None) -> int:
    """The command line: settings from `arguments` (default: the process's own); returns the exit status."""
    def work(cfg: EasyDict) -> None:
        with process_group(cfg.device) as device:
            train_toy(cfg, device)

    try:
        with stops():
            return run_command("train_toy", work, config, __doc__, arguments)
    except KeyboardInterrupt as error:
        return stopped(error, "the same command goes on from the last whole epoch")


if __name__ == "__main__":
    sys.exit(run())
