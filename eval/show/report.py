"""The report of an ablation: its results side by side as Markdown, means and ranges over seeds, and figures over all runs."""
from pathlib import Path
from typing import Any, Mapping, Sequence

import pandas as pd

from eval import records
from eval.show import curves, plots, published, tables
from utils.files import atomic_write, read_json
from utils.utils_logging import read_training_log

TABLES, FIGURES = "tables.md", "figures"


def folder_of(protocol: str, far: float) -> str:
    """The name of the results folder of an evaluation."""
    return f"{protocol}_far{far:g}"


def write(output: Path, models: Mapping[str, str], bins: Sequence[str], evaluations: Sequence[tuple[str, float]]) -> None:
    """Write tables.md and figures/ of the runs `models` (folder in `output` to name of the row; of equal names, means are taken).

    evaluations: (protocol, FAR) of the results on each .bin file; audits are of the first one, and figures show it.
    """
    parts = ["# Ablation", "Means over seeds, with their range in brackets where there are several. The published rows are the paper's, on "
             "all of LFW at FAR 1e-3, of a network of 24 million parameters trained on MS1MV3.", "## Training",
             tables.render(training(output, models), "markdown")]
    for name in bins:
        for protocol, far in evaluations:
            parts += evaluated(output, models, name, protocol, far)
        first = folder_of(*evaluations[0])
        if audits := audited(output, models, name, first):
            parts += [f"## {name}: soundness audit", tables.render(pd.DataFrame(audits), "markdown")]
        figures(output, models, name, first)
    with atomic_write(output / TABLES) as file:
        file.write("\n\n".join(parts) + "\n")


def training(output: Path, models: Mapping[str, str]) -> pd.DataFrame:
    """A row a run: steps, and at its end the loss, the feature norm of training batches and the verified accuracy on each .bin file."""
    rows = []
    for run, model in models.items():
        steps, verified = read_training_log(output / run / "train" / "training.log")
        last = steps.iloc[-1]
        row = {"Model": model, "Run": run, "steps": f"{last['step']:.0f}", "loss": f"{last['loss']:.3f}",
               "norm": f"{last['feature_norm']:.3f}"}
        for target, found in verified.groupby("target"):
            row[f"{target} accuracy, flip-summed [%]"] = f"{100 * found['accuracy'].iloc[-1]:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def evaluated(output: Path, models: Mapping[str, str], name: str, protocol: str, far: float) -> list[str]:
    """Tables 1 and 2 of one .bin file, protocol and FAR, with the published ablation below the rows of the runs."""
    found = {run: records.read_records(output / run / name / folder_of(protocol, far), certified=False) for run in models}
    summaries = [one.summary for one in found.values()]
    theirs = [{key: value for key, value in row.items() if key != "xi"} | {"name": f"published, xi = {row['xi']:g}"}
              for row in published.ablation()]
    negatives = int((~next(iter(found.values())).pairs["same"]).sum())
    certified = [summary for summary in summaries if summary["med_u"] is not None]
    parts = [f"## {name}: {protocol} protocol, FAR {far:g}", f"{negatives} false pairs: the finest FAR above 0 is {1 / negatives:.2g}."]
    if certified:
        parts += ["### Certified", _markdown(tables.table1([*certified, *theirs]))]
    for attack in tables.ATTACKS:
        attacked = [summary for summary in summaries if attack in summary.get("attacks", {})]
        if attacked:
            parts += [f"### Under {tables.ATTACK_NAMES[attack]}", _markdown(tables.table2([*attacked, *theirs], [attack]))]
    least = min((value for value in map(above_certificates, summaries) if value is not None), default=None)
    return parts if least is None else [*parts, f"On the rows that were attacked, ERA - CRA is at least {100 * least:.2f} points."]


def above_certificates(summary: Mapping[str, Any]) -> "float | None":
    """The smallest ERA - CRA over kinds, attacks and budgets, both of the rows that were attacked. None without any."""
    differences = [share - summary[f"cra_attacked_{kind}"][attack][eps]
                   for kind in plots.KINDS for attack, found in summary.get(f"cra_attacked_{kind}", {}).items()
                   for eps, share in summary[f"era_{kind}"][attack].items() if share is not None and eps in found]
    return min(differences, default=None)


def _markdown(frame: pd.DataFrame) -> str:
    """Without the columns that the heading speaks for; the published rows are of LFW at FAR 1e-3 wherever they stand."""
    return tables.render(tables.over_seeds(frame).drop(columns=["Dataset", "Protocol", "FAR"]), "markdown")


def audited(output: Path, models: Mapping[str, str], name: str, folder: str) -> list[dict[str, str]]:
    """A row a run that was audited: what was attacked, violations, and the largest |f(x*) - f(x)| / |x* - x| met."""
    rows = []
    for run, model in models.items():
        file = output / run / name / folder / records.AUDIT
        if not file.exists():
            continue
        found: Any = read_json(file)
        tight = found["tightness"]
        rows.append({"Model": model, "Run": run, "pairs": f"{found['attacked']['d'] + found['attacked']['i']}",
                     "images": f"{found['attacked']['u']}", "points": f"{found['points']}", "violations": f"{found['n_violations']}",
                     "largest ratio": _number(found["largest_ratio"]),
                     **{f"smallest success / radius, {kind.upper()}": _number(tight[kind]["minimum"]) for kind in tight}})
    return rows


def _number(value: "float | None") -> str:
    return "-" if value is None else f"{value:.3f}"


def figures(output: Path, models: Mapping[str, str], name: str, results: str) -> None:
    """Comparisons over the first run of each model, and the figures of each run, of one results folder of one .bin file."""
    folder = output / FIGURES
    first = {model: run for run, model in reversed(models.items())}
    first = {models[run]: run for run in models if first[models[run]] == run}
    found = {model: records.read_records(output / run / name / results, certified=False) for model, run in first.items()}
    plots.write_comparison(found, folder / name)
    for model, run in first.items():
        plots.write_plots(found[model], folder / name, f"{run}_")
    logs = {model: read_training_log(output / run / "train" / "training.log") for model, run in first.items()}
    curves.plot_norms(logs, folder / "norm_over_training.png", "Feature norm over training")
