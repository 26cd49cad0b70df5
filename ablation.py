"""The paper's tables on one's own faces: train, certify, attack and audit a network for each xi, and others beside them.

    python ablation.py data=FOLDER                      # train.rec, train.idx and .bin files, as for train.py; `make ablation DATA=FOLDER`
    python ablation.py data=FOLDER seed=1               # the same again with other seeds, in an output folder of its own
    python ablation.py data=FOLDER runs=xi1,net num_epoch=2 limit=20

A run is a folder of `output`: its training (log, weights), and for each .bin file, protocol and FAR its records. `tables.md` and
`figures/` put the runs side by side. The same command goes on where it stopped; runs of other settings or data, and results of
other code, are refused.
`logs=FOLDER` also copies the training logs and summaries there. Exit status as train.py.
"""
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple, Optional, Sequence

from easydict import EasyDict

import train
from backbones import is_lipschitz, load_network
from config import config as training_config
from eval import records, robustness, verification
from eval.audit import one as audit
from eval.certification import PROTOCOLS
from eval.show import report
from eval.store import subject
from utils import InputError
from utils.console import lasting_console
from utils.distributed import process_group
from utils.faults.folder import owned
from utils.faults.signals import stopped, stops
from utils.files import read_json, sha256, write_json
from utils.settings import check_choices, check_least, check_not_negative, run_command

LLN = {"header": "naive", "header_args": {}, "lambda_": 0.0}  # as config_lln.py

PLUS = {"backbone": "sllnet_plus"}
PLUS_TIME = 1.5  # of its steps, in those of sllnet_small: it gets the fewer epochs


class Run(NamedTuple):
    """One network: what a row of the tables calls it, its settings for train.py, how far its seed is from the first one,
    and how long its steps take, in those of the others, which the epochs make up for."""
    model: str
    settings: dict[str, Any]
    seed: int = 0
    constrained: bool = True
    time: float = 1.0


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
    "net": Run("unconstrained", {"xi": 0.0, "lambda_": 0.0}, constrained=False),
}

config = EasyDict()
config.data = "data"                # a folder with train.rec, train.idx and .bin files
config.output = "out/ablation"
config.logs = ""                    # a folder that receives the training logs and summaries as well
config.runs = list(RUNS)
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
config.fars = [1e-2, 1e-3]          # target FARs; C&W and the audit are at the first one
config.loose_far = 0.25             # certified at this one too: most true pairs are accepted, and so the median radius of dodging is not 0
config.limit = 60                   # so many images, true and false pairs are attacked by PGD; 0: all
config.cw_limit = 30                # the same for C&W, as published, under the paper protocol
config.audit_limit = 100            # the same for the audit
config.audit_steps = 5              # of each of its attacks


def ablation(cfg: EasyDict) -> None:
    """Whatever is left to be done of the settings `cfg`. Raises InputError for settings, data or results that cannot be used."""
    check(cfg)
    bins = sorted(Path(cfg.data).glob("*.bin"))
    if not bins:
        raise InputError(f"{cfg.data}: no .bin file, expected train.rec, train.idx and at least one (data=FOLDER names another folder)")
    with owned(cfg.output):
        _ablation(cfg, bins, Path(cfg.output))


def _ablation(cfg: EasyDict, bins: Sequence[Path], output: Path) -> None:
    for name in cfg.runs:
        train_run(cfg, name, output / name / "train")
    with process_group(cfg.device) as device:
        for name in cfg.runs:
            evaluate_run(cfg, name, bins, output / name, device)
    report.write(output, {name: RUNS[name].model for name in cfg.runs}, [path.stem for path in bins], settings_of(cfg))
    if cfg.logs:
        publish(cfg, Path(cfg.logs))
    print(output / report.TABLES)


def backbone_of(cfg: EasyDict, run: Run) -> str:
    """The name of a run's network."""
    return run.settings.get("backbone", cfg.backbone if run.constrained else cfg.unconstrained)


def train_run(cfg: EasyDict, name: str, folder: Path) -> None:
    """Train a run unless it is complete. Ends the process with the exit status of train.py where that is not 0."""
    run = RUNS[name]
    settings = {"backbone": backbone_of(cfg, run), "num_epoch": max(1, round(cfg.num_epoch / run.time)), "batch_size": cfg.batch_size,
                "lr": cfg.lr, "header_args": dict(cfg.header_args), "seed": cfg.seed + run.seed, **run.settings}
    data = train.get_dataset(cfg.data).fingerprint()
    stamp = folder / "complete.json"
    if stamp.exists():
        return refuse_other_settings(stamp, {**settings, "data": data})
    free = {"rec": cfg.data, "output": folder, "device": cfg.device, "resume": "auto", "frequent": 10, "verbose": 400, "save_steps": 400}
    status = train.run(training_config, [f"{key}={value}" for key, value in {**settings, **free}.items()])
    if status:
        sys.exit(status)
    write_json(stamp, {**settings, "data": data})


def refuse_other_settings(stamp: Path, asked: dict[str, Any]) -> None:
    """Raise InputError where the training that `stamp` is of was another one."""
    found = read_json(stamp)
    other = [key for key in asked if not isinstance(found, dict) or found.get(key) != asked[key]]
    if other:
        differences = ", ".join(f"{key} {found.get(key) if isinstance(found, dict) else None}, not {asked[key]}" for key in other)
        raise InputError(f"{stamp.parent}: trained with {differences}; output=FOLDER keeps both")


def evaluate_run(cfg: EasyDict, name: str, bins: Sequence[Path], folder: Path, device: Any) -> None:
    """Certify a run where it can be, attack it and audit it, on each .bin file under both protocols and at each FAR."""
    run = RUNS[name]
    backbone, weights = backbone_of(cfg, run), folder / "train" / "model_final.pt"
    network = load_network(backbone, weights, device=device)
    origin = {**records.origin(backbone, weights), "name": run.model, "seed": cfg.seed + run.seed}
    for path in bins:
        pair_set, bin_sha256 = verification.read_bin(path), sha256(path)
        for protocol, far in settings_of(cfg):
            results = folder / pair_set.name / report.folder_of(protocol, far)
            asked = {**origin, "bin": pair_set.name, "bin_sha256": bin_sha256, "protocol": protocol, "far_target": far}
            wanted, audits = searches(cfg, protocol, far, is_lipschitz(backbone))
            if complete(results, asked, wanted, audits):
                continue
            print(f"{name}: {pair_set.name}, {protocol} protocol, FAR {far:g}", flush=True)
            prepared = subject.prepare(network, pair_set, results, asked, is_lipschitz(backbone), protocol, far, device=device,
                                       progress=f"{name} {pair_set.name}")
            for attack, limit in wanted.items():
                prepared = prepared._replace(records=robustness.attack_records(prepared, attack, limit=limit, seed=cfg.seed))
            if audits:
                audit.audit(prepared, **audits, seed=cfg.seed)


def settings_of(cfg: EasyDict) -> list[tuple[str, float]]:
    """(protocol, FAR) of each evaluation."""
    return [*((protocol, far) for far in cfg.fars for protocol in PROTOCOLS), ("strict", cfg.loose_far)]


def searches(cfg: EasyDict, protocol: str, far: float, certified: bool) -> tuple[dict[str, Optional[int]], dict[str, Optional[int]]]:
    """The attacks of an evaluation, with their limits, and the settings of its audit, empty where there is none."""
    if far not in cfg.fars:
        return {}, {}
    wanted: dict[str, Optional[int]] = {"pgd": cfg.limit or None}
    if far != cfg.fars[0]:
        return wanted, {}
    if protocol == "paper":
        return {**wanted, "cw": cfg.cw_limit or None}, {}
    return wanted, {"steps": cfg.audit_steps, "limit": cfg.audit_limit or None} if certified else {}


def complete(results: Path, asked: dict[str, Any], wanted: dict[str, Optional[int]], audits: dict[str, Optional[int]]) -> bool:
    """Whether a results folder has all that is wanted. Raises InputError where its results are of something else."""
    if not (results / records.SUMMARY).exists():
        return False
    (summary,) = records.read_summaries(results).values()
    records.refuse_others(results, summary, asked)
    attacked, audit_file = summary.get("attacks", {}), results / records.AUDIT
    audited = read_json(audit_file).get("settings", {}) if audit_file.exists() else {}
    return (all(name in attacked and attacked[name].get("limit") == limit for name, limit in wanted.items())
            and all(key in audited and audited[key] == value for key, value in audits.items()))


def publish(cfg: EasyDict, logs: Path) -> None:
    """Copy the training logs, as training_{run}.log, and the summaries and audits, as ablation/{run}/{bin}/{protocol}_far{FAR}*.json."""
    for name in cfg.runs:
        folder = Path(cfg.output) / name
        logs.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "train" / "training.log", logs / f"training_{name}.log")
        for file, ending in ((records.SUMMARY, ""), (records.AUDIT, "_audit")):
            for found in sorted(folder.glob(f"*/*/{file}")):
                copy = logs / "ablation" / name / found.parent.parent.name / f"{found.parent.name}{ending}.json"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, copy)


def check(cfg: EasyDict) -> None:
    """Raise InputError, naming the setting, for a value out of range."""
    check_least(cfg, dict(num_epoch=1, batch_size=1, seed=0, limit=0, cw_limit=0, audit_limit=0, audit_steps=1))
    check_not_negative(cfg, "lr")
    for name in cfg.runs:
        check_choices(EasyDict(runs=name), runs=tuple(RUNS))
    if not cfg.fars or not all(isinstance(far, float) and 0 < far < 1 for far in (*cfg.fars, cfg.loose_far)):
        raise InputError(f"setting fars={list(cfg.fars)}, loose_far={cfg.loose_far}: expected numbers between 0 and 1")


@lasting_console()
def run(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line: settings from `arguments` (default: the process's own); returns the exit status."""
    try:
        with stops():
            return run_command("ablation", ablation, config, __doc__, arguments)
    except KeyboardInterrupt as error:
        return stopped(error, "the same command goes on from what is finished")


if __name__ == "__main__":
    sys.exit(run())
