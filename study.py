"""Comparisons of networks and recipes at equal CPU time, several seeds each, with controls.

    python study.py data=FOLDER table=recipe                     # FOLDER: train.rec, train.idx and .bin files, as for train.py
    python study.py data=FOLDER table=recipe runs=base,lr_3e-3   # some of its rows; a second process may do others in the same folder
    python study.py data=FOLDER table=final seeds=5 audit=True

A table is a set of rows: settings of train.py and a number of epochs, fixed so that a run can be repeated, and chosen such that all rows
take about the same CPU time, which the results say. A run, a row with a seed, is a folder of `output`/`table`; what is complete is not made
again. results.md (means over seeds, ranges in brackets) and results.csv (a line a run) are of all runs that are complete as the table has
them, and are written after each. `logs=FOLDER` also copies the training logs, summaries and results there. Exit status as train.py.
"""
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import utils.cores  # noqa: F401  # isort: skip  # ahead of torch

from easydict import EasyDict

import lda
import runs
from backbones import BACKBONES
from eval import spectrum
from eval.evaluation import FLIPS
from eval.show import tables
from eval.show.report import folder_of
from eval.show.tables import PERCENT, Column, Table
from eval.store import provenance, results
from eval.store.subject import Model, load_model
from eval.verification import read_bin
from utils import InputError
from utils.console import lasting_console
from utils.distributed import process_group
from utils.faults.folder import owned
from utils.faults.signals import stopped, stops
from utils.files import atomic_write, found_in, read_json, sha256, write_json
from utils.settings import check_choices, check_least, run_command

EPS = 0.25  # the budget of the certified accuracies that are shown
MIDPOINT = "midpoint.json"
COLUMNS = (Column("TAR", None, PERCENT, "%"), Column("CRA_D", EPS, PERCENT, "%"), Column("AUC", None, PERCENT, "%"),
           Column("CRA_I", EPS, PERCENT, "%"),
           Column("norm"), Column("tau"), Column("midpoint deviation"), Column("CPU seconds", digits=0), Column("violations", digits=0))


class Row(NamedTuple):
    """A row of a table: how it is called, its settings for train.py beside COMMON, and its epochs; 0: it is not trained."""
    model: str
    settings: dict[str, Any]
    epochs: int


# of all rows that do not say otherwise
COMMON = {"header": "ecosface", "header_args": {"s": 10.0, "m": 0.1}, "xi": 3.0, "batch_size": 32, "lr": 1e-3, "precision": "fp32"}
FAST = {"lr": 3e-3, "batch_size": 64}
CONTRAST = {"contrast": 2.0, "partners": True, "batch_size": 128}
TOGETHER = {**CONTRAST, "xi": 4.0, "jitter": 0.6, "muon": 0.02}
SMALL = {"size": 16, "unshuffle": 2, "channels": [64], "depth": [4]}
LDA = Row("LDA, not trained", {"backbone": lda.NETWORK}, 0)


def _orthonet(**changes: Any) -> dict[str, Any]:
    return {"backbone": "orthonet", "backbone_args": {**SMALL, **changes}, **FAST}


def _zoo(model: str, layer: str, epochs: int) -> Row:
    """A network of the zoo in about a hundred CPU seconds on 5,182 images."""
    return Row(model, {"backbone": f"zoo_{layer}", **FAST}, epochs)


def _header(name: str, xi: float = 0.0, **arguments: Any) -> dict[str, Any]:
    """The base network with another header; without the penalty on short embeddings unless xi says so."""
    return {**_orthonet(), "header": name, "header_args": arguments, "xi": xi, **({} if xi else {"lambda_": 0.0})}


TABLES: dict[str, dict[str, Row]] = {
    # each change alone, to the base; epochs for about a hundred CPU seconds on 5,182 images
    "recipe": {
        "base": Row("base", _orthonet(), 30),
        "lr_1e-3": Row("lr 1e-3", {**_orthonet(), "lr": 1e-3}, 30),
        "lr_1e-2": Row("lr 1e-2", {**_orthonet(), "lr": 1e-2}, 30),
        "warm": Row("2 epochs of warm-up", {**_orthonet(), "warmup_epoch": 2}, 30),
        "batch_128": Row("batch 128", {**_orthonet(), "batch_size": 128}, 36),
        "xi_4": Row("xi = 4", {**_orthonet(), "xi": 4.0}, 30),
        "contrast_128": Row("contrastive loss, partners, batch 128", {**_orthonet(), **CONTRAST}, 36),
        "jitter": Row("images turned, zoomed and moved a little", {**_orthonet(), "jitter": 0.3}, 26),
        "muon": Row("orthogonalised updates (Muon)", {**_orthonet(), "muon": 0.02}, 27),
        "length_0.7": Row("margin in length 0.7", _header("naive", s=8.0, m=0.7), 30),
        "length_1.4": Row("margin in length 1.4", _header("naive", s=8.0, m=1.4), 30),
        "length_2.8": Row("margin in length 2.8", _header("naive", s=8.0, m=2.8), 30),
        "ball_1.4": Row("margin in length 1.4, ball of 4", _header("naive", s=8.0, m=1.4, max_length=4.0), 30),
        "emma": Row("EMMA", _header("emma", xi=3.0, s=10.0, m=0.1, eps=0.5, steps=2000), 30),
        "centre": Row("embeddings centred", _orthonet(centre=True), 30),
        "size_12": Row("12 x 12 frequencies", _orthonet(size=12), 45),
        "size_32": Row("32 x 32 frequencies", _orthonet(size=32, unshuffle=4), 28),
        "depth_8": Row("8 blocks", _orthonet(depth=[8]), 18),
        "channels_128": Row("128 channels", _orthonet(channels=[128]), 14),
        "together": Row("together", {**_orthonet(), **TOGETHER}, 28),
        "linear": Row("linear map", {"backbone": "linear_map", **FAST}, 85),
        "linear_muon": Row("linear map, orthogonalised updates", {"backbone": "linear_map", **FAST, "muon": 0.02}, 56),
        "linear_together": Row("linear map, together but for these", {"backbone": "linear_map", **FAST, **TOGETHER, "muon": 0.0}, 50),
        "lda": LDA,
    },
    "zoo": {
        "sll": _zoo("SLL", "sll", 12),
        "sll_p2": _zoo("SLL-p, p = 2", "sll_p2", 7),
        "cpl": _zoo("CPL", "cpl", 11),
        "aol": _zoo("AOL", "aol", 16),
        "cayley": _zoo("Cayley convolution", "cayley", 9),
        "bro": _zoo("block reflector convolution", "bro", 10),
        "orthogonal": _zoo("orthogonal mixing, shifts", "orthogonal", 30),
        "linear": Row("linear map", {"backbone": "linear_map", **FAST}, 70),
        "lda": LDA,
    },
    # below the time of 16 epochs of sllnet_small at the paper's recipe, on 6,262 images
    "final": {
        "best": Row("orthonet", {**_orthonet(channels=[128]), **TOGETHER, "jitter": 1.0}, 80),
        "linear": Row("linear map", {"backbone": "linear_map", **FAST, **TOGETHER, "muon": 0.0}, 230),
        "lda": LDA,
    },
    # the network of params/orthonet_faces.pt, with seed 0
    "flagship": {
        "flagship": Row("orthonet, 256 channels", {**_orthonet(channels=[256]), **TOGETHER, "jitter": 1.3}, 400),
    },
}

config = EasyDict()
config.data = "data"                # a folder with train.rec, train.idx and .bin files
config.output = "out/study"
config.logs = ""                    # a folder that receives the training logs, summaries and results as well
config.table = "recipe"             # recipe, zoo, final or flagship
config.runs = []                    # rows of the table; none: all of them
config.seeds = 3                    # of each row
config.seed = 0                     # the first one
config.time = 1.0                   # epochs of all rows, in those of the table
config.device = None                # None: cuda where there is one, else cpu
config.far = 1e-2                   # target FAR
config.flips = list(FLIPS)          # embeddings of images as they are, and averaged with those of their mirror images
config.limit = 200                  # so many true and false pairs are looked at for the deviation at midpoints
config.audit = False                # try to break the certificates as well
config.audit_steps = 100            # of each attack of the audit
config.audit_limit = 100            # so many true pairs, false pairs and images are attacked


class Run(NamedTuple):
    """A row with a seed."""
    name: str
    row: Row
    seed: int

    @property
    def folder(self) -> str:
        """Its folder in that of the table."""
        return f"{self.name}_{self.seed}"


def study(cfg: EasyDict) -> None:
    """Whatever is left to be done of the settings `cfg`. Raises InputError for settings, data or results that cannot be used."""
    check(cfg)
    bins = found_in(cfg.data, "*.bin")
    if not bins:
        raise InputError(f"{cfg.data}: no .bin file, expected train.rec, train.idx and at least one (data=FOLDER names another folder)")
    output = Path(cfg.output) / cfg.table
    for run in all_runs(cfg, cfg.runs or list(TABLES[cfg.table])):
        with owned(output / run.folder):
            runs.trained(settings_of(cfg, run), cfg.data, output / run.folder / "train", device=cfg.device, in_memory=True, num_workers=0,
                         val_targets=[], frequent=50, save_epochs=10**6, keep_states=1)
            for state in found_in(output / run.folder / "train", "state_*.pt"):  # nothing goes on from here, and they are large
                state.unlink()
            with process_group(cfg.device) as device:
                evaluate(cfg, run, bins, output / run.folder, device)
        write(cfg, bins, output)
        if cfg.logs:
            publish(cfg, run, output, Path(cfg.logs))
    print(tables.render(tables.over_seeds(collected(cfg, bins, output).without("Seed"))))
    print(output / "results.md")


def all_runs(cfg: EasyDict, names: Sequence[str]) -> Iterator[Run]:
    """All rows with the first seed, then with the next one."""
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):
        for name in names:
            yield Run(name, TABLES[cfg.table][name], seed)


def settings_of(cfg: EasyDict, run: Run) -> dict[str, Any]:
    """What train.py is told."""
    return {**COMMON, "num_epoch": max(1, round(run.row.epochs * cfg.time)), "seed": run.seed, **run.row.settings}


def evaluate(cfg: EasyDict, run: Run, bins: Sequence[Path], folder: Path, device: Any) -> None:
    """Certify a run on each .bin file with each flip, audit it where that is asked for, and measure how nonlinear it is."""
    weights, backbone = folder / "train" / runs.WEIGHTS, run.row.settings["backbone"]
    for path in bins:
        bin_sha256 = sha256(path)
        for flip in cfg.flips:
            model = load_model(backbone, weights, device, flip)
            place = place_of(cfg, folder, path, flip)
            remove_of_other_code(place, model.origin["code_sha256"])
            audit = {"steps": cfg.audit_steps, "limit": cfg.audit_limit or None} if cfg.audit and model.certified else {}
            runs.evaluated(model, path, bin_sha256, place, {"protocol": "strict", "far": cfg.far, "flip": flip}, {}, audit, seed=run.seed,
                           device=device, remarks={"name": run.row.model, "seed": run.seed},
                           title=f"{run.folder}: {path.stem}, flip {flip}")
        midpoint(load_model(backbone, weights, device), path, bin_sha256, folder / path.stem / MIDPOINT, cfg.limit, device)


def place_of(cfg: EasyDict, folder: Path, path: Path, flip: str) -> Path:
    """The results folder of an evaluation of a run."""
    return folder / path.stem / folder_of(f"flip_{flip}", cfg.far)


def remove_of_other_code(place: Path, code: str) -> None:
    """Remove results that were made by other code, which a table is not to mix: they take seconds, where training took minutes."""
    if (place / results.SUMMARY).exists() and read_json(place / results.SUMMARY)["code_sha256"] != code:
        shutil.rmtree(place)


def midpoint(model: Model, path: Path, bin_sha256: str, file: Path, limit: int, device: Any) -> None:
    """Write the mean deviation at midpoints (eval/spectrum.py) of the first `limit` true and false pairs, unless it is there."""
    asked = {**model.origin, "bin_sha256": bin_sha256, "limit": limit}
    found: Any = read_json(file) if file.exists() else {}
    if all(found.get(key) == value for key, value in asked.items()):
        return
    pair_set = read_bin(path)
    chosen = spectrum.first_pairs(pair_set, limit)
    steps = spectrum.steps_of(model.network, pair_set.image_size, model.certified)
    deviations = spectrum.midpoint_deviations(steps, pair_set, pair_set.left[chosen], pair_set.right[chosen], device)
    write_json(file, {**asked, **spectrum.mean_deviation(deviations)})


def collected(cfg: EasyDict, bins: Sequence[Path], output: Path) -> Table:
    """A row for each run of the table that is complete, .bin file and flip; runs of other settings or data, and results of other code or
    .bin files, are not in it.
    """
    labels = [Column(title, digits=None) for title in ("Model", "Dataset", "Flip", "Seeds", "Epochs", "Seed")]
    rows = []
    data, hashes = runs.fingerprint(cfg.data), {path: sha256(path) for path in bins}
    complete = [run for run in all_runs(cfg, list(TABLES[cfg.table])) if is_complete(cfg, run, data, hashes, output / run.folder)]
    seeds = {run.name: sum(other.name == run.name for other in complete) for run in complete}
    for path in bins:
        for flip in cfg.flips:
            rows += [[run.row.model, path.stem, flip, seeds[run.name], _epochs(cfg, run), run.seed,
                      *figures(output / run.folder, place_of(cfg, output / run.folder, path, flip))] for run in complete]
    table = Table([*labels, *COLUMNS], rows)
    return table if any(row[-1] is not None for row in rows) else table.without("violations")


def _epochs(cfg: EasyDict, run: Run) -> int:
    return settings_of(cfg, run)["num_epoch"] if run.row.epochs else 0


def is_complete(cfg: EasyDict, run: Run, data: str, hashes: Mapping[Path, str], folder: Path) -> bool:
    """Whether a run has been trained with the settings that the table has now on the images with the fingerprint `data`, and evaluated by
    the code that there is now on the .bin files with these SHA-256.
    """
    if not _has(folder / "train" / runs.STAMP, {**runs.what_matters(settings_of(cfg, run)), "data": data}, further=("cpu_seconds",)):
        return False
    code = provenance.code_sha256(run.row.settings["backbone"])
    return all(_has(file, {"code_sha256": code, "bin_sha256": bin_sha256, **more}) for path, bin_sha256 in hashes.items()
               for file, more in ((folder / path.stem / MIDPOINT, {"limit": cfg.limit}),
                                  *((place_of(cfg, folder, path, flip) / results.SUMMARY, {}) for flip in cfg.flips)))


def _has(file: Path, expected: Mapping[str, Any], further: Sequence[str] | None = None) -> bool:
    """Whether a JSON file is there and says what is expected; with `further`, and has no other keys than these besides."""
    found: Any = read_json(file) if file.exists() else {}
    return {key: found.get(key) for key in expected} == expected and (further is None or found.keys() <= {*expected, *further})


def figures(folder: Path, place: Path) -> list[float | None]:
    """What COLUMNS has of a run and one of its results folders."""
    (summary,) = results.read_summaries(place).values()
    shares = (summary["tar"], summary["cra_d"].get(EPS), summary["auc"], summary["cra_i"].get(EPS))
    stamp: Any = read_json(folder / "train" / runs.STAMP)
    middle: Any = read_json(place.parent / MIDPOINT)
    audit: Any = read_json(place / results.AUDIT) if (place / results.AUDIT).exists() else {}
    return [*(None if share is None else 100 * share for share in shares), summary["feature_norm"], summary["tau"],
            middle["midpoint_deviation"], stamp["cpu_seconds"], audit.get("n_violations")]


def write(cfg: EasyDict, bins: Sequence[Path], output: Path) -> None:
    """results.md and results.csv of all complete runs, in `output`; of several processes the last one writes what all of them did."""
    table = collected(cfg, bins, output)
    parts = [f"# {cfg.table}", f"Strict protocol, FAR {cfg.far:g}. Means over seeds, with their range in brackets where there are several.",
             tables.render(tables.over_seeds(table.without("Seed")), "markdown")]
    for name, text in (("results.md", "\n\n".join(parts)), ("results.csv", tables.render(table, "csv"))):
        with atomic_write(output / name) as file:
            file.write(text + "\n")


def publish(cfg: EasyDict, run: Run, output: Path, logs: Path) -> None:
    """Copy the log and summaries of a run as ablation.py does, and the results of the table, into study/{table}."""
    place = logs / "study" / cfg.table
    runs.publish(output / run.folder, run.folder, place, "")
    for name in ("results.md", "results.csv"):
        with atomic_write(place / name) as file:
            file.write((output / name).read_text())


def check(cfg: EasyDict) -> None:
    """Raise InputError, naming the setting, for a value out of range and for a network that is not known."""
    check_choices(cfg, table=tuple(TABLES))
    check_least(cfg, dict(seeds=1, seed=0, limit=1, audit_steps=1, audit_limit=0))
    for name in cfg.runs:
        check_choices(EasyDict(runs=name), runs=tuple(TABLES[cfg.table]))
    for flip in cfg.flips:
        check_choices(EasyDict(flips=flip), flips=FLIPS)
    for name, low, high in (("far", 0, 1), ("time", 0, 1e6)):
        if not low < cfg[name] < high:
            raise InputError(f"setting {name}={cfg[name]}: expected a number between {low} and {high:g}")
    for name in cfg.runs or TABLES[cfg.table]:
        BACKBONES.find(TABLES[cfg.table][name].settings["backbone"])


@lasting_console()
def run(arguments: Sequence[str] | None = None) -> int:
    """The command line: settings from `arguments` (default: the process's own); returns the exit status."""
    try:
        with stops():
            return run_command("study", study, config, __doc__, arguments)
    except KeyboardInterrupt as error:
        return stopped(error, "the same command goes on from what is finished")


if __name__ == "__main__":
    sys.exit(run())
