"""Tables against the records they are made of, against the published figures, and as files that others read."""
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SHARED, needs_shared
from small_world import command, world  # noqa: F401

import eval.__main__ as command_line
from eval.show import printed as printed_tables
from eval.show import published, tables
from eval.store import schema
from utils import InputError
from utils.files import read_json

PGD = {"steps": 20, "limit": None, "seed": 0, "minimum_norm": False}
CW = {"steps": 100, "limit": None, "seed": 0, "minimum_norm": True}
BUDGETS = ("--eps-u", "0.5", "1.6", "--eps", "0.06", "0.3")


def lower(values):
    return values.quantile(0.5, interpolation="lower")


def summary(**more):
    """A summary as certify and attack write it."""
    kinds = {"cra_u": {1.5: 1.0}, "cra_d": {0.25: 0.5}, "cra_i": {0.25: 0.75}, "med_u": 3.0, "med_d": 0.1, "med_i": None}
    attacked = {**{f"era_{kind}": {"pgd": {0.25: 0.5}} for kind in "udi"}, **{f"med_attack_{kind}": {"cw": 1.0} for kind in "udi"}}
    return {"format": 2, "bin": "a_b", "protocol": "strict", "far_target": 0.001, "tau": 0.25, "tar": 0.5, "feature_norm": 3.25,
            "bin_sha256": "1" * 64, **kinds, **attacked, "attacks": {"pgd": PGD, "cw": CW}, **more}


class Files:
    """What the files of a results folder say, by plain loops over their rows."""

    def __init__(self, folder):
        self.pairs, self.images, self.attacks = (pd.read_csv(folder / f"{name}.csv") for name in ("pairs", "images", "attacks"))
        self.strict = "strict" in (folder / "summary.json").read_text()
        self.rows = {"U": self.images, "D": self.pairs[self.pairs.same], "I": self.pairs[~self.pairs.same]}

    def radii(self, kind, limit=None):
        return self.rows[kind]["radius_u" if kind == "U" else "radius"][:limit]

    def right(self, kind, limit=None):
        rows = self.rows[kind][:limit]
        return [(number, row.norm > 0 if kind == "U" else row.accepted == row.same) for number, row in rows.iterrows()]

    def successes(self, kind, attack, row):
        wanted = (kind.lower(), attack, row)
        return [one for one in self.attacks.itertuples() if (one.kind, one.attack, one.row) == wanted and one.success]

    def era(self, kind, attack, eps, limit=None):
        """A row falls at eps by an attack with a budget up to eps; of the published attack, with eps itself."""
        robust = [right and not [one for one in self.successes(kind, attack, row) if (one.eps <= eps if self.strict else one.eps == eps)]
                  for row, right in self.right(kind, limit)]
        return 100 * sum(robust) / len(robust)

    def median(self, kind, attack, limit=None):
        """Of what is right, failures being infinite; of the published attack, of all successes on either side."""
        if self.strict:
            norms = [min((one.norm for one in self.successes(kind, attack, row)), default=math.inf)
                     for row, right in self.right(kind, limit) if right]
        else:
            norms = [one.norm for row, _ in self.right(kind, limit) for one in self.successes(kind, attack, row)]
        median = sorted(norms)[(len(norms) - 1) // 2] if norms else math.inf
        return median if math.isfinite(median) else math.nan

    def never(self, kind, attack, limit=None):
        """The share that stays right; the published one does not ask whether it was, and of dodging looks at the left image alone."""
        never = []
        for row, right in self.right(kind, limit):
            asked = [one for one in self.successes(kind, attack, row) if self.strict or kind != "D" or one.side == "left"]
            never.append(not asked and (right or not self.strict))
        return 100 * sum(never) / len(never)


def row_of(world, which, capsys, *more):
    capsys.readouterr()
    assert command_line.main(["table", str(world / "out"), "--which", which, "--format", "csv", *more]) == 0
    return pd.read_csv(io.StringIO(capsys.readouterr().out)).iloc[0]


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_every_number_follows_from_the_csv_files_by_plain_loops(world, protocol, capsys):
    for what in (["pgd", "--steps", "3"], ["cw", "--steps", "40" if protocol == "paper" else "4"]):
        assert command(world, "attack", "--attack", *what, *BUDGETS, "--protocol", protocol) == 0
    first, second, clean = (row_of(world, which, capsys) for which in ("1", "2", "verification"))
    files = Files(world / "out")
    norms = [*files.pairs.norm_left, *files.pairs.norm_right]
    assert first["norm"] == pytest.approx(np.mean(norms)) and first["TAR"] == 100 * files.rows["D"].accepted.mean()
    for kind, radii in ((kind, files.radii(kind)) for kind in "UDI"):
        assert first[f"med {kind}"] == lower(radii)
        for eps in (0.5, 1.6) if kind == "U" else (0.06, 0.3):
            assert first[f"CRA_{kind} {eps}"] == pytest.approx(100 * sum(radius > eps for radius in radii) / len(radii))
            assert second[f"PGD ERA_{kind} {eps}"] == pytest.approx(files.era(kind, "pgd", eps))
            assert second[f"PGD ERA_{kind} {eps}"] >= first[f"CRA_{kind} {eps}"]
        assert second[f"C&W med {kind}"] == pytest.approx(files.median(kind, "cw"), rel=1e-12, nan_ok=True)
        assert second[f"C&W never {kind}"] == pytest.approx(files.never(kind, "cw"))
    assert protocol == "strict" or len({second[f"C&W never {kind}"] for kind in "UDI"}) > 1, "no figure that everything would give"
    assert first["Protocol"] == protocol and first["Model"] == "out"

    cosines, same, tau = files.pairs.cosine.tolist(), files.pairs.same.tolist(), 0.3
    accuracies = {bar: 100 * np.mean([(cosine > bar) == truth for cosine, truth in zip(cosines, same)]) for bar in (*cosines, -1.0, tau)}
    assert clean["accuracy at tau"] == pytest.approx(accuracies[tau])
    assert clean["best accuracy"] == pytest.approx(max(accuracies.values()))
    reached = 100 * np.mean([(cosine > clean["best threshold"]) == truth for cosine, truth in zip(cosines, same)])
    assert reached == pytest.approx(clean["best accuracy"])
    assert clean["reached FAR"] == pytest.approx(100 * np.mean([cosine > tau for cosine, truth in zip(cosines, same) if not truth]))
    assert (clean["tau"], clean["TAR"]) == (tau, first["TAR"])


def test_each_attack_keeps_its_own_limit(world, capsys):
    for attack, steps, limit in (("pgd", 3, 5), ("cw", 4, 2)):
        assert command(world, "attack", "--attack", attack, "--steps", str(steps), "--limit", str(limit), *BUDGETS) == 0
    row, files = row_of(world, "2", capsys), Files(world / "out")
    assert (row["PGD limit"], row["C&W limit"]) == (5, 2) and "Limit" not in row
    for kind in "UDI":
        for eps in (0.5, 1.6) if kind == "U" else (0.06, 0.3):
            assert row[f"PGD ERA_{kind} {eps}"] == pytest.approx(files.era(kind, "pgd", eps, limit=5))
        assert row[f"C&W med {kind}"] == pytest.approx(files.median(kind, "cw", limit=2), rel=1e-12, nan_ok=True)
        assert row[f"C&W never {kind}"] == pytest.approx(files.never(kind, "cw", limit=2))
    alone = row_of(world, "2", capsys, "--attacks", "cw")
    assert alone["Limit"] == 2 and "C&W limit" not in alone
    assert command(world, "attack", "--attack", "pgd", "--steps", "3", "--limit", "2", *BUDGETS) == 0
    both = row_of(world, "2", capsys)
    assert both["Limit"] == 2 and not [name for name in both.index if name.endswith(" limit")]


def paper_rows(text, heading):
    lines = text[text.index(heading):].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1:]:
        if not line.startswith("|"):
            return rows
        name, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append((name, [float(figure) for figure in figures]))


@needs_shared
def test_published_rows_are_those_of_the_paper():
    text = (SHARED / "PAPER.md").read_text(encoding="utf-8")
    datasets = {"LFW": "lfw", "CFP-FP": "cfp_fp", "AgeDB": "agedb_30"}
    first, second = tables.table1(published.table1()).frame(), tables.table2(published.table2()).frame()
    expected = paper_rows(text, "Table 1, proposed model")
    assert first["Dataset"].tolist() == [datasets[name] for name, _ in expected]
    assert first.loc[:, "TAR":].to_numpy() == pytest.approx(np.array([figures for _, figures in expected]))
    expected = paper_rows(text, "Table 2, LFW")
    assert second["Model"].tolist() == [name for name, _ in expected]
    assert second.loc[:, "TAR":].to_numpy() == pytest.approx(np.array([figures for _, figures in expected]))
    assert set(first["Protocol"]) | set(second["Protocol"]) == {"published"}
    certified, empirical = re.search(r"certified: (xi 0.*?)\nEmpirical \(.*?\): (xi 0.*?)\n\n", text, re.DOTALL).groups()
    frame = tables.ablation(published.ablation()).frame().set_index("xi")
    for part, columns in ((certified, frame.loc[:, "TAR":"norm"]), (empirical, frame.loc[:, "PGD ERA_U 1.5":])):
        rows = {float(xi): [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", line)]
                for xi, line in re.findall(r"xi (\d): ([^x]*)", part) if "row above" not in line}
        assert set(rows) >= {0, 1, 5}
        for xi, figures in rows.items():
            assert columns.loc[xi].tolist() == pytest.approx(figures)
    assert frame.loc[3, "TAR":"norm"].tolist() == first.loc[0, "TAR":].tolist()
    assert frame.loc[3, "PGD ERA_U 1.5":].tolist() == second.loc[3, "PGD ERA_U 1.5":].tolist()


def test_formats_can_be_read_by_others():
    table = tables.table1([summary(name="a|b_1 & <{2}>"), summary(name="x", cra_u={0.5: 1 / 3})])
    frame = table.frame()
    back = pd.read_csv(io.StringIO(tables.render(table, "csv")), float_precision="round_trip")
    pd.testing.assert_frame_equal(back, frame, check_exact=True, check_dtype=False)
    markdown = [re.split(r"(?<!\\)\|", line)[1:-1] for line in tables.render(table, "markdown").splitlines()]
    assert {len(line) for line in markdown} == {len(frame.columns)} and len(markdown) == 4
    assert set("".join(markdown[1])) <= set(": -") and markdown[2][0].strip() == r"a\|b_1 & <{2}>"
    package, begin, *latex, end = tables.render(table, "latex").splitlines()
    assert (package, end) == (r"% \usepackage{booktabs}", r"\end{tabular}")
    columns = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", begin)[1]
    assert (latex[0], latex[2], latex[-1]) == (r"\toprule", r"\midrule", r"\bottomrule")
    body = [line for line in latex if not line.endswith("rule")]
    assert len(columns) == len(frame.columns) and len(body) == 3
    for line in body:
        assert line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert not re.search(r"(?<!\\)[_#%$]", line.replace(r"$\ell_2$", ""))
    assert r"a\textbar{}b\_1 \& \textless{}\{2\}\textgreater{}" in body[1]
    text = tables.render(table).splitlines()
    assert len({len(line) for line in text}) == 1 and text[1].startswith("a|b_1 & <{2}>  a_b")
    assert tables.side_by_side(table).shape == (len(frame.columns) - 4, 2)


def test_wide_tables_go_on_below_with_their_labels(monkeypatch):
    monkeypatch.setattr(printed_tables, "WIDTH", 70)
    table = tables.table1([summary(name="x")])
    parts = [part.splitlines() for part in tables.render(table).split("\n\n")]
    assert len(parts) > 1 and all(len(line) <= 70 for part in parts for line in part)
    assert all(part[0].startswith("Model") and part[1].startswith("x") for part in parts)
    names = [name for part in parts for name in re.split(r"\s{2,}", part[0])[4:]]
    assert names == [f"{column} [l2]" if column.title.startswith("med") else str(column) for column in table.columns[4:]]


def test_the_ablation_is_sorted_by_xi_and_tells_it_from_folders(tmp_path, capsys):
    folders = [tmp_path / name for name in ("run_xi3", "xi0.5", "xi_1")]
    for folder in folders:
        folder.mkdir()
        schema.write_summary(folder / "summary.json", summary())
    assert command_line.main(["table", *map(str, folders), "--which", "ablation", "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert frame["xi"].tolist() == [0.5, 1, 3] and frame["Model"].tolist() == ["xi0.5", "xi_1", "run_xi3"]
    assert {"CRA_U 1.5", "norm", "PGD ERA_D 0.25", "C&W med I"} <= set(frame)
    target = tmp_path / "new" / "table.md"
    assert command_line.main(["table", *map(str, folders), "--which", "ablation", "--xi", "9", "8", "7", "--names", "a", "b", "c",
                              "--with-paper", "--format", "markdown", "--out", str(target)]) == 0
    lines = target.read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["Proposed"] * 4 + ["c", "b", "a"]
    assert tables.xi_of({"xi": 2}, folders[0]) == 2
    with pytest.raises(InputError, match="--xi"):
        tables.xi_of({}, tmp_path / "other")


def test_what_cannot_be_told_apart_is_refused(tmp_path, capsys):
    one, other = summary(), summary(bin_sha256="2" * 64)
    for make in (tables.table1, tables.table2):
        with pytest.raises(InputError, match="a_b is not the same in all results: sha256 111111111111 and 222222222222"):
            make([one, other])
        assert len(make([one, {**other, "bin": "c"}]).rows) == 2
    slow = summary(attacks={"pgd": {**PGD, "steps": 100, "seed": 1}})
    with pytest.raises(InputError, match="pgd under the strict protocol is not the same in all results: steps 20 and 100"):
        tables.table2([one, slow])
    assert len(tables.table2([one, {**slow, "protocol": "paper"}]).rows) == len(tables.table1([one, slow]).rows) == 2
    again = summary(attacks={"pgd": {**PGD, "seed": 5, "settings": "0" * 12}})
    assert len(tables.table2([one, again, *published.table2()]).rows) == 6
    with pytest.raises(InputError, match="has figures of ddn"):
        tables.table2([one], ["ddn"])
    for name, content in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        schema.write_summary(tmp_path / name / "summary.json", content)
    folders = [str(tmp_path / name) for name in "ab"]
    assert command_line.main(["table", *folders]) == 2 and "not the same" in capsys.readouterr().err
    assert command_line.main(["table", *folders, "--names", "x"]) == 2
    assert "1 given, expected one for each of the 2" in capsys.readouterr().err


def test_the_committed_summaries_make_tables_and_no_era_lies_below_its_cra():
    summaries = [schema.read_summary(path) for path in sorted(ROOT.glob("logs/ablation/*/*/*[0-9].json"))]
    assert len(summaries) == 50 and {tuple(summary["image_size"]) for summary in summaries} == {(3, 112, 112)}
    attacked = [summary for summary in summaries if "attacks" in summary]
    for summary in attacked:
        for kind in "udi":
            for attack, certified in summary[f"cra_attacked_{kind}"].items():
                era = summary[f"era_{kind}"][attack]
                assert set(era) == set(certified) and all(era[eps] >= certified[eps] for eps in era)
    first = next(summary for summary in summaries if (summary["name"], summary["protocol"], summary["far_target"], summary["seed"])
                 == ("SLL, xi = 3", "paper", 0.01, 0))
    table = printed(tables.table2([first])).iloc[0]
    assert (table["PGD limit"], table["C&W limit"], table["PGD ERA_D 0.25"], table["C&W med D"]) == ("60", "30", "13.33", "0.029")
    assert printed(tables.verification([first])).loc[0, "accuracy at tau"] == f"{100 * (0.18 + 1 - 13 / 1200) / 2:.2f}"
    audits = [read_json(path) for path in sorted(ROOT.glob("logs/ablation/*/*/*_audit.json"))]
    assert len(audits) == 9 and {(audit["n_violations"], audit["settings"]["threat"], audit["settings"]["steps"]) for audit in audits} == {
        (0, "one", 5)}


def test_limits_and_missing_figures_are_shown():
    limited = summary(attacks={"cw": {**CW, "limit": 60}})
    table = tables.table2([limited, summary(bin="c", attacks={"pgd": PGD})])
    assert table.frame()["Limit"].tolist()[0] == 60 and printed(table)["Limit"].tolist() == ["60", "-"]
    uncertified = summary(**{f"cra_{kind}": {0.25: None} for kind in "udi"}, **{f"med_{kind}": None for kind in "udi"})
    assert set(printed(tables.table1([uncertified])).loc[0, "CRA_U 0.25":"med I"]) == {"-"}
    assert not [column for column in tables.table2([summary()]).columns if "imit" in column.title]


def printed(table):
    """The cells as text, by heading."""
    return pd.DataFrame(tables.formatted(table), columns=list(map(str, table.columns)))
