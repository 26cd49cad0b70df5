"""What was run, as tables of a page: settings and checksums, attacks and their strength, audits and what they found."""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval.show import confidence, plots, sentence, tables
from eval.show.cells import PERCENT, Column, Table
from eval.show.figures import LABELS, USUAL, radii

_DRAWS = "draws"
_ATTACK_SETTINGS = ("steps", "restarts", _DRAWS)  # of an attack, where its class has them; draws of noise in each step
_NOISE = "noise"
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
    """Figures of the further certificates (both images attacked, other norms, means of smoothed cosines), a row for each of a result."""
    entries = [(name, summary, what, figures) for name, summary in found for what, figures in summary.get("certificates", {}).items()
               if what != summary.get("smoothing", {}).get("threat")]  # which is what all its figures are of
    columns = [Column(title, digits=None) for title in ("Model", "What may move", LABELS["radii"])]
    columns += [Column("TAR", None, PERCENT, "%"), Column("tau")]
    cells: list[list[Any]] = [[name, _moving(summary, what), radii(summary, sound=False), _percent(figures.get("tar")), figures.get("tau")]
                              for name, summary, what, figures in entries]
    for kind in "udi":
        budgets = sorted({eps for *_, figures in entries for eps in figures.get(f"cra_{kind}", {})})
        columns += [*(Column(f"CRA_{kind.upper()}", eps, PERCENT, "%") for eps in budgets), Column(f"med {kind.upper()}", unit="l2")]
        for row, (*_, figures) in zip(cells, entries):
            shares = (figures.get(f"cra_{kind}", {}).get(eps) for eps in budgets)
            row += [*map(_percent, shares), figures.get(f"med_{kind}")]
    table = Table(columns, cells).without_empty()
    if not {row[2] for row in cells} - {USUAL["radii"]}:
        table = table.without(LABELS["radii"])
    smoothed = ["smoothing" in summary for _, summary, *_ in entries]
    notes = [*([] if all(smoothed) else ["CRA in percent and medians, where more than one image or budget is attacked."]),
             *([confidence.FURTHER] if any(smoothed) else [])]
    return of_table("Further certificates", " ".join(notes), _named(table, len(found)))


def _moving(summary: Mapping[str, Any], certificate: str) -> str:
    """What an attacker may move, of a further certificate."""
    if "smoothing" in summary and certificate == "mean":
        return f"{sentence.threat_label(summary['smoothing']['threat'])}; mean of the cosines"
    return sentence.threat_label(certificate)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def what_was_run(found: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(names, rows): a row a setting, with what it is in each result."""
    columns = [_settings(summary) for _, summary in found]
    rows = [(key, [column[key] for column in columns]) for key in columns[0]]
    return [name for name, _ in found], [(key, values) for key, values in rows if key != _NOISE or set(values) != {"none"}]


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
        "Lipschitz constant L": _lipschitz(summary),
        _NOISE: confidence.described(summary["smoothing"]) if "smoothing" in summary else "none",
        "code": known["code_version"], "code, SHA-256": known["code_sha256"]}


def _lipschitz(summary: Mapping[str, Any]) -> str:
    if "smoothing" in summary:
        return "not used: decisions are smoothed by noise"
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
    table = _labels(titles, rows, len(found))
    return of_table("Attacks", "An attack without a budget looks for the smallest change. Settings are all in summary.json.",
                    table if any("smoothing" in summary for _, summary in found) else table.without(_DRAWS))


def audits(found: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> list[Shown]:
    """What each audit tried and found: a table of those of what is proven, and one of those of smoothed decisions, where there are any."""
    proven, smoothed = ([(name, {file: report for file, report in reports.items() if ("smoothing" in report) == wanted})
                         for name, reports in found] for wanted in (False, True))
    shown = [of_table("Audits", "Attacks just below each radius: a violation would be a proof that is wrong.", _of_proofs(proven)),
             of_table("Audits through the noise", confidence.AUDITS, _named(confidence.audits(smoothed), len(found)))]
    return [table for table in shown if table.rows]


def _of_proofs(found: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Table:
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
    return _labels(titles, rows, len(found))


def _labels(titles: Sequence[str], rows: Sequence[Sequence[Any]], results: int) -> Table:
    return _named(Table([Column(title, digits=None) for title in titles], [list(map(str, row)) for row in rows]), results)


def _named(table: Table, results: int) -> Table:
    """Without names where there is one result."""
    return table if results > 1 else table.without("Model")


def _said(value: Any) -> str:
    return "-" if value is None else str(value)[:60]


def _list(values: Any) -> str:
    return ", ".join(f"{eps:g}" for eps in values) if values else "-"
