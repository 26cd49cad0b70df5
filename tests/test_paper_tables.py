"""`eval table` for papers: figures by name, seeds as one row, the best in bold, LaTeX, names, and the README's own table."""
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from small_world import command, faces, summary_of, world  # noqa: F401
from test_tables import PGD, summary

import eval.__main__ as command_line
from eval.show import cells, figures, names, printed, published, tables
from eval.store import results, schema
from utils import InputError
from utils.images import encode_image

README, RESULTS_PAGE = ROOT / "README.md", ROOT / "docs/results.md"


def table(capsys, *arguments):
    """What `eval table` prints."""
    capsys.readouterr()
    assert command_line.main(["table", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def frame(capsys, *arguments):
    return pd.read_csv(io.StringIO(table(capsys, *arguments, "--format", "csv")))


def refused(capsys, *arguments):
    """The line that `eval table` ends with."""
    capsys.readouterr()
    assert command_line.main(["table", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def write(folder, **more):
    """A results folder with a summary alone."""
    folder.mkdir(parents=True, exist_ok=True)
    schema.write_summary(folder / "summary.json", summary(**more))
    return folder


# --- the README

def expanded(word):
    """A word with {a,b} as the shell expands it."""
    found = re.fullmatch(r"(.*?)\{(.*?)\}(.*)", word)
    return [end for part in found[2].split(",") for end in expanded(found[1] + part + found[3])] if found else [word]


def test_the_ablation_of_the_readme_is_what_the_command_makes_of_the_committed_results(capsys, monkeypatch):
    page = RESULTS_PAGE.read_text().replace("\\\n", " ")
    (line,) = [line for line in page.splitlines() if line.startswith("python -m eval table logs/ablation/")]
    words = [word for part in shlex.split(line.partition("-m eval table ")[2]) for word in expanded(part)]
    monkeypatch.chdir(ROOT)
    made = table(capsys, *words)
    assert made.count("\n") == 10 and made in README.read_text()
    assert re.findall(r"^\| [^|]+ \| 16\.4 \[13\.8, 19\.0\] \|", made, re.MULTILINE), "seeds have their range"


def test_the_row_of_the_demo_in_the_readme_is_printed_as_certify_prints_it():
    block = re.search(r"```text\n(Dataset .*?)```", README.read_text(), re.DOTALL)[1]
    name, protocol, far, *numbers = block.splitlines()[1].split()
    tar, tau, *certified, norm = (float(number.rstrip("%")) for number in numbers)
    found = {"bin": name, "protocol": protocol, "far_target": float(far), "tar": tar / 100, "tau": tau, "feature_norm": norm}
    for kind, (one, other), (low, high, median) in zip("udi", ((1.5, 3.0), (0.25, 0.75), (0.25, 0.75)), zip(*[iter(certified)] * 3)):
        found |= {f"cra_{kind}": {one: low / 100, other: high / 100}, f"med_{kind}": median}
    assert tables.render(tables.table1([found])) + "\n" == block


# --- figures by their names

def test_figures_by_name_are_those_of_the_summary(world, capsys):
    assert command(world, "certify", "--sound", "--p", "inf", "--eps-p", "1", "--certified-far", "0.01", "--eps", "0.05", "0.1", tau=None) == 0
    assert command(world, "attack", "--attack", "pgd", "--steps", "2", "--limit", "4", "--eps", "0.05", "0.1", tau=None) == 0
    found = summary_of(world / "out")
    figures_by_name = {
        "tar": ("TAR", 100 * found["tar"]), "auc": ("AUC", 100 * found["auc"]), "accuracy": ("10-fold accuracy", 100 * found["accuracy"]),
        "eer": ("EER", 100 * found["eer"]), "tau": ("tau", found["tau"]), "feature_norm": ("norm", found["feature_norm"]),
        "cra_d@0.05": ("CRA_D 0.05", 100 * found["cra_d"][0.05]),
        "cra_d:both@0.05": ("CRA_D both 0.05", 100 * found["certificates"]["both"]["cra_d"][0.05]),
        "med_i:joint": ("med I joint", found["certificates"]["joint"]["med_i"]),
        "cra_i:p=inf@1": ("CRA_I l_inf 1.0/255", 100 * found["lp"][0]["cra_i"][0]["value"]),
        "cra_u_sound@1.5": ("sound CRA_U 1.5", 100 * found["cra_u_sound"][1.5]), "med_u_sound": ("sound med U", found["med_u_sound"]),
        "certified_far:tar@0.01": ("certified TAR 0.01", 100 * found["certified_far"][0.01]["tar"]),
        "certified_far:tau@0.01": ("certified tau 0.01", found["certified_far"][0.01]["tau"]),
        "era_d:pgd@0.1": ("PGD ERA_D 0.1", 100 * found["era_d"]["pgd"][0.1]),
        "cra_attacked_d:pgd@0.1": ("CRA_D of the rows of PGD 0.1", 100 * found["cra_attacked_d"]["pgd"][0.1]), "limit:pgd": ("Limit", 4)}
    made = frame(capsys, world / "out", "--columns", "name", *figures_by_name)
    assert list(made) == ["Model", "Limit", *(title for title, _ in figures_by_name.values() if title != "Limit")]
    for title, value in figures_by_name.values():
        assert made.loc[0, title] == pytest.approx(math.nan if value is None else value, nan_ok=True), title
    assert {f"CRA_D {eps}" for eps in (0.05, 0.1)} == set(frame(capsys, world / "out", "--columns", "name", "cra_d")) - {"Model"}
    text = table(capsys, world / "out", "--columns", "tar", "med_u", "cra_d@0.05")
    assert f"{100 * found['tar']:.2f}%" in text and "med U [l2]" in text and "Dataset" in text and "Radii" not in text
    assert "| TAR [%] | med U [l2] | CRA_D 0.05 [%] |" in table(capsys, world / "out", "--columns", "tar", "med_u", "cra_d@0.05", "--format",
                                                                 "markdown")


def test_every_name_of_the_help_and_of_the_errors_can_be_asked_for():
    for text in figures.names():
        name = re.sub(r"\[[:@].*", "", text).replace("K", "d").replace("p=P", "p=2")
        assert str(figures.asked(name)) == name
    for text, key, of, eps in (("era_u:some.module:Attack@0.5", "era_u", "some.module:Attack", 0.5), ("cra_d@0.25", "cra_d", "", 0.25)):
        assert figures.asked(text) == (key, of, eps)


@pytest.mark.parametrize("columns, words", [
    (["tarr"], "--columns tarr: not a figure or label, expected name, xi"), (["tar@0.25"], "tar has no budget"), (["cra_d@x"], "could not"),
    (["tar:pgd"], "nothing that stands behind a colon"), (["cra_d@0.3"], "none of these results has it; cra_d is at 0.25"), ([""], "not a figure"),
    (["cra_d:both"], "docs/columns.md says"), (["era_d:nobody"], "none of these"), (["cra_d:p=x@1"], "could not"), (["seeds"], "--group"),
    (["certified_far"], "not a figure"), (["cra_x"], "not a figure"), (["med_d:p=inf"], "none of these")])
def test_what_cannot_be_a_column_is_said_in_one_line(tmp_path, capsys, columns, words):
    assert words in refused(capsys, write(tmp_path / "a"), "--columns", *columns)


def test_options_that_contradict_each_other(tmp_path, capsys):
    folder = write(tmp_path / "a")
    assert "--paper" in refused(capsys, folder, "--columns", "tar", "--with-paper")
    assert "not a published row, expected xi0, xi1" in refused(capsys, folder, "--paper", "xi2")
    assert "--format markdown or latex" in refused(capsys, folder, "--bold")
    with pytest.raises(SystemExit):
        command_line.main(["table", str(folder), "--columns", "tar", "--which", "2"])
    assert "not allowed with" in capsys.readouterr().err


def test_rows_that_a_hidden_label_keeps_apart_are_refused(tmp_path, capsys):
    folders = [write(tmp_path / "a" / protocol, protocol=protocol, name="one") for protocol in ("strict", "paper")]
    error = refused(capsys, *folders, "--columns", "name", "tar")
    assert "one has Protocol strict and one paper: add protocol" in error
    assert len(frame(capsys, *folders, "--columns", "name", "protocol", "tar")) == 2
    assert list(frame(capsys, *folders, "--columns", "tar")) == ["Model", "Dataset", "Protocol", "FAR", "TAR"]
    one, other = (write(tmp_path / str(limit), attacks={"pgd": {**PGD, "limit": limit}}) for limit in (5, 9))
    assert "limit 5 and 9" in refused(capsys, one, other, "--columns", "name", "era_d:pgd")
    assert frame(capsys, one, other, "--columns", "name", "limit:pgd", "era_d:pgd")["Limit"].tolist() == [5, 9]
    assert frame(capsys, one, other, "--which", "2")["Limit"].tolist() == frame(capsys, one, other, "--columns", "era_d")["Limit"].tolist() == [5, 9]


def test_published_rows_are_added_by_name(tmp_path, capsys):
    made = frame(capsys, write(tmp_path / "a"), "--columns", "tar", "cra_d@0.25", "--paper", "xi3", "ArcFace", "cfp_fp").set_index("Model")
    assert made.loc["published, xi = 3", ["TAR", "CRA_D 0.25"]].tolist() == pytest.approx([83.97, 66.82])
    assert made.loc["published, ArcFace", "TAR"] == 99.75 and np.isnan(made.loc["published, ArcFace", "CRA_D 0.25"])
    assert made.loc["published", "Dataset"] == "cfp_fp"


# --- seeds

def test_seeds_are_one_row_with_mean_and_range(tmp_path, capsys):
    tars = {"run_0": 0.5, "run_1": 0.25, "run_2": 0.75, "other": 0.125}
    for name, tar in tars.items():
        write(tmp_path / name, tar=tar, backbone="net", feature_norm=-1.0)
    made = frame(capsys, tmp_path, "--group", "--columns", "name", "seeds", "tar")
    assert made.set_index("Model").loc["run"].to_dict() == {"Seeds": 3, "TAR": 50, "TAR min": 25, "TAR max": 75}
    assert made.set_index("Model").loc["other"].to_dict() == {"Seeds": 1, "TAR": 12.5, "TAR min": 12.5, "TAR max": 12.5}
    text = table(capsys, tmp_path, "--group", "--columns", "tar", "feature_norm", "--digits", "1")
    assert "50.0% [25.0, 75.0]" in text and "-1.00\n" in text and "Seeds" in text
    latex = table(capsys, tmp_path, "--group", "--columns", "name", "tar", "feature_norm", "--format", "latex")
    assert r"run & \textbf{50.00 [25.00, 75.00]} & $-$1.000 \\" in latex and r"other & 12.50 & $-$1.000 \\" in latex
    capsys.readouterr()
    assert command_line.main(["table", str(tmp_path), "--group"]) == 0
    assert capsys.readouterr().err == "warning: --group: run_0, run_1, run_2 are taken for seeds of run; --names tells them apart\n"
    assert len(frame(capsys, tmp_path)) == 4


@pytest.mark.parametrize("given, expected", [
    (["a_0", "a_1"], ["a", "a"]), (["a_seed7", "a_seed42"], ["a", "a"]), (["a-s1", "a-s9"], ["a", "a"]), (["a_3", "a_4"], ["a", "a"]),
    (["xi_1", "xi_2"], ["xi_1", "xi_2"]), (["size_12", "size_32"], ["size_12", "size_32"]), (["a_0", "b_1"], ["a_0", "b_1"]),
    (["a_0", "a"], ["a_0", "a"]), (["resnet18", "resnet19"], ["resnet18", "resnet19"]), (["a_1", "a_01"], ["a_1", "a_01"])])
def test_which_names_are_of_seeds(given, expected):
    assert names.names_of_groups([(Path(name), summary()) for name in given]) == expected


def test_seeds_of_other_settings_networks_and_constants_are_not_one_row():
    def grouped(*more):
        return names.names_of_groups([(Path(f"a_{number}"), summary(**one)) for number, one in enumerate(more)])
    assert grouped({"flip": "none"}, {"flip": "average"}) == grouped({"backbone": "x"}, {"backbone": "y"}) == ["a_0", "a_1"]
    assert grouped({"lipschitz": 1.0}, {"lipschitz": 0.9}) == ["a_0", "a_1"] and grouped({"lipschitz": 0.8}, {"lipschitz": 0.9}) == ["a", "a"]
    with pytest.raises(InputError, match="a_0 is of x and a_1 of y, and both are called n"):
        grouped({"backbone": "x", "name": "n"}, {"backbone": "y", "name": "n"})
    with pytest.raises(InputError, match="a_0 and a_1 are both of n, seed 3"):
        grouped({"seed": 3, "name": "n"}, {"seed": 3, "name": "n"})
    with pytest.raises(InputError, match="count twice"):
        names.names_of_groups([(Path("a"), summary())] * 2)


def test_folders_that_are_only_called_alike_are_no_seeds(tmp_path, capsys):
    folders = [write(tmp_path / part / "strict", backbone="net") for part in ("xi1", "xi3")]
    assert frame(capsys, *folders, "--group", "--columns", "tar")["Model"].tolist() == ["xi1/strict", "xi3/strict"]
    assert frame(capsys, *folders, "--group", "--columns", "tar", "--names", "x", "x")["Seeds"].tolist() == [2]


def test_a_figure_that_a_seed_lacks_has_no_mean(tmp_path, capsys):
    write(tmp_path / "a_0", auc=0.5)
    write(tmp_path / "a_1")
    assert "| 50.00, - |" in table(capsys, tmp_path, "--group", "--columns", "name", "auc", "--format", "markdown")
    assert frame(capsys, tmp_path, "--group", "--columns", "name", "auc").loc[0, "AUC":].isna().all()
    assert r"& 50.00, -- \\" in table(capsys, tmp_path, "--group", "--columns", "name", "auc", "--format", "latex")


# --- the best

def test_the_best_of_each_setting_stands_out():
    random = np.random.default_rng(0)
    columns = [cells.Column("Model", digits=None), cells.Column("Dataset", digits=None), cells.Column("up", None, 0, better=1),
               cells.Column("down", None, 0, better=-1), cells.Column("norm", None, 0)]
    for _ in range(50):
        rows = [[f"{number}", "ab"[random.integers(2)], *(None if random.random() < 0.2 else float(random.integers(4)) for _ in range(3))]
                for number in range(6)]
        expected = set()
        for dataset in "ab":
            for place, pick in ((2, max), (3, min)):
                known = [row[place] for row in rows if row[1] == dataset and row[place] is not None]
                if len(set(known)) > 1:
                    expected |= {(number, place) for number, row in enumerate(rows) if row[1] == dataset and row[place] == pick(known)}
        assert printed.best(tables.Table(columns, rows)) == expected
    tied = tables.Table(columns[:3], [["x", "a", 1.4], ["y", "a", 1.1], ["z", "a", 0.4]])
    assert printed.best(tied) == {(0, 2), (1, 2)}, "as printed"


def test_directions_are_those_of_the_figures(tmp_path, capsys):
    shared = {"eer": 0.1, "auc": 0.9, "far": 0.01, "accuracy_std": 0.1}
    folders = [write(tmp_path / "a", **shared), write(tmp_path / "b", tar=0.75, eer=0.2, auc=0.8, far=0.02, feature_norm=9.0, tau=0.1,
                                                      accuracy_std=0.2, cra_d={0.25: 0.25}, med_u=9.0)]
    keys = ("name", "tar", "eer", "auc", "far", "feature_norm", "tau", "accuracy_std", "cra_d", "med_u", "never_d", "cra_u")
    lines = table(capsys, *folders, "--columns", *keys[:-2], "--format", "markdown", "--bold").splitlines()
    bold = [["**" in cell for cell in re.split(r"(?<!\\)\|", line)[2:-1]] for line in lines[2:]]
    assert bold == [[False, True, True, False, False, False, False, True, False], [True, False, False, False, False, False, False, False, True]]
    assert "**" not in table(capsys, *folders, "--columns", *keys[:-2], "--format", "markdown")
    assert r"\textbf{75.00}" in table(capsys, *folders, "--columns", "tar", "--format", "latex")
    assert "textbf" not in table(capsys, *folders, "--columns", "tar", "--format", "latex", "--no-bold")
    assert "textbf" not in table(capsys, folders[1], "--paper", "xi3", "--columns", "tar", "--format", "latex"), "other pairs"


# --- LaTeX

HOSTILE = r"[x] & 5% $\pi$ #1_a^2 {b} ~ \input{/etc/passwd} <i>*|"


def unescaped(cell):
    """The text that LaTeX sets for a cell: the reverse of escaping, written from LaTeX's list of special characters."""
    words = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<", r"\textgreater{}": ">",
             r"\textbar{}": "|", "{[}": "[", "{*}": "*", **{f"\\{sign}": sign for sign in "&%$#_{}"}}
    return re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], cell)


def test_latex_sets_hostile_names_as_they_are(tmp_path, capsys):
    folders = [write(tmp_path / str(number), name=name, bin=f"b{number}") for number, name in enumerate((HOSTILE, "*", r"\\[9cm]", "plain"))]
    latex = table(capsys, *folders, "--format", "latex")
    lines = latex.splitlines()
    assert lines[0] == r"% \usepackage{booktabs}" and lines[2:5:2] == [r"\toprule", r"\midrule"] and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [re.split(r" (?<!\\)& ", line.removesuffix(r" \\")) for line in lines[5:-2]]
    assert [unescaped(row[0]) for row in rows] == [HOSTILE, "*", r"\\[9cm]", "plain"]
    assert {len(row) for row in rows} == {len(re.split(r" (?<!\\)& ", lines[3]))} == {len(re.search(r"\{([lr]+)\}", lines[1])[1])}
    assert not any(re.match(r"[\[*]", line) for line in lines[5:-2]), "these would be taken for arguments of the end of the row before"
    plain = re.sub(r"\\[&%$#_{}]", "", latex)
    assert plain.count("{") == plain.count("}") and r"CRA\textsubscript{U} 1.5 [\%]" in latex and r"med U [$\ell_2$]" in latex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not here")
def test_latex_compiles(tmp_path, capsys):
    made = table(capsys, write(tmp_path / "a", name=HOSTILE), write(tmp_path / "b"), "--format", "latex")
    (tmp_path / "t.tex").write_text("\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + made + "\\end{document}\n")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True, timeout=60)


# --- names

def test_names_come_from_results_and_folders(tmp_path, capsys):
    many = [write(tmp_path / "many" / f"net{number}") for number in range(10)]
    assert frame(capsys, tmp_path / "many")["Model"].tolist() == [folder.name for folder in many]
    for model in ("one", "two"):
        for name in ("lfw", "cfp"):
            write(tmp_path / "bins" / model / name, bin=name, bin_sha256=name.ljust(64, "0"))
    made = frame(capsys, tmp_path / "bins/one", tmp_path / "bins/two/lfw")
    assert made[["Model", "Dataset"]].to_numpy().tolist() == [["one", "cfp"], ["one", "lfw"], ["two", "lfw"]]
    twins = [write(tmp_path / "twins" / part / "run") for part in "ab"]
    assert frame(capsys, *twins)["Model"].tolist() == ["a/run", "b/run"]
    seeds = [write(tmp_path / "seeds" / f"{seed}", name="SLL", seed=seed) for seed in (0, 1)]
    assert frame(capsys, *seeds)["Model"].tolist() == ["SLL, seed 0", "SLL, seed 1"]
    same = [write(tmp_path / "same" / part, name="SLL") for part in "ab"]
    assert frame(capsys, *same)["Model"].tolist() == ["SLL (a)", "SLL (b)"]
    assert frame(capsys, *same, "--names", "x", "y")["Model"].tolist() == ["x", "y"]
    assert frame(capsys, same[0] / "summary.json", tmp_path / "seeds", "--names", "x", "y")["Model"].tolist() == ["x", "y, seed 0", "y, seed 1"]


def test_names_of_lines_and_files_are_all_different():
    paths = [Path(f"/m/{model}/{name}") for model in "ab" for name in ("lfw", "cfp")]
    found = [(path, summary(bin=path.name)) for path in paths]
    assert names.names_of(found) == ["a", "a", "b", "b"]
    assert names.names_of(found, alone=True) == ["a/lfw", "a/cfp", "b/lfw", "b/cfp"]
    assert names.prefixes_of(paths) == ["a_lfw_", "a_cfp_", "b_lfw_", "b_cfp_"] and names.prefixes_of(paths[:2]) == ["lfw_", "cfp_"]


@pytest.mark.parametrize("more, words", [
    ({"name": "a\x1b[31m"}, "name is"), ({"name": 3}, "name is"), ({"seed": "x"}, "seed is"), ({"lp": [{"p": "x"}]}, "lp is"),
    ({"lp": [{"p": 2.0, "cra_d": {1.0: "x"}}]}, "lp is"), ({"certified_far": {0.25: {"tar": "x"}}}, "certified_far is"), ({"lp": 3}, "lp is")])
def test_names_and_further_figures_of_a_summary_are_checked(tmp_path, capsys, more, words):
    assert words in refused(capsys, write(tmp_path / "a", **more), "--columns", "tar")


# --- what is not of pairs, and what holds in floating point

def test_folders_of_identify_are_left_out_with_a_remark(world, capsys):
    for number, image in enumerate(faces(16)):
        path = world / "people" / str(number // 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(image, "png"))
    assert command_line.main(["identify", "--rec", str(world / "people"), "--backbone", "tiny", "--weights", str(world / "tiny.pt"), "--out",
                              str(world / "all/who"), "--device", "cpu", "--num-workers", "0", "--tau", "0.3"]) == 0
    assert command(world, "certify", out="all/pairs") == 0
    for given in ([world / "all"], [world / "all/pairs", world / "all/who"]):
        capsys.readouterr()
        assert command_line.main(["table", *map(str, given), "--format", "csv"]) == 0
        out, err = capsys.readouterr()
        assert pd.read_csv(io.StringIO(out))["Model"].tolist() == ["pairs"]
        assert "who: left out, being results of identify" in err and err.count("\n") == 1
    assert "results of identify, expected those of pairs" in refused(capsys, world / "all/who")


def test_sound_figures_are_shown_and_named_so(world, capsys):
    assert command(world, "certify", out="plain") == 0
    capsys.readouterr()
    assert command(world, "certify", "--sound") == 0
    out, found, other = capsys.readouterr().out, summary_of(world / "out"), summary_of(world / "plain")
    exact, sound = out.split("\n\n")
    assert exact.startswith("In exact arithmetic, for L = 1:\n") and sound.startswith("In floating point (--sound), L = ")
    assert "Radii" not in exact and "Radii" in sound.splitlines()[1] and " sound " in sound.splitlines()[2]
    assert f"{found['med_u']:.3f}" in exact and f"{found['med_u_sound']:.3f}" in sound
    made = frame(capsys, world / "out", world / "plain")
    assert made["Radii"].tolist() == ["sound", "plain"] and made["med U"].tolist() == [found["med_u_sound"], other["med_u"]]
    assert made["CRA_U 1.5"].tolist() == [100 * found["cra_u_sound"][1.5], 100 * found["cra_u"][1.5]]
    plain = frame(capsys, world / "plain")
    assert "Radii" not in plain and list(frame(capsys, world / "out").drop(columns="Radii")) == list(plain)
    assert figures.radii(summary(lipschitz=0.5)) == "tight" and figures.radii(summary(lipschitz_assumed=True)) == "assumed"


def test_a_summary_may_be_a_file_under_any_name(tmp_path, capsys):
    folder = write(tmp_path / "a", name="from the file")
    (folder / "summary.json").rename(tmp_path / "b.json")
    assert frame(capsys, tmp_path / "b.json")["Model"].tolist() == ["from the file"]
    (tmp_path / "b.json").write_text("{")
    assert "not JSON" in refused(capsys, tmp_path / "b.json")
    (tmp_path / "b.json").write_text(json.dumps([1]))
    assert "not a summary" in refused(capsys, tmp_path / "b.json")


def test_reading_summaries_warns_of_nothing_else(tmp_path):
    write(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(results.read_summaries(tmp_path)) == [tmp_path / "a"]
    assert [row["name"] for row in published.rows(["xi0"])] == ["published, xi = 0"]
