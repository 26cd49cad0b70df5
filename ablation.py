"""The paper's tables on one's own faces: train, certify, attack and audit a network for each xi, and others and controls beside them.

    python ablation.py data=FOLDER                      # train.rec, train.idx and .bin files, as for train.py
    python ablation.py data=FOLDER seed=1               # the same again with other seeds, in an output folder of its own
    python ablation.py data=FOLDER runs=xi1,net num_epoch=2 limit=20
    python ablation.py data=FOLDER runs=orthonet,net,smooth25,smooth50,pgd,trades   # what else is done for robustness, beside ours

A run is a folder of `output`: its training (log, weights), and for each .bin file, protocol and FAR its records, and those of randomised
smoothing where the run has noise of its own. `tables.md` and `figures/` put the runs side by side. The same command goes on where it
stopped; runs of other settings or data, and results of other code, are refused.
`logs=FOLDER` also copies the training logs and summaries there. Exit status as train.py.
"""
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from easydict import EasyDict

import lda
import runs
import study
from eval.evaluation import PROTOCOLS
from eval.show import report
from eval.smoothing import Smoothing
from eval.store.subject import load_model
from utils import InputError
from utils.console import lasting_console
from utils.distributed import process_group
from utils.faults.folder import owned
from utils.faults.signals import stopped, stops
from utils.files import found_in, sha256
from utils.settings import check_choices, check_least, check_not_negative, run_command

LLN = {"header": "naive", "header_args": {}, "lambda_": 0.0}  # as config_lln.py

NET = {"xi": 0.0, "lambda_": 0.0}
ATTACK = {"adversarial_eps": 0.75, "adversarial_steps": 3}  # of adversarial training

PLUS = {"backbone": "sllnet_plus"}
PLUS_TIME = 1.5  # of its steps, in those of sllnet_small: it gets the fewer epochs
LINEAR_TIME = 0.25  # the same of linear_map


class Run(NamedTuple):
    """One network: what a row of the tables calls it, its settings for train.py, how far its seed is from the first one,
    how long its epochs take, in those of the others, which their number makes up for, and with which noise it is smoothed.
    """
    model: str
    settings: dict[str, Any]
    seed: int = 0
    constrained: bool = True
    time: float = 1.0
    sigmas: tuple[float, ...] = ()


RUNS = {
    "xi0": Run("SLL, xi = 0", {"xi": 0.0}),
    "xi1": Run("SLL, xi = 1", {"xi": 1.0}),
    "xi1_again": Run("SLL, xi = 1", {"xi": 1.0}, seed=1),
    "xi3": Run("SLL, xi = 3", {"xi": 3.0}),
    "xi3_again": Run("SLL, xi = 3", {"xi": 3.0}, seed=1),
    "xi5": Run("SLL, xi = 5", {"xi": 5.0}),
    "plus": Run("SLL plus, xi = 3", {"xi": 3.0, **PLUS}, time=PLUS_TIME),
    "plus_again": Run("SLL plus, xi = 3", {"xi": 3.0, **PLUS}, seed=1, time=PLUS_TIME),
    "lln": Run("SLL, LLN", {"xi": 0.0, **LLN}),
    "net": Run("unconstrained", NET, constrained=False),
    # controls that have no part in the paper
    "linear": Run("linear map, xi = 3", {"xi": 3.0, "backbone": "linear_map"}, time=LINEAR_TIME),
    "lda": Run("LDA, not trained", {"backbone": lda.NETWORK}),
    # what else is done for robustness, with the epochs of "net", so that pgd and trades take several times as long; and for comparison, the
    # network of study.py's blind comparison
    "orthonet": Run("orthonet, xi = 4", {**study.COMMON, **study.TABLES["final"]["best"].settings}, time=0.2, sigmas=(0.25, 0.5)),
    "smooth25": Run("unconstrained, noise 0.25", {**NET, "noise_sigma": 0.25}, constrained=False, sigmas=(0.25,)),
    "smooth50": Run("unconstrained, noise 0.5", {**NET, "noise_sigma": 0.5}, constrained=False, sigmas=(0.5,)),
    "pgd": Run("unconstrained, PGD training", {**NET, "adversarial": "pgd", **ATTACK}, constrained=False),
    "trades": Run("unconstrained, TRADES", {**NET, "adversarial": "trades", "trades_beta": 6.0, **ATTACK}, constrained=False),
}
ON_REQUEST = ("orthonet", "smooth25", "smooth50", "pgd", "trades")

config = EasyDict()
config.data = "data/lfw"            # what `make faces` makes: a folder with train.rec, train.idx and .bin files
config.output = "out/ablation"
config.logs = ""                    # a folder that receives the training logs and summaries as well
config.runs = [name for name in RUNS if name not in ON_REQUEST]
config.backbone = "sllnet_small"
config.unconstrained = "net_small"
# of ElasticFace-Cos; 64 and 0.35 in the paper, for 93,431 identities. Chosen with the batch size and the depth of sllnet_small among
# ten short runs at xi = 1, one seed each, by their accuracy on lfw.bin, on which the results of the ablation are then no blind test
config.header_args = {"s": 10.0, "m": 0.1}
config.num_epoch = 16
config.batch_size = 32
config.lr = 1e-3
config.seed = 0                     # of the first network of each kind
config.device = None                # None: cuda where there is one, else cpu
config.in_memory = False            # keep the training images there, decoded, as a GPU is done with them before they are decoded anew
config.paper_protocol = True        # evaluate as the published figures were made, too, and not by the definitions only
config.fars = [1e-2, 1e-3]          # target FARs; C&W, the audit and smoothing are at the first one
config.loose_far = 0.25             # certified at this one too: most true pairs are accepted, and so the median radius of dodging is not 0
config.limit = 60                   # so many images, true and false pairs are attacked by PGD; 0: all
config.cw_limit = 30                # the same for C&W, as published, under the paper protocol
config.audit_limit = 100            # the same for the audit
config.audit_steps = 5              # of each of its attacks; 0: no audit
config.n0, config.n = 100, 1000     # samples of randomised smoothing: that choose a decision, and that certify it
config.smooth_limit = 200           # so many true and false pairs are smoothed; 0: all
config.draws = 32                   # of noise in each step of an attack on smoothed decisions


def ablation(cfg: EasyDict) -> None:
    """Whatever is left to be done of the settings `cfg`. Raises InputError for settings, data or results that cannot be used."""
    check(cfg)
    bins = found_in(cfg.data, "*.bin")
    if not bins:
        raise InputError(f"{cfg.data}: no .bin file, expected train.rec, train.idx and at least one (data=FOLDER names another folder, "
                         "`make faces` makes data/lfw)")
    with owned(cfg.output):
        _ablation(cfg, bins, Path(cfg.output))


def _ablation(cfg: EasyDict, bins: Sequence[Path], output: Path) -> None:
    for name in cfg.runs:
        train_run(cfg, name, output / name / "train")
    with process_group(cfg.device) as device:
        for name in cfg.runs:
            evaluate_run(cfg, name, bins, output / name, device)
    report.write(output, {name: RUNS[name].model for name in cfg.runs}, [path.stem for path in bins], settings_of(cfg),
                 {name: RUNS[name].sigmas for name in cfg.runs})
    for name in cfg.runs if cfg.logs else ():
        runs.publish(output / name, name, Path(cfg.logs), "ablation")
    print(output / report.TABLES)


def backbone_of(cfg: EasyDict, run: Run) -> str:
    """The name of a run's network."""
    return run.settings.get("backbone", cfg.backbone if run.constrained else cfg.unconstrained)


def train_run(cfg: EasyDict, name: str, folder: Path) -> None:
    """Train a run unless it is complete. Ends the process with the exit status of train.py where that is not 0."""
    run = RUNS[name]
    settings = {"backbone": backbone_of(cfg, run), "num_epoch": max(1, round(cfg.num_epoch / run.time)), "batch_size": cfg.batch_size,
                "lr": cfg.lr, "header_args": dict(cfg.header_args), "seed": cfg.seed + run.seed, **run.settings}
    memory = {"in_memory": True, "num_workers": 0} if cfg.in_memory else {}
    runs.trained(settings, cfg.data, folder, device=cfg.device, frequent=10, verbose=400, save_steps=400, **memory)


def evaluate_run(cfg: EasyDict, name: str, bins: Sequence[Path], folder: Path, device: Any) -> None:
    """Certify a run where it can be, attack it and audit it, on each .bin file under both protocols and at each FAR; and smooth it."""
    run = RUNS[name]
    model = load_model(backbone_of(cfg, run), folder / "train" / runs.WEIGHTS, device)
    remarks = {"name": run.model, "seed": cfg.seed + run.seed}
    for path in bins:
        bin_sha256 = sha256(path)
        for protocol, far in settings_of(cfg):
            wanted, audit = searches(cfg, protocol, far, model.certified)
            place, given = folder / path.stem / report.folder_of(protocol, far), {"protocol": protocol, "far": far}
            runs.evaluated(model, path, bin_sha256, place, given, wanted, audit, seed=cfg.seed, device=device, remarks=remarks,
                           title=f"{name}: {path.stem}, {protocol} protocol, FAR {far:g}")
        far = cfg.fars[0]
        for sigma in run.sigmas:
            settings = Smoothing(sigma, cfg.n0, cfg.n, seed=cfg.seed, limit=cfg.smooth_limit or None)
            runs.smoothed(model, path, bin_sha256, folder / path.stem / report.smoothed_folder(sigma, far), {"far": far}, settings,
                          {"pgd": cfg.limit or None}, draws=cfg.draws, device=device, remarks=remarks,
                          title=f"{name}: {path.stem}, smoothed, sigma {sigma:g}, FAR {far:g}")


def settings_of(cfg: EasyDict) -> list[tuple[str, float]]:
    """(protocol, FAR) of each evaluation."""
    protocols = PROTOCOLS if cfg.paper_protocol else ("strict",)
    return [*((protocol, far) for far in cfg.fars for protocol in protocols), ("strict", cfg.loose_far)]


def searches(cfg: EasyDict, protocol: str, far: float, certified: bool) -> tuple[runs.Limits, runs.Limits]:
    """The attacks of an evaluation, with their limits, and the settings of its audit, empty where there is none."""
    if far not in cfg.fars:
        return {}, {}
    wanted: runs.Limits = {"pgd": cfg.limit or None}
    if far != cfg.fars[0]:
        return wanted, {}
    if protocol == "paper":
        return {**wanted, "cw": cfg.cw_limit or None}, {}
    return wanted, {"steps": cfg.audit_steps, "limit": cfg.audit_limit or None} if certified and cfg.audit_steps else {}


def check(cfg: EasyDict) -> None:
    """Raise InputError, naming the setting, for a value out of range."""
    check_least(cfg, dict(num_epoch=1, batch_size=1, seed=0, limit=0, cw_limit=0, audit_limit=0, audit_steps=0, smooth_limit=0, draws=1))
    Smoothing(1.0, cfg.n0, cfg.n)
    check_not_negative(cfg, "lr")
    for name in cfg.runs:
        check_choices(EasyDict(runs=name), runs=tuple(RUNS))
    if not cfg.fars or not all(isinstance(far, float) and 0 < far < 1 for far in (*cfg.fars, cfg.loose_far)):
        raise InputError(f"setting fars={list(cfg.fars)}, loose_far={cfg.loose_far}: expected numbers between 0 and 1")


@lasting_console()
def run(arguments: Sequence[str] | None = None) -> int:
    """The command line: settings from `arguments` (default: the process's own); returns the exit status."""
    try:
        with stops():
            return run_command("ablation", ablation, config, __doc__, arguments)
    except KeyboardInterrupt as error:
        return stopped(error, "the same command goes on from what is finished")


if __name__ == "__main__":
    sys.exit(run())
