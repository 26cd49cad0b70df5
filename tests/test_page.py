"""The page of results folders: what it says is what the records say, whoever wrote them, and it needs nothing else."""
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from many_pairs import many, with_audit
from many_pairs import write as write_many
from matplotlib.figure import Figure
from PIL import Image
from small_world import command, summary_of, world  # noqa: F401

import eval.__main__ as command_line
from eval.records import Records
from eval.show import page, plots, svg
from eval.store import provenance
from eval.store.results import write_records
from eval.verification import roc

VOID = {"meta", "img", "path", "use", "rect", "image", "circle", "line", "br"}


class Reader(HTMLParser):
    """What a browser would see: tags that are open at the end, ids, what is loaded, scripts, tables as rows of texts, all text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loaded, self.scripts, self.tables, self.words, self.tags = [], [], [], [], {}, [], []
        self.rows, self.caption, self.open_at = None, None, []
        self.feed(text)

    def handle_starttag(self, tag, given):
        attributes = dict(given)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.loaded += [attributes[name] for name in ("src", "href", "xlink:href", "data", "action") if name in attributes]
        assert not [name for name in attributes if name.startswith("on")], attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows, self.caption = [], ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, given):
        self.handle_starttag(tag, given)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.caption.strip()] = self.rows
            self.rows = None

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
            return
        self.words.append(data)
        self.open_at.append(self.open[-1] if self.open else "")
        if self.rows is not None and self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data
        if "caption" in self.open:
            self.caption += data


def report(*given):
    return command_line.main(["report", *map(str, given)])


def read(path):
    text = path.read_text()
    found = Reader(text)
    assert not found.open and len(found.ids) == len(set(found.ids)), "a page that is whole, whose ids are of one element each"
    assert found.scripts == [(ROOT / "eval/show/page.js").read_text()], "its own script and no other"
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.loaded), "nothing is loaded"
    assert "@import" not in text and not re.findall(r"url\((?!#)", text)
    return found


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A folder that was certified, attacked by PGD and DDN, audited and drawn."""
    folder = tmp_path_factory.mktemp("page")
    made = world.__wrapped__(folder)
    assert command(made, "certify", "--p", "inf", "--certified-far", "0.06") == 0
    for what in (["pgd", "--steps", "2", "--eps-u", "0.5", "--eps", "0.06", "--limit", "5"], ["ddn", "--steps", "5"]):
        assert command(made, "attack", "--attack", *what) == 0
    assert command(made, "audit", "--steps", "3", "--restarts", "1", "--limit", "3") == 0
    assert command(made, "audit", "--threat", "both", "--steps", "3", "--restarts", "1", "--limit", "3") == 0
    assert command_line.main(["plot", str(made / "out"), "--bin", str(made / "faces.bin"), "--backbone", "tiny", "--weights", str(made / "tiny.pt"), "--device", "cpu"]) == 0
    assert report(made / "out", "--out", made / "page.html") == 0
    return made


@pytest.fixture
def no_figures(monkeypatch):
    """For tests about other things: figures are what takes time."""
    for name in ("_figures", "_compared"):
        monkeypatch.setattr(page, name, lambda shown: [])


def test_a_page_says_what_was_found_and_what_was_run(attacked):
    found, summary = read(attacked / "page.html"), summary_of(attacked / "out")
    words = " ".join(" ".join(found.words).split())
    pairs = pd.read_csv(attacked / "out/pairs.csv")
    share = np.floor(1000 * (pairs.radius[pairs.same] > 0.25).mean()) / 10
    assert f"{share:g} % of true pairs stay accepted under any attack on one image up to 0.25, which is proven" in words
    assert "PGD left" in words and "of the first 5 true pairs accepted at 0.06" in words and "and broke none" in words
    captions = {caption.split("  ")[0] for caption in found.tables}
    assert all(any(caption.startswith(start) for caption in captions) for start in ("Certified", "Further certificates", "Under PGD", "Under DDN", "Without an attack", "Telling pairs", "Settings", "Attacks", "Audits"))
    head, row = next(rows for caption, rows in found.tables.items() if caption.startswith("Under PGD"))
    assert dict(zip(head, row))["Limit"] == "5"
    assert [text for tag, text in zip(found.open_at, found.words) if tag == "h1"] == ["out"]
    settings = dict(next(rows[1:] for caption, rows in found.tables.items() if caption.startswith("Settings")))
    assert settings["weights, SHA-256"] == summary["weights_sha256"] and settings["code, SHA-256"] == summary["code_sha256"]
    assert settings["pairs, SHA-256"] == summary["bin_sha256"] and settings["threshold tau"] == "0.3, given"
    audits = next(rows for caption, rows in found.tables.items() if caption.startswith("Audits"))
    audit = json.loads((attacked / "out/audit.json").read_text())
    row = dict(zip(audits[0], audits[1]))
    assert (row["report"], row["steps"], row["violations"]) == ("audit.json", "3", "0") and row["points checked"] == f"{audit['points']:,}"
    assert {line[0] for line in audits[1:]} == {"audit.json", "audit_both.json"}
    assert sum(tag == "svg" for tag, _ in found.tags) == len(page.FIGURES) - 1, "all but that of several results"
    assert all(attributes.get("aria-label") for tag, attributes in found.tags if tag == "svg")
    pictures = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(pictures) == 1 and pictures[0]["alt"] and pictures[0]["src"].startswith("data:image/png")
    assert ("html", {"lang": "en"}) in found.tags and sum(tag == "h1" for tag, _ in found.tags) == 1
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in found.tags if tag == "th")


def test_the_same_results_make_the_same_page(attacked, capsys):
    assert report(attacked / "out", "--out", attacked / "again.html") == 0
    assert (attacked / "again.html").read_bytes() == (attacked / "page.html").read_bytes()
    assert capsys.readouterr().out == f"{attacked / 'again.html'}\n"


def test_tables_hold_the_figures_of_the_records(attacked):
    tables, summary = read(attacked / "page.html").tables, summary_of(attacked / "out")
    head, row = next(rows for caption, rows in tables.items() if caption.startswith("Certified"))
    assert any(cell.startswith(f"{100 * summary['cra_d'][0.25]:.2f}") for title, cell in zip(head, row) if title.startswith("CRA_D 0.25"))
    telling = next(rows for caption, rows in tables.items() if caption.startswith("Telling"))
    pairs, tries = (pd.read_csv(attacked / f"out/{name}.csv") for name in ("pairs", "attacks"))
    pairs = pairs.set_index("pair")
    for cells in telling[1:]:
        line = dict(zip(telling[0], cells))
        one = pairs.loc[int(line["pair"])]
        assert line["shows"] == ("one person" if one.same else "two people") and line["decision"] == ("accepted" if one.accepted else "rejected")
        assert (line["why"] == "wrong") == (one.same != one.accepted) and float(line["radius"]) == pytest.approx(one.radius, abs=5e-4)
        norms = tries[tries.success & (tries.kind != "u") & (tries.row == int(line["pair"]))].norm
        assert line["attack"] == ("-" if norms.empty else f"{norms.min():.3f}")
    closest = [float(cells[5]) for cells in telling[1:] if cells[0] == "closest"]
    assert closest == sorted(closest) and closest[0] == pytest.approx(pairs.radius[pairs.radius > 0].min(), abs=5e-4)


def test_several_results_stand_side_by_side(tmp_path):
    for name, shift in (("a/lfw", 0.), ("b/lfw", 1.)):
        write_many(tmp_path / name, 40, shift)
    assert report(tmp_path / "a/lfw", tmp_path / "b", "--out", tmp_path / "page.html") == 0
    found = read(tmp_path / "page.html")
    head, *rows = next(rows for caption, rows in found.tables.items() if caption.startswith("Certified"))
    assert head[0] == "Model" and [row[0] for row in rows] == ["a/lfw", "b/lfw"]
    figures = [attributes["aria-label"] for tag, attributes in found.tags if tag == "svg"]
    assert sum(label.startswith("Certified accuracy, all results") for label in figures) == 1
    assert [label.split(".")[0] for label in figures if label.startswith("ROC")] == ["ROC, a/lfw", "ROC, b/lfw"]


def test_other_names(tmp_path, no_figures):
    write_many(tmp_path / "a", 40)
    write_many(tmp_path / "b", 40)
    assert report(tmp_path, "--names", "first", "second", "--out", tmp_path / "named.html") == 0
    assert "<h1>first, second</h1>" in (tmp_path / "named.html").read_text()


def test_results_that_cannot_be_compared_have_tables_of_their_own(tmp_path, no_figures):
    for name, code in (("one", "3" * 64), ("two", "4" * 64)):
        found = many(40)
        write_records(tmp_path / name, Records(found.pairs, found.images, {**found.summary, "code_sha256": code}))
    assert report(tmp_path, "--out", tmp_path / "page.html") == 0
    found = read(tmp_path / "page.html")
    assert "not in one table, as the code is not the same" in " ".join(found.words)
    assert {caption.split(" CRA")[0].strip() for caption in found.tables} >= {"Certified: one", "Certified: two"}


def test_sound_radii_have_a_table_and_are_what_the_sentence_says(world, no_figures):
    assert command(world, "certify", "--sound") == 0 and report(world / "out", "--out", world / "page.html") == 0
    found, summary = read(world / "page.html"), summary_of(world / "out")
    words = " ".join(" ".join(found.words).split())
    assert f"{np.floor(1000 * summary['cra_d_sound'][0.25]) / 10:g} % of true pairs stay accepted" in words and "rounding included" in words
    head, row = next(rows for caption, rows in found.tables.items() if caption.startswith("Certified, in floating point"))
    assert any(cell.startswith(f"{summary['med_d_sound']:.3f}") for title, cell in zip(head, row) if title.startswith("med D"))


def test_a_network_without_certificates(world):
    assert command(world, "attack", "--attack", "fgsm", backbone="loose") == 0 and report(world / "out", "--out", world / "page.html") == 0
    found = read(world / "page.html")
    assert "nothing is proven of this network" in " ".join(found.words) and not any(caption.startswith("Certified") for caption in found.tables)


# --- strangers

BAD = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}$"


def test_hostile_names_are_text(tmp_path):
    """In folders, in the summary, in attacks and in audits."""
    found = with_audit(many(40))
    word = BAD[:60]
    entry = {"eps": [0.25], "eps_u": [1.5], "minimum_norm": False, "published": False, "limit": None, "settings": "0" * 12, "steps": BAD, "restarts": [BAD]}
    summary = {**found.summary, "bin": BAD, "backbone": BAD, "weights_sha256": BAD, "code_version": BAD, "name": BAD, "reasons": {BAD: BAD}, "attacks": {BAD: entry},
               "certificates": {BAD: {"cra_d": {0.25: 0.5}, "med_d": 0.1, "cra_i": {}, "med_i": None}},
               **{f"era_{kind}": {BAD: {0.25: 0.5}} for kind in "udi"}, **{f"cra_attacked_{kind}": {BAD: {0.25: 0.5}} for kind in "udi"}}
    folder = tmp_path / "<b>&$_'\"$ <script>alert(3)<"
    write_records(folder, Records(found.pairs, found.images, summary, found.attacks))
    audit = {"settings": {"threat": BAD, "steps": 1, "restarts": 1, "limit": None, "seed": 0, "attacks": [BAD]}, "attacked": {"d": 1, "i": 1}, "unresolved": {},
             "points": 1, "rechecked": 0, "n_violations": 3, "largest_ratio": BAD}
    origin = {key: summary.get(key) for key in provenance.ORIGIN}
    (folder / "audit_<script>.json").write_text(json.dumps({**origin, **audit}))
    shutil.copytree(folder, tmp_path / "other")
    for given in ([folder], [folder, tmp_path / "other"]):
        assert report(*given, "--out", tmp_path / "page.html") == 0
        page_read = read(tmp_path / "page.html")  # which looks for scripts, handlers and addresses
        assert not [tag for tag, _ in page_read.tags if tag == "b"] and "broke 3: these certificates do not hold" in " ".join(page_read.words)
        assert word in " ".join(page_read.words) and "{{7*7}}" in " ".join(page_read.words)


@pytest.mark.parametrize("change, words", [
    ({"image_size": ["a", 1, 1]}, "image_size is"), ({"lp": [{"p": "a"}]}, "lp is"), ({"lp": 3}, "lp is"), ({"certified_far": {0.25: {"target": None}}}, "certified_far is"),
    ({"certified_far": [1]}, "certified_far is"), ({"name": "a\nb"}, "name is")])
def test_summaries_that_are_none_are_refused(tmp_path, capsys, change, words):
    found = many(40)
    write_records(tmp_path / "a", Records(found.pairs, found.images, {**found.summary, **change}))
    assert report(tmp_path / "a", "--out", tmp_path / "page.html") == 2 and not (tmp_path / "page.html").exists()
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("name, content, words", [
    ("audit.json", "[]", "not the report of an audit"), ("audit.json", "{", "not JSON"), ("audit_both.json", '{"settings": 1}', "settings is 1"),
    ("audit.json", None, "these results have tau 0.99"), ("adversarial_examples.png", "<svg onload=alert(1)>", "not a PNG"), ("summary.json", "[]", "not a summary")])
def test_files_that_are_not_what_they_are_called(tmp_path, capsys, name, content, words):
    found = many(40)
    write_records(tmp_path / "a", found)
    if content is None:
        content = json.dumps({"settings": {"threat": "one", "steps": 1, "restarts": 1, "limit": None, "seed": 0, "attacks": []}, "attacked": {}, "unresolved": {},
                              "points": 1, "rechecked": 0, "n_violations": 0, **{key: found.summary.get(key) for key in provenance.ORIGIN}, "tau": 0.99})
    (tmp_path / "a" / name).write_text(content)
    assert report(tmp_path / "a", "--out", tmp_path / "page.html") == 2 and not (tmp_path / "page.html").exists()
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_pictures_are_checked_to_the_end(tmp_path, no_figures):
    write_many(tmp_path / "a", 40)
    Image.new("RGB", (9, 9)).save(tmp_path / "a/adversarial_examples.png")
    assert report(tmp_path / "a", "--out", tmp_path / "page.html") == 0
    whole = (tmp_path / "a/adversarial_examples.png").read_bytes()
    (tmp_path / "a/adversarial_examples.png").write_bytes(whole[:-30])
    assert report(tmp_path / "a", "--out", tmp_path / "page.html") == 2


def test_what_is_given_is_checked(tmp_path, capsys):
    write_many(tmp_path / "a", 40)
    for out, words in (("summary.json", "ends in .html"), ("folder.html", "a folder")):
        (tmp_path / "folder.html").mkdir(exist_ok=True)
        assert report(tmp_path / "a", "--out", tmp_path / out) == 2 and words in capsys.readouterr().err
    assert report(tmp_path / "none", "--out", tmp_path / "page.html") == 2 and "no summary.json in it" in capsys.readouterr().err
    assert report(tmp_path / "a", "--names", "x", "y", "--out", tmp_path / "page.html") == 2 and "2 given, expected one for each of the 1" in capsys.readouterr().err


def test_results_of_identify_are_skipped_with_a_remark(tmp_path, capsys, no_figures):
    write_many(tmp_path / "a", 40)
    (tmp_path / "i").mkdir()
    (tmp_path / "i/summary.json").write_text('{"task": "identification", "tau": 0.1}')
    assert report(tmp_path, "--out", tmp_path / "page.html") == 0
    assert "results of identify" in capsys.readouterr().err and "results of identify" in " ".join(read(tmp_path / "page.html").words)
    assert report(tmp_path / "i", "--out", tmp_path / "page.html") == 2 and "results of identify" in capsys.readouterr().err


# --- what it is made of

def test_many_pairs_make_a_small_page(tmp_path):
    write_many(tmp_path / "many", 12_000)
    assert report(tmp_path / "many", "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").stat().st_size < 1_500_000


def test_lines_are_thinned_out_to_what_an_eye_can_see():
    figure = Figure(figsize=(5, 4), dpi=100)
    axes = figure.subplots()
    x = np.sort(np.random.default_rng(0).random(50_000))
    y = np.where(np.arange(len(x)) == 25_000, 7., np.sin(20 * x))  # one point that stands out
    line, = axes.plot(x, y)
    few, = axes.plot([0, 1], [0, 1])
    svg.thin_out(figure)
    kept_x, kept_y = line.get_data()
    assert len(kept_x) < 4000 and len(few.get_xdata()) == 2
    assert 7. in kept_y and {(x[0], y[0]), (x[-1], y[-1])} <= set(zip(kept_x, kept_y)) <= set(zip(x, y))
    pixel = 1 / 360  # of an axis of 5 inches at 72 points
    for at in np.linspace(0.01, 0.99, 200):  # where the curve goes, so does what is left of it
        near = np.abs(kept_x - at) < pixel
        there = np.abs(x - at) < pixel / 4
        assert near.any() and kept_y[near].min() <= y[there].max() + 1e-9 and kept_y[near].max() >= y[there].min() - 1e-9


def test_thinned_out_steps_are_those_of_the_records(tmp_path, monkeypatch):
    """The ROC of 12,000 pairs as it is drawn, against all of its points."""
    found, lines = many(12_000), {}
    thin = svg._thin_out
    monkeypatch.setattr(svg, "_thin_out", lambda line: (thin(line), lines.setdefault("a", line.get_data())))
    plots.plot_certified_accuracy({"a": found}, tmp_path / "a.svg")
    eps, share = lines["a"]  # of the first panel
    radii = found.images["radius_u"]
    assert len(eps) < 5000 < len(radii)
    for value, percent in list(zip(eps, share))[::50]:
        assert percent == pytest.approx(100 * (radii > value).mean())
    assert len(roc(found.pairs["cosine"], found.pairs["same"])[0]) > 5000


def test_svg_is_written_by_ending(tmp_path):
    paths = plots.write_plots(many(40), tmp_path, kind="svg")
    assert len(paths) == 5 and all(path.read_text().rstrip().endswith("</svg>") for path in paths)
    once = paths[0].read_bytes()
    assert plots.write_plots(many(40), tmp_path, kind="svg")[0].read_bytes() == once


def test_the_glossary_is_that_of_the_readme():
    text = (ROOT / "README.md").read_text()
    words = dict(page.glossary())
    assert len(words) >= 10 and {"radius", "TAR, FAR", "CRA", "ERA"} <= set(words)
    assert all(f"| {word} | {meaning} |" in text for word, meaning in words.items())
