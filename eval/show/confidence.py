"""What a page says of results that hold with a confidence, those of randomised smoothing, and never mixes with what is proven."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.records import Records
from eval.show import plots, sentence, tables
from eval.show.cells import PERCENT, Column, Table
from eval.show.figures import passes
from eval.smoothing import Smoothing, confidence

# captions of figures of one result, where they are other ones than those of what is proven
CAPTIONS = {
    "certified_accuracy": "The share of right decisions that no attack up to a budget can turn, each with the confidence in the title. "
                          "Steps are exact.",
    "robust_accuracy": "The share that attacks through the noise failed to turn, and what is certified, with confidence, of the same rows. "
                       "What lies between is not known.",
    "roc": "True pairs accepted against false pairs accepted, at each threshold, by the median cosine of noisy copies, of a pair that of "
           "its weaker side. The dot is at the threshold of this result; decisions that abstain do not count as wrong here. What noise "
           "certifies says nothing of other thresholds.",
    "radius_histograms": "How many right decisions have which radius, each with the confidence in the title. The largest is that of draws "
                         "which all agree. The median counts as 0 what is wrong or abstains.",
    "feature_norms": "How long the embeddings of images without noise are. Radii of smoothed decisions do not depend on it."}
# notes of tables
CERTIFIED = ("CRA and medians of randomised smoothing: each radius holds with the confidence in its row and is not proven. Decisions that "
             "abstain count as wrong, also in TAR.")
ATTACKED = ("What the attack left, of the rows that it was run on. It lowers the mean cosine over draws of noise; a decision fell where "
            "fresh draws have another majority.")
CLEAN = ("Of smoothed decisions the cosine is the median of noisy copies, of a pair that of its weaker side, and TAR and reached FAR count "
         "those that abstain as wrong.")
FURTHER = ("Mean: of the mean cosine in place of the majority, at a threshold of its own. The column Radii says what holds with a "
           "confidence.")
AUDITS = ("Attacks just below each radius. A decision fell where fresh draws have another majority, with the same confidence: at most 2 "
          "alpha of those sampled are expected to, and more than chance explains would be violations. Of a pair there are two decisions, "
          "unless both of its images are smoothed.")
TELLING = "The cosine is that of the weaker side, and a pair that abstains counts as wrong."
GLOSSARY = [
    ("smoothing, sigma", "Randomised smoothing: an image is presented in many noisy copies, and the decision of their majority counts. "
                         "Sigma is the standard deviation of the noise, in pixel values from -0.5 to 0.5. It takes any network."),
    ("confidence, alpha", "The radius of a smoothed decision is not proven: the majority is known from draws of noise, and the radius is "
                          "too large with a chance of at most alpha. The confidence is 1 - alpha. CRA and medians are of such radii."),
    ("n0, n", "Draws of noise: n0 choose the threshold and what a decision seems to be, and n fresh ones certify it."),
    ("abstain", "Where the majority is not clear, nothing is decided; that counts as wrong."),
    ("mean", "A second verifier, by the mean of the cosines in place of the majority, certified by the same draws."),
    ("fell", "In an audit of smoothed decisions: another decision is the majority, with the same confidence, just below the radius. Up to "
             "2 alpha of the decisions may.")]


def certified(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Table 1 with the noise, how many draws there were, and the confidence of each row."""
    table = tables.table1(summaries).without("Radii")
    settings = [summary["smoothing"] for summary in summaries]
    columns = {
        Column("What may move", digits=None): [sentence.threat_label(of["threat"]) for of in settings],
        Column("sigma", digits=None): [f"{of['sigma']:g}" for of in settings],
        Column("confidence", digits=None): [confidence(of["alpha"]) for of in settings],
        Column("alpha", digits=None): [f"{of['alpha']:g}" for of in settings],
        Column("n0", digits=0): [of["n0"] for of in settings], Column("n", digits=0): [of["n"] for of in settings],
        Column("passes a decision", digits=0): [*map(passes, summaries)],
        Column("abstained", None, PERCENT, "%"): [100 * of["abstained"] for of in settings]}
    return _with(table, columns).without_empty()  # where both images are smoothed there is nothing of U


def under(summaries: Sequence[Mapping[str, Any]], attack: str) -> Table:
    """Table 2 of an attack through noise, with its draws in each step."""
    table = tables.table2(summaries, [attack])
    return _with(table, {Column("draws a step", digits=0): [summary["attacks"][attack].get("draws") for summary in summaries]})


def _with(table: Table, columns: Mapping[Column, Sequence[Any]]) -> Table:
    """The table with further columns after its labels."""
    place = sum(column.is_label for column in table.columns)
    return Table([*table.columns[:place], *columns, *table.columns[place:]],
                 [[*row[:place], *more, *row[place:]] for row, more in zip(table.rows, zip(*columns.values()))])


def decisions(found: Records) -> np.ndarray:
    """What was decided about each pair: "accepted", "rejected" or "abstains"; a pair of two decisions as by the one that is wrong."""
    pairs, settings = found.pairs, Smoothing.of(found.summary)
    wrong = np.zeros(len(pairs), dtype=bool)
    for side in ("",) if settings.threat == "joint" else ("_left", "_right"):
        accepts = pairs[f"cosine{side}"] > found.summary["tau"]
        wrong |= (accepts != pairs["same"]).to_numpy() & (settings.radius(accepts, pairs[f"votes{side}"]) > 0)
    said = np.where(pairs["accepted"], "accepted", "rejected")
    return np.where((pairs["radius"] > 0) | wrong, said, "abstains")


def described(of: Mapping[str, Any]) -> str:
    """How decisions are smoothed, from `smoothing` of a summary, for the settings of a page."""
    both = "both images" if of["threat"] == "joint" else "the image that is presented"
    limit = "" if of["limit"] is None else f"; the first {of['limit']} pairs of each kind"
    return (f"sigma {of['sigma']:g} on {both}; {of['n0']:,} draws that select and {of['n']:,} that certify, alpha {of['alpha']:g}, seed "
            f"{of['seed']}{limit}; {of['forward_passes']:,} images passed")


def other_rows(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A remark for each file of pairs of which smoothed results are of other rows (--limit) than the results beside them."""
    files: dict[Any, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, summary in found:
        files.setdefault((summary["bin"], summary.get("bin_sha256")), []).append((name, summary))
    return [f"not of the same pairs of {file}: " + ", ".join(f"{name} of {summary.get('n_pairs')}" for name, summary in some)
            for (file, _), some in files.items()
            if any("smoothing" in summary for _, summary in some) and len({summary.get("n_pairs") for _, summary in some}) > 1]


def in_words(of: Mapping[str, Any]) -> str:
    """What the figures of a smoothed result are about."""
    what = "both images of a pair" if of["threat"] == "joint" else "the image that is presented"
    return (f"Not proven: this is the verifier that takes the majority over {of['n']:,} noisy copies of {what}, and not the network as it "
            f"is. Each radius was estimated from draws of noise, and is too large with a chance of at most {of['alpha']:g}.")


def audits(found: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Table:
    """What each audit of smoothed decisions tried, and how many fell, against alpha."""
    columns = [Column(title, digits=None) for title in (
        "Model", "report", "what moves", "sampled", *(f"attacked, {kind.upper()}" for kind in plots.KINDS), "too small to attack", "fell",
        "expected at most", "chance of so many", "violations", "alpha", "least share of draws left", "attack", "steps", "restarts",
        "draws a step", "rows of each kind")]
    return Table(columns, [[name, file, *_audited(report)] for name, reports in found for file, report in reports.items()])


def _audited(report: Mapping[str, Any]) -> list[str]:
    settings, attacked = report["settings"], report["attacked"]
    left = [share["after"]["minimum"] for share in report["share"].values() if "minimum" in share.get("after", {})]
    return [sentence.threat_label(settings["threat"]), f"{sum(report['sampled'].values()):,}",
            *(f"{attacked[kind]:,}" if kind in attacked else "-" for kind in plots.KINDS), f"{sum(report['unresolved'].values()):,}",
            f"{report['n_fallen']:,}", f"{report['expected']:.3g}", f"{report['chance']:.2g}", f"{report['n_violations']:,}",
            f"{report['smoothing']['alpha']:g}", f"{min(left):.3f}" if left else "-", settings["attack"],
            *(str(settings[key]) for key in ("steps", "restarts", "draws")), "all" if settings["limit"] is None else str(settings["limit"])]
