"""Tables against the records they are made of, against the published figures, and as files that others read."""
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, needs_shared
from small_world import command, world  # noqa: F401

import eval.__main__ as command_line
from eval.show import published, tables
from utils import InputError

BUDGETS = ("--eps-u", "0.5", "1.6", "--eps", "0.06", "0.3")


def lower(values):
    return values.quantile(0.5, interpolation="lower")


def summary(**more):
    """A summary as certify and attack write it."""
    kinds = {"cra_u": {"1.5": 1.0}, "cra_d": {"0.25": 0.5}, "cra_i": {"0.25": 0.75}, "med_u": 3.0, "med_d": 0.1, "med_i": None}
    attacked = {**{f"era_{kind}": {"pgd": {"0.25": 0.5}} for kind in "udi"}, **{f"med_attack_{kind}": {"cw": 1.0} for kind in "udi"}}
    return {"bin": "a_b", "protocol": "strict", "far_target": 0.001, "tau": 0.25, "tar": 0.5, "feature_norm": 3.25, "bin_sha256": "1" * 64,
            **kinds, **attacked, "attacks": {"pgd": {"steps": 20, "limit": None, "seed": 0}}, **more}


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_every_number_follows_from_the_csv_files_by_pandas(world, protocol, capsys):
    for what in (["pgd", "--steps", "3"], ["cw", "--steps", "4"]):
        assert command(world, "attack", "--attack", *what, *BUDGETS, "--protocol", protocol) == 0
    frames = {}
    for which in "12":
        capsys.readouterr()
        assert command_line.main(["table", str(world / "out"), "--which", which, "--format", "csv"]) == 0
        frames[which] = pd.read_csv(io.StringIO(capsys.readouterr().out)).iloc[0]
    pairs, images = pd.read_csv(world / "out" / "pairs.csv"), pd.read_csv(world / "out" / "images.csv")
    groups = {"U": images, "D": pairs[pairs.same], "I": pairs[~pairs.same]}
    norms = pd.concat([pairs.norm_left, pairs.norm_right])
    assert frames["1"]["norm"] == pytest.approx(norms.mean()) and frames["1"]["TAR"] == 100 * groups["D"].accepted.mean()
    for kind, group in groups.items():
        radius = group.radius_u if kind == "U" else group.radius
        assert frames["1"][f"med {kind}"] == lower(radius)
        for eps in ("0.5", "1.6") if kind == "U" else ("0.06", "0.3"):
            assert frames["1"][f"CRA_{kind} {eps}"] == pytest.approx(100 * (radius > float(eps)).mean())
            era = frames["2"][f"PGD ERA_{kind} {eps}"]
            assert era == pytest.approx(100 * group[f"robust_pgd_{eps}"].mean()) and era >= frames["1"][f"CRA_{kind} {eps}"]
        if protocol == "strict":
            right = group.norm > 0 if kind == "U" else group.accepted == group.same
            median = lower(group.norm_cw[right])
        else:
            sides = [group.norm_cw] if kind == "U" else [group.norm_cw_left, group.norm_cw_right]
            norm = pd.concat(sides)
            median = lower(norm[np.isfinite(norm)])
        found = frames["2"][f"C&W med {kind}"]
        assert found == median if np.isfinite(median) else np.isnan(found)
    assert frames["1"]["Protocol"] == protocol and frames["1"]["Model"] == "out"


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
    first, second = tables.table1(published.table1()), tables.table2(published.table2())
    expected = paper_rows(text, "Table 1, proposed model")
    assert first["Dataset"].tolist() == [datasets[name] for name, _ in expected]
    assert first.loc[:, "TAR":].to_numpy() == pytest.approx(np.array([figures for _, figures in expected]))
    expected = paper_rows(text, "Table 2, LFW")
    assert second["Model"].tolist() == [name for name, _ in expected]
    assert second.loc[:, "TAR":].to_numpy() == pytest.approx(np.array([figures for _, figures in expected]))
    assert set(first["Protocol"]) | set(second["Protocol"]) == {"published"}
    certified, empirical = re.search(r"certified: (xi 0.*?)\nEmpirical \(.*?\): (xi 0.*?)\n\n", text, re.DOTALL).groups()
    frame = tables.ablation(published.ablation()).set_index("xi")
    for part, columns in ((certified, frame.loc[:, "TAR":"norm"]), (empirical, frame.loc[:, "PGD ERA_U 1.5":])):
        rows = {float(xi): [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", line)]
                for xi, line in re.findall(r"xi (\d): ([^x]*)", part) if "row above" not in line}
        assert set(rows) >= {0, 1, 5}
        for xi, figures in rows.items():
            assert columns.loc[xi].tolist() == pytest.approx(figures)
    assert frame.loc[3, "TAR":"norm"].tolist() == first.loc[0, "TAR":].tolist()
    assert frame.loc[3, "PGD ERA_U 1.5":].tolist() == second.loc[3, "PGD ERA_U 1.5":].tolist()


def test_formats_can_be_read_by_others():
    frame = tables.table1([summary(name="a|b_1 & <{2}>"), summary(name="x", cra_u={"0.5": 1 / 3})])
    back = pd.read_csv(io.StringIO(tables.render(frame, "csv")), float_precision="round_trip")
    pd.testing.assert_frame_equal(back, frame, check_exact=True, check_dtype=False)
    markdown = [re.split(r"(?<!\\)\|", line)[1:-1] for line in tables.render(frame, "markdown").splitlines()]
    assert {len(line) for line in markdown} == {len(frame.columns)} and len(markdown) == 4
    assert set("".join(markdown[1])) <= set(": -") and markdown[2][0].strip() == r"a\|b_1 & <{2}>"
    latex = tables.render(frame, "latex").splitlines()
    assert (latex[0].count("{"), latex[-1]) == (latex[0].count("}"), r"\end{tabular}")
    columns = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", latex[0])[1]
    body = [line for line in latex[1:-1] if line != r"\hline"]
    assert len(columns) == len(frame.columns) and len(body) == 3
    for line in body:
        assert line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert not re.search(r"(?<!\\)[_#%$]", line)
    assert r"a|b\_1 \& \textless{}\{2\}\textgreater{}" in latex[4]
    text = tables.render(frame).splitlines()
    assert len({len(line) for line in text}) == 1 and text[1].startswith("a|b_1 & <{2}>  a_b")
    assert tables.side_by_side(frame).shape == (len(frame.columns) - 4, 2)


def test_wide_tables_go_on_below_with_their_labels(monkeypatch):
    monkeypatch.setattr(tables, "WIDTH", 70)
    frame = tables.table1([summary(name="x")])
    parts = [part.splitlines() for part in tables.render(frame).split("\n\n")]
    assert len(parts) > 1 and all(len(line) <= 70 for part in parts for line in part)
    assert all(part[0].startswith("Model") and part[1].startswith("x") for part in parts)
    names = [name for part in parts for name in re.split(r"\s{2,}", part[0])[4:]]
    assert names == list(frame.columns)[4:]


def test_the_ablation_is_sorted_by_xi_and_tells_it_from_folders(tmp_path, capsys):
    folders = [tmp_path / name for name in ("run_xi3", "xi0.5", "xi_1")]
    for folder in folders:
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary()))
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
        assert len(make([one, {**other, "bin": "c"}])) == 2
    slow = summary(attacks={"pgd": {"steps": 100, "limit": None, "seed": 1}})
    with pytest.raises(InputError, match="pgd under the strict protocol is not the same in all results: steps 20 and 100"):
        tables.table2([one, slow])
    assert len(tables.table2([one, {**slow, "protocol": "paper"}])) == len(tables.table1([one, slow])) == 2
    assert len(tables.table2([one, summary(attacks={"pgd": {**one["attacks"]["pgd"], "seed": 5}}), *published.table2()])) == 6
    with pytest.raises(InputError, match="has figures of ddn"):
        tables.table2([one], ["ddn"])
    for name, content in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(content))
    folders = [str(tmp_path / name) for name in "ab"]
    assert command_line.main(["table", *folders]) == 2 and "not the same" in capsys.readouterr().err
    assert command_line.main(["table", *folders, "--names", "x"]) == 2 and "1 given, expected one for each of the 2" in capsys.readouterr().err


def test_limits_and_missing_figures_are_shown():
    limited = summary(attacks={"cw": {"steps": 100, "limit": 60}})
    frame = tables.table2([limited, summary(bin="c")])
    assert frame["Limit"].tolist()[0] == 60 and tables.formatted(frame)["Limit"].tolist() == ["60", "-"]
    uncertified = summary(**{f"cra_{kind}": {"0.25": None} for kind in "udi"}, **{f"med_{kind}": None for kind in "udi"})
    assert set(tables.formatted(tables.table1([uncertified])).loc[0, "CRA_U 0.25":"med I"]) == {"-"}
    assert "Limit" not in tables.table2([summary()])
