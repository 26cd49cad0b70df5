"""The page of results of smooth: what holds with a confidence is said with it, and never taken for what is proven."""
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from many_pairs import many
from scipy.stats import binomtest
from small_world import command, summary_of, world  # noqa: F401
from test_page import Reader, read, report

import eval.__main__ as command_line
from eval.records import Records
from eval.show import confidence, page, plots, smoothing
from eval.store.results import read_records, write_records

QUICK = ("--sigma", "0.3", "--n0", "20", "--n", "60", "--eps", "0.06")
AUDIT = ("audit", "--steps", "2", "--draws", "2", "--restarts", "1", "--limit", "3")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders: proven (certified), one (smoothed, attacked, audited), joint (both images smoothed, audited), few (smoothed alone)."""
    folder = world.__wrapped__(tmp_path_factory.mktemp("smoothed"))
    assert command(folder, "certify", "--eps", "0.06", out="r/proven") == 0
    assert command(folder, "smooth", *QUICK, backbone="loose", out="r/one") == 0
    attack = ("attack", "--attack", "pgd", "--steps", "2", "--draws", "3", "--limit", "4", "--eps", "0.06", "0.6", "--eps-u", "0.3")
    assert command(folder, *attack, backbone="loose", out="r/one", tau=None) == 0 and command(folder, *AUDIT, backbone="loose", out="r/one", tau=None) == 0
    assert command(folder, "smooth", *QUICK, "--threat", "joint", backbone="loose", out="r/joint") == 0
    assert command(folder, *AUDIT, backbone="loose", out="r/joint", tau=None) == 0
    assert command(folder, "smooth", "--sigma", "0.3", "--n0", "20", "--n", "60", "--alpha", "1e-12", "--limit", "4", backbone="loose", out="r/few") == 0
    return folder / "r"


def shown(made, tmp_path, *names):
    assert report(*(made / name for name in names), "--out", tmp_path / "page.html") == 0
    found = read(tmp_path / "page.html")
    return found, " ".join(" ".join(found.words).split())


def rows_of(found, start):
    """The rows of the tables whose caption begins so, as dicts."""
    return [dict(zip(rows[0], row)) for caption, rows in found.tables.items() if caption.startswith(start) for row in rows[1:]]


def test_a_smoothed_result_alone_says_confidence_and_noise(made, tmp_path):
    found, words = shown(made, tmp_path, "one")
    pairs, summary, audit = pd.read_csv(made / "one/pairs.csv"), summary_of(made / "one"), json.loads((made / "one/audit.json").read_text())
    share = np.floor(1000 * (pairs.radius[pairs.same] > 0.06).mean()) / 10
    assert f"{share:g} % of true pairs stay accepted under any attack on one image up to 0.06, with a confidence of 99.9 % for each (randomised smoothing, noise of sigma 0.3);" in words
    assert f"{100 * summary['smoothing']['abstained']:.3g} % of all decisions abstain, which counts as wrong." in words
    assert "PGD through the noise (3 draws a step) left" in words and "Not proven: this is the verifier that takes the majority over 60 noisy copies" in words
    assert f"An audit attacked {sum(audit['attacked'].values())} certified decisions through the noise" in words and "no more than their confidence allows" in words
    assert "which is proven" not in words and "would be a proof that is wrong" not in words and "The band" not in words and "below the diagonal" not in words
    captions = " ".join(found.tables)
    assert not rows_of(found, "Certified CRA") and "Audits Attacks" not in captions and "Under PGD What" not in captions
    row, = rows_of(found, "Certified with confidence")
    settings = summary["smoothing"]
    assert (row["sigma"], row["confidence"], row["alpha"], row["n0"], row["n"], row["passes a decision"]) == ("0.3", "99.9 %", "0.001", "20", "60", "80")
    assert row["abstained [%]"] == f"{100 * settings['abstained']:.2f}" and row["What may move"] == "one image moves"
    assert row["CRA_D 0.06 [%]"] == f"{100 * summary['cra_d'][0.06]:.2f}" and row["med U [l2]"] == f"{summary['med_u']:.3f}"
    mean, = rows_of(found, "Further certificates")
    of = summary["certificates"]["mean"]
    assert mean["What may move"] == "one image moves; mean of the cosines" and "99.9 % confidence" in mean["Radii"]
    assert (mean["TAR [%]"], mean["tau"]) == (f"{100 * of['tar']:.2f}", f"{of['tau']:.3f}") and mean["CRA_U 1.5 [%]"] == f"{100 * of['cra_u'][1.5]:.2f}"
    era, = rows_of(found, "Under PGD, through the noise")
    assert era["draws a step"] == "3" and era["PGD ERA_D 0.06 [%]"] == f"{100 * summary['era_d']['pgd'][0.06]:.2f}" and era["Limit"] == "4"
    audited, = rows_of(found, "Audits through the noise")
    assert (audited["sampled"], audited["fell"], audited["alpha"], audited["draws a step"]) == (str(sum(audit["sampled"].values())), str(audit["n_fallen"]), "0.001", "2")
    assert audited["expected at most"] == f"{2 * 0.001 * sum(audit['sampled'].values()):.3g}" and audited["attacked, D"] == str(audit["attacked"]["d"])
    run = dict(next(rows[1:] for caption, rows in found.tables.items() if caption.startswith("Settings")))
    assert run["Lipschitz constant L"] == "not used: decisions are smoothed by noise" and "sigma 0.3 on the image that is presented; 20 draws that select and 60" in run["noise"]
    assert rows_of(found, "Attacks")[0]["draws"] == "3"
    assert {word for word, _ in confidence.GLOSSARY} <= {text for text, tag in zip(found.words, found.open_at) if tag == "dt"}
    figures = [attributes["aria-label"] for tag, attributes in found.tags if tag == "svg"]
    assert [label.split(",")[0] for label in figures] == ["Certified accuracy", "Accuracy under attack", "ROC", "Certified radii", "Feature norms"]
    assert all(page.FIGURES[kind][1] not in words for kind in confidence.CAPTIONS), "captions are not those of proofs"


def test_where_both_images_are_smoothed_there_is_nothing_of_u(made, tmp_path):
    found, words = shown(made, tmp_path, "joint")
    assert "under any attack on both images together up to 0.06, with a confidence of 99.9 %" in words and "Not there: cra_u (both images" in words
    row, = rows_of(found, "Certified with confidence")
    assert row["passes a decision"] == "160" and row["What may move"] == "both images move, eps for the two together"
    assert not [title for title in row if title.startswith(("CRA_U", "med U"))] and "CRA_D 0.06 [%]" in row
    assert [row["What may move"] for row in rows_of(found, "Further")] == ["both images move, eps for the two together; mean of the cosines"]
    audited, = rows_of(found, "Audits through the noise")
    assert audited["attacked, U"] == "-" and audited["attacked, D"] != "-"
    assert "sigma 0.3 on both images" in words


def test_proven_and_smoothed_results_stand_side_by_side(made, tmp_path):
    found, words = shown(made, tmp_path, "proven", "one", "joint", "few")
    assert [row["Model"] for row in rows_of(found, "Certified CRA and medians; proven")] == ["proven"]
    smoothed = {row["Model"]: row for row in rows_of(found, "Certified with confidence")}
    assert set(smoothed) == {"one", "joint", "few"} and smoothed["few"]["confidence"] == "99.9999999999 %"
    assert {row["Model"]: row["Radii"].partition(",")[0] for row in rows_of(found, "Without an attack")} == {
        "proven": "plain", "one": "smoothing", "joint": "smoothing of both images", "few": "smoothing"}
    further = [(row["Model"], row["Radii"] == "plain", row["TAR [%]"] == "-") for row in rows_of(found, "Further certificates")]
    assert further == [("proven", True, True)] * 2 + [(name, False, False) for name in ("one", "joint", "few")]
    figures = [attributes["aria-label"].split(".")[0] for tag, attributes in found.tags if tag == "svg"]
    assert figures[:3] == ["Proven, and with confidence, all results", "Certified accuracy, what is proven", "Feature norms, all results"]
    assert not [label for label in figures[3:] if label.startswith(("Certified accuracy", "Feature norms"))]
    assert "not of the same pairs of faces: proven of 12, one of 12, joint of 12, few of 8" in words
    assert re.search(r"ROC, proven ?\..*?The band", words) and words.count("The band reaches") == 1, "the band is of the proof alone"
    noise = next(row for caption, rows in found.tables.items() if caption.startswith("Settings") for row in rows if row[0] == "noise")
    assert noise[1] == "none" and all(cell.startswith("sigma 0.3 on") for cell in noise[2:]) and "the first 4 pairs of each kind" in noise[4]


def test_a_page_of_proofs_says_nothing_of_noise(made, tmp_path):
    _, words = shown(made, tmp_path, "proven")
    assert not re.search("nois|confidence|smooth|abstain", words.lower())


def test_certified_accuracy_is_of_what_may_be_compared(made, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "plot_certified_accuracy", lambda results, *_: drawn.update(accuracy=set(results)))
    monkeypatch.setattr(smoothing, "plot_smoothing", lambda results, *_: drawn.update(smoothing={name for name, _ in results}))
    results = {name: read_records(made / name, smoothed=True) for name in ("proven", "one", "joint")}
    for some in (results, {name: results[name] for name in ("one", "joint")}):
        drawn.clear()
        plots.write_comparison(some, tmp_path)
        smoothing.write_comparison([*some.items()], tmp_path)
        assert drawn == {**({"accuracy": {"proven"}} if "proven" in some else {}), "smoothing": set(some)}


def test_decisions_are_those_of_the_votes(made):
    kinds = set()
    for name in ("one", "joint", "few"):
        found = read_records(made / name, smoothed=True)
        of = found.summary["smoothing"]
        pairs = found.pairs
        columns = [column for column in pairs if column.startswith("votes")]
        for row, votes, cosine in ((-1, of["n"] // 2, 0.), (-2, 0, -0.5), (-3, of["n"], 0.5)):  # so that there is one of each kind
            pairs.loc[pairs.index[row], columns] = votes
            pairs.loc[pairs.index[row], [column.replace("votes", "cosine") for column in columns]] = cosine
            pairs.loc[pairs.index[row], "radius"] = 0.1 * (votes == of["n"] * pairs["same"].iloc[row])
        pairs["accepted"] = (pairs["radius"] > 0) == pairs["same"]
        for row, said in zip(pairs.itertuples(), confidence.decisions(found)):
            sides = []
            for column in columns:
                votes, accepts = getattr(row, column), getattr(row, column.replace("votes", "cosine")) > found.summary["tau"]
                low = binomtest(int(votes if accepts else of["n"] - votes), of["n"], alternative="greater").proportion_ci(1 - of["alpha"], "exact").low
                sides.append(("accepted" if accepts else "rejected") if low > 0.5 else "abstains")
            right, wrong = ("accepted", "rejected") if row.same else ("rejected", "accepted")
            assert said == (wrong if wrong in sides else "abstains" if "abstains" in sides else right)
            kinds.add(said)
    assert kinds == {"accepted", "rejected", "abstains"}


# --- what is not what it says

@pytest.fixture
def copied(made, tmp_path):
    for name in ("proven", "one", "joint"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("breaks, words", [
    (lambda folder: change(folder / "one/summary.json", certificate="proven"), "certificate is proven, expected smoothing, sigma 0.3"),
    (lambda folder: change(folder / "one/summary.json", certificate=None), "certificate is None"),
    (lambda folder: change(folder / "one/summary.json", smoothing={**json.loads((folder / "one/summary.json").read_text())["smoothing"], "n": 3}), "n0 is 20 and n is 3"),
    (lambda folder: change(folder / "proven/summary.json", certificate="smoothing"), "expected None"),
    (lambda folder: change(folder / "one/summary.json", cra_d=[{"eps": None, "value": 0.5}]), "cra_d is"),
    (lambda folder: change(folder / "one/audit.json", n_fallen=-1), "n_fallen is -1"),
    (lambda folder: change(folder / "one/audit.json", chance=2.0), "chance is 2.0"),
    (lambda folder: change(folder / "one/audit.json", share={"u": 3}), "share is"),
    (lambda folder: change(folder / "one/audit.json", smoothing={"sigma": 0.3}), "smoothing is {'sigma'"),
    (lambda folder: change(folder / "one/audit.json", smoothing={**json.loads((folder / "one/audit.json").read_text())["smoothing"], "sigma": 9.0}), "expected that of these results"),
    (lambda folder: (folder / "proven/audit.json").write_text((folder / "one/audit.json").read_text()), "audit.json"),
    (lambda folder: pd.read_csv(folder / "one/pairs.csv").drop(columns="cosine_left").to_csv(folder / "one/pairs.csv", index=False), "cosine_left"),
    (lambda folder: pd.read_csv(folder / "one/pairs.csv").assign(cosine_left="x").to_csv(folder / "one/pairs.csv", index=False), "cosine_left")])
def test_files_that_lie_are_refused(copied, capsys, breaks, words):
    breaks(copied)
    assert report(copied, "--out", copied / "page.html") == 2 and not (copied / "page.html").exists()
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_attacks_where_there_can_be_none(copied):
    """Of a folder that somebody put together: it is drawn without the lines that there are not."""
    for name in ("attacks", "era_d", "era_u", "era_i", "cra_attacked_d"):
        change(copied / "joint/summary.json", **{name: json.loads((copied / "one/summary.json").read_text())[name]})
    shutil.copy(copied / "one/attacks.csv", copied / "joint/attacks.csv")
    assert report(copied / "joint", "--out", copied / "page.html") == 0


def test_hostile_words_of_an_audit_are_text(copied):
    bad = "<img src=x onerror=alert(2)>"
    settings = json.loads((copied / "one/audit.json").read_text())["settings"]
    change(copied / "one/audit.json", settings={**settings, "attack": bad, "threat": bad})
    assert report(copied / "one", "--out", copied / "page.html") == 0
    assert bad in " ".join(Reader((copied / "page.html").read_text()).words)


def test_adversarial_examples_are_not_drawn_of_smoothed_decisions(copied, capsys):
    given = ["--bin", "faces.bin", "--backbone", "loose", "--weights", "loose.pt"]
    assert command_line.main(["plot", str(copied / "one"), *given]) == 2 and "randomised smoothing" in capsys.readouterr().err
    (copied / "one/adversarial_examples.png").write_bytes(b"whatever")
    assert report(copied / "one", "--out", copied / "page.html") == 0 and "adversarial" not in (copied / "page.html").read_text().lower()


@pytest.mark.parametrize("eps, size, said", [
    (0.25, [3, 112, 112], "A change of 0.25 is as much as changing one value of one pixel by 63.7 of 255 levels, or all 37,632 values by 0.32 levels."),
    (0.3, [3, 112, 112], "by 76.5 of 255 levels"), (3.0, [3, 16, 16], "changing 9 values of its pixels from 0 to 255, or all 768 values by 27.60 levels"),
    (1e300, [3, 112, 112], ""), (1e10, [2**62, 2**62, 2**62], "as much as"), (5e-324, [3, 112, 112], "as much as"), (0.25, [0, 112, 112], "")])
def test_sizes_that_no_image_can_have_are_not_described(eps, size, said):
    found = many(40)
    told = page._told(page.Result(None, "a", Records(found.pairs, found.images, {**found.summary, "image_size": size, "cra_d": {eps: 0.5}, "cra_i": {eps: 0.5}}), {}))
    assert said in told["size"] and bool(said) == bool(told["size"])


def test_a_summary_of_smoothing_is_read_as_it_was_written(made, tmp_path):
    found = read_records(made / "few", smoothed=True)
    write_records(tmp_path, found)
    assert (tmp_path / "summary.json").read_bytes() == (made / "few/summary.json").read_bytes()
