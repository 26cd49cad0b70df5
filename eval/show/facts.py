"""What was run, as tables of a page: settings and checksums, attacks and their strength, audits and what they found."""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval.show import plots, sentence, tables
from eval.show.cells import PERCENT, Column, Table
from eval.show.figures import LABELS

_ATTACK_SETTINGS = ("steps", "restarts")  # of an attack, where its class has them
_SAID = [LABELS[key] for key in ("bin", "protocol", "flip", "far_target")]


class Cell(NamedTuple):
    """text: what is shown; value: what it is sorted by; label: whether it is no number."""
    text: str
    value: str
    label: bool


class Shown(NamedTuple):
    """A table of a page."""
    caption: str
    note: str
    columns: list[tuple[str, bool]]
    rows: list[list[Cell]]


def of_table(caption: str, note: str, table: Table) -> Shown:
    """A table of figures, as it is printed, that is sorted by all digits."""
    table = table.shown()
    rows = [[Cell(text, "" if value is None else str(value), column.is_label) for column, text, value in zip(table.columns, texts, values)]
            for texts, values in zip(tables.formatted(table), table.rows)]
    return Shown(caption, note, [(column.heading, column.is_label) for column in table.columns], rows)


def varying(table: Table) -> Table:
    """A table without labels that are the same in all rows and that "what was run" says as well; the first label stays."""
    said = [(place, column.title) for place, column in enumerate(table.columns) if column.title in _SAID and place]
    return table.without(*(title for place, title in said if len({row[place] for row in table.rows}) < 2))


def certificates(found: Sequence[tuple[str, Mapping[str, Any]]]) -> Shown:
    """Figures of the further certificates (both images attacked, other norms), a row a result and certificate."""
    entries = [(name, what, figures) for name, summary in found for what, figures in summary.get("certificates", {}).items()]
    columns = [Column("Model", digits=None), Column("What may move", digits=None)]
    cells: list[list[Any]] = [[name, sentence.threat_label(what)] for name, what, _ in entries]
    for kind in "di":
        budgets = sorted({eps for _, _, figures in entries for eps in figures.get(f"cra_{kind}", {})})
        columns += [*(Column(f"CRA_{kind.upper()}", eps, PERCENT, "%") for eps in budgets), Column(f"med {kind.upper()}", unit="l2")]
        for row, (_, _, figures) in zip(cells, entries):
            shares = (figures.get(f"cra_{kind}", {}).get(eps) for eps in budgets)
            row += [*(None if share is None else 100 * share for share in shares), figures.get(f"med_{kind}")]
    table = Table(columns, cells)
    return of_table("Further certificates", "CRA in percent and medians, where more than one image or budget is attacked.",
                    table if len(found) > 1 else table.without("Model"))


def what_was_run(found: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(names, rows): a row a setting, with what it is in each result."""
    columns = [_settings(summary) for _, summary in found]
    return [name for name, _ in found], [(key, [column[key] for column in columns]) for key in columns[0]]


def _settings(summary: Mapping[str, Any]) -> dict[str, str]:
    size, target = summary.get("image_size"), summary.get("far_target")
    known = {key: "not said" if summary.get(key) is None else str(summary[key]) for key in (
        "backbone", "weights_sha256", "bin_sha256", "code_version", "code_sha256", "n_pairs", "n_images", "n_invalid_embeddings")}
    return {
        "network": known["backbone"], "weights, SHA-256": known["weights_sha256"], "pairs": summary["bin"],
        "pairs, SHA-256": known["bin_sha256"], "rows": f"{known['n_pairs']} pairs, {known['n_images']} images",
        "images without a direction": known["n_invalid_embeddings"],
        "input": ("not said" if not size else " x ".join(map(str, size))) + (", resized to it" if summary.get("resized") else ""),
        "mirror images": {"average": "averaged"}.get(summary.get("flip", "none"), "not used"), "protocol": summary["protocol"],
        "threshold tau": f"{summary['tau']:.6g}, " + ("given" if target is None else f"chosen for a FAR of {target:g}"),
        "Lipschitz constant L": _lipschitz(summary), "code": known["code_version"], "code, SHA-256": known["code_sha256"]}


def _lipschitz(summary: Mapping[str, Any]) -> str:
    if summary.get("med_u") is None:
        return "not known: no certificates"
    value = summary.get("lipschitz", 1.0)
    if summary.get("lipschitz_assumed"):
        return f"{value:.9g}, the word of whoever ran it"
    text = "at most 1, by its layers" if value == 1 else f"{value:.9g}, proven, and embeddings divided by it"
    if "sound_lipschitz" in summary:
        text += f"; in floating point {summary['sound_lipschitz']:.9g}, with an error of embeddings up to {summary['sound_error']:.3g}"
    return text


def attacks(found: Sequence[tuple[str, Mapping[str, Any]]]) -> Shown:
    """How strong each attack was."""
    rows = []
    for name, summary in found:
        for attack, entry in summary.get("attacks", {}).items():
            strength = [_said(entry.get(key)) for key in _ATTACK_SETTINGS]
            budgets = ["none" if entry.get("minimum_norm") else _list(entry.get(key)) for key in ("eps_u", "eps")]
            passes = entry.get("forward_passes", 0) + entry.get("backward_passes", 0)
            rows.append([name, tables.attack_label(attack), *strength, *budgets, "all" if entry.get("limit") is None else entry["limit"],
                         _said(entry.get("seed")), "yes" if entry.get("published") else "no", f"{passes:,}", _said(entry.get("settings"))])
    titles = ("Model", "attack", *_ATTACK_SETTINGS, "budgets of U", "budgets of D and I", "rows of each kind", "seed", "as published",
              "images passed", "settings")
    return _labels("Attacks", "An attack without a budget looks for the smallest change. Settings are all in summary.json.", titles, rows,
                   len(found))


def audits(found: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Shown:
    """What each audit tried and found."""
    rows = []
    for name, reports in found:
        for file, report in reports.items():
            settings, attacked = report["settings"], report["attacked"]
            ratio = report.get("largest_ratio")
            rows.append([name, file, sentence.threat_label(settings["threat"]), ", ".join(map(tables.attack_label, settings["attacks"])),
                         settings["steps"], settings["restarts"], "all" if settings["limit"] is None else settings["limit"],
                         *(f"{attacked[kind]:,}" if kind in attacked else "-" for kind in plots.KINDS),
                         f"{sum(report['unresolved'].values()):,}", f"{report['points']:,}", f"{report['n_violations']:,}",
                         f"{ratio:.6f}" if isinstance(ratio, float) else "-"])
    titles = ("Model", "report", "what moves", "attacks", "steps", "restarts", "rows of each kind",
              *(f"attacked, {kind.upper()}" for kind in plots.KINDS), "too small to attack", "points checked", "violations",
              "largest |f(x*) - f(x)| / |x* - x|")
    return _labels("Audits", "Attacks just below each radius: a violation would be a proof that is wrong.", titles, rows, len(found))


def _labels(caption: str, note: str, titles: Sequence[str], rows: Sequence[Sequence[Any]], results: int) -> Shown:
    table = Table([Column(title, digits=None) for title in titles], [list(map(str, row)) for row in rows])
    return of_table(caption, note, table if results > 1 else table.without("Model"))


def _said(value: Any) -> str:
    return "-" if value is None else str(value)[:60]


def _list(values: Any) -> str:
    return ", ".join(f"{eps:g}" for eps in values) if values else "-"
