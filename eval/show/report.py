"""The report of an ablation: its results side by side as Markdown, means and ranges over seeds, and figures over all runs."""
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import Records
from eval.show import curves, plots, published, smoothing, tables
from eval.show.tables import PERCENT, Column, Table
from eval.store import results
from utils.files import atomic_write, read_json
from utils.utils_logging import TrainingLog, read_cpu_seconds, read_training_log

TABLES, FIGURES = "tables.md", "figures"
_RUN = (Column("Model", digits=None), Column("Run", digits=None))
_BESIDE_SMOOTHING = ("name", "radii", "passes", "tar", "far", "cra_d", "cra_i", "cra_u", "era_d", "era_i", "era_u")


def folder_of(protocol: str, far: float) -> str:
    """The name of the results folder of an evaluation."""
    return f"{protocol}_far{far:g}"


def smoothed_folder(sigma: float, far: float) -> str:
    """The name of the results folder of randomised smoothing."""
    return folder_of(f"smoothed_sigma{sigma:g}", far)


def write(output: Path, models: Mapping[str, str], bins: Sequence[str], evaluations: Sequence[tuple[str, float]],
          sigmas: Mapping[str, Sequence[float]]) -> None:
    """Write tables.md and figures/ of the runs `models` (folder in `output` to name of the row; of equal names, means are taken).

    evaluations: (protocol, FAR) of the results on each .bin file; audits are of the first one, and figures show it. sigmas: of the noise
    that the runs are smoothed with, at the FAR of the first one.
    """
    parts = ["# Ablation", "Means over seeds, with their range in brackets where there are several. The published rows are the paper's, on "
             "all of LFW at FAR 1e-3, of a network of 24 million parameters trained on MS1MV3.", "## Training",
             tables.render(training(output, models), "markdown")]
    for name in bins:
        for protocol, far in evaluations:
            parts += evaluated(output, models, name, protocol, far)
        first = folder_of(*evaluations[0])
        parts += beside_smoothing(output, models, name, evaluations[0][1], sigmas)
        audits = audited(output, models, name, first)
        if audits.rows:
            parts += [f"## {name}: soundness audit", tables.render(audits, "markdown")]
        figures(output, models, name, first)
    with atomic_write(output / TABLES) as file:
        file.write("\n\n".join(parts) + "\n")


def training(output: Path, models: Mapping[str, str]) -> Table:
    """A row a run that was trained: steps, and at its end the loss, the feature norm of training batches and the verified accuracy on each
    .bin file, and the CPU seconds of the steps where a log says them.
    """
    logs = training_logs(output, models)
    seconds = {run: read_cpu_seconds(log_of(output, run)) for run in logs}
    targets = list(dict.fromkeys(target for log in logs.values() for target in log.verification["target"]))
    columns = [*_RUN, Column("steps", digits=0), Column("loss"), Column("norm"),
               *(Column(f"{target} accuracy, flip-summed", None, PERCENT, "%") for target in targets), Column("CPU seconds", digits=0)]
    rows = []
    for run, (steps, verified) in logs.items():
        last = steps.iloc[-1]
        at_the_end = verified.groupby("target")["accuracy"].last()
        rows.append([models[run], run, last["step"], last["loss"], last["feature_norm"],
                     *(100 * at_the_end[target] if target in at_the_end else None for target in targets), seconds[run]])
    table = Table(columns, rows)
    return table if any(value is not None for value in seconds.values()) else table.without("CPU seconds")


def log_of(output: Path, run: str) -> Path:
    """Where the training log of a run is, if it was trained."""
    return output / run / "train" / "training.log"


def training_logs(output: Path, names: Iterable[str]) -> dict[str, TrainingLog]:
    """The logs of the runs that were trained, by their names."""
    return {run: read_training_log(log_of(output, run)) for run in names if log_of(output, run).exists()}


def evaluated(output: Path, models: Mapping[str, str], name: str, protocol: str, far: float) -> list[str]:
    """Tables 1 and 2 of one .bin file, protocol and FAR, with the published ablation below the rows of the runs."""
    found = {run: results.read_records(output / run / name / folder_of(protocol, far), certified=False) for run in models}
    summaries = [one.summary for one in found.values()]
    theirs = published.named_ablation()
    negatives = int((~next(iter(found.values())).pairs["same"]).sum())
    certified = [summary for summary in summaries if summary["med_u"] is not None]
    parts = [f"## {name}: {protocol} protocol, FAR {far:g}", f"{negatives} false pairs: the finest FAR above 0 is {1 / negatives:.2g}."]
    if certified:
        parts += ["### Certified", _markdown(tables.table1([*certified, *theirs]))]
    for attack in dict.fromkeys(attack for summary in summaries for attack in summary.get("attacks", {})):
        attacked = [summary for summary in summaries if attack in summary.get("attacks", {})]
        parts += [f"### Under {tables.attack_label(attack)}", _markdown(tables.table2([*attacked, *theirs], [attack]))]
    least = min((value for value in map(above_certificates, summaries) if value is not None), default=None)
    return parts if least is None else [*parts, f"On the rows that were attacked, ERA - CRA is at least {100 * least:.2f} points."]


def beside_smoothing(output: Path, models: Mapping[str, str], name: str, far: float, sigmas: Mapping[str, Sequence[float]]) -> list[str]:
    """A table of what is proven and what randomised smoothing says with confidence, a row for each model and noise, and the figure of both;
    nothing where nothing is smoothed.
    """
    smoothed = {(run, sigma): smoothed_folder(sigma, far) for run in models for sigma in sigmas.get(run, ())}
    if not smoothed:
        return []
    places = {**{(run, 0.): folder_of("strict", far) for run in models}, **smoothed}
    found = {(run, sigma): results.read_records(output / run / name / place, certified=False, smoothed=True)
             for (run, sigma), place in places.items()}
    first: dict[tuple[str, float], Records] = {}
    for (run, sigma), one in found.items():
        first.setdefault((models[run], sigma), one)
    smoothing.write_comparison([(model, one) for (model, _), one in first.items()], output / FIGURES / name)
    table = tables.chosen([one.summary for one in found.values()], _BESIDE_SMOOTHING)
    limit = found[next(iter(smoothed))].summary["smoothing"]["limit"]
    of = f" Smoothed: the first {limit} true and false pairs." if limit else ""
    return [f"## {name}: beside randomised smoothing", f"Strict protocol, FAR {far:g}.{of} Passes: of an image, for one decision.",
            tables.render(tables.over_seeds(table), "markdown")]


def above_certificates(summary: Mapping[str, Any]) -> float | None:
    """The smallest ERA - CRA over kinds, attacks and budgets, both of the rows that were attacked. None without any."""
    differences = [share - summary[f"cra_attacked_{kind}"][attack][eps]
                   for kind in plots.KINDS for attack, found in summary.get(f"cra_attacked_{kind}", {}).items()
                   for eps, share in summary[f"era_{kind}"][attack].items() if share is not None and eps in found]
    return min(differences, default=None)


def _markdown(table: Table) -> str:
    """Without the columns that the heading speaks for; the published rows are of LFW at FAR 1e-3 wherever they stand."""
    return tables.render(tables.over_seeds(table).without("Dataset", "Protocol", "FAR"), "markdown")


def audited(output: Path, models: Mapping[str, str], name: str, folder: str) -> Table:
    """A row a run that was audited: what was attacked, in how many steps, violations, and the largest |f(x*) - f(x)| / |x* - x| met."""
    counts = (Column(title, digits=0) for title in ("pairs", "images", "steps an attack", "points", "violations"))
    columns = [*_RUN, *counts, Column("largest ratio"), *(Column(f"smallest success / radius, {kind.upper()}") for kind in plots.KINDS)]
    rows = []
    for run, model in models.items():
        file = output / run / name / folder / results.AUDIT
        if not file.exists():
            continue
        found: Any = read_json(file)
        attacked, steps = found["attacked"], found["settings"]["steps"]
        rows.append([model, run, attacked["d"] + attacked["i"], attacked["u"], steps, found["points"], found["n_violations"],
                     found["largest_ratio"], *(found["tightness"][kind]["minimum"] for kind in plots.KINDS)])
    return Table(columns, rows)


def figures(output: Path, models: Mapping[str, str], name: str, evaluation: str) -> None:
    """Comparisons over the first run of each model, and the figures of each run, of one results folder of one .bin file."""
    folder = output / FIGURES
    first = {model: run for run, model in reversed(models.items())}
    first = {models[run]: run for run in models if first[models[run]] == run}
    found = {model: results.read_records(output / run / name / evaluation, certified=False) for model, run in first.items()}
    plots.write_comparison(found, folder / name)
    for model, run in first.items():
        plots.write_plots(found[model], folder / name, f"{run}_")
    logs = {models[run]: log for run, log in training_logs(output, first.values()).items()}
    if logs:
        curves.plot_norms(logs, folder / "norm_over_training.png", "Feature norm over training")
