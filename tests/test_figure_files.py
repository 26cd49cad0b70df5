"""Figures as files for papers: PNG, PDF and SVG, the same each time; every mark is in a legend, and the title says what it is about."""
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from small_world import command, world  # noqa: F401
from test_plots import ALL, CW, CW_TRIES, PGD, small

import eval.__main__ as command_line
from eval.show import drawing, plots
from utils import InputError


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, by the names of their files."""
    found, save = {}, plots.save_figure

    def spy(figure, path, *more, **options):
        found[path.stem] = figure
        return save(figure, path, *more, **options)
    monkeypatch.setattr(plots, "save_figure", spy)
    return found


def attacked():
    """Records that support all figures, with an attack that failed now and then."""
    return small([*CW_TRIES, ("i", 2, "pgd", 0.25, True, 0.25)], {"pgd": PGD, "cw": CW})


def explained(figure):
    """What the legends of a figure say."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return {text.get_text() for legend in legends for text in legend.get_texts()}


def test_every_mark_is_in_a_legend(tmp_path, figures):
    assert {path.stem for path in plots.write_plots(attacked(), tmp_path)} == ALL == set(figures)
    for name, figure in figures.items():
        said = explained(figure)
        for axes in figure.axes:
            labels = {line.get_label(): line.get_marker() for line in axes.lines if line.get_label() in said or len(line.get_xdata())}
            marks = {marker for label, marker in labels.items() if label in said}
            assert {marker for label, marker in labels.items() if label not in said} <= marks - {"None"}, name
            assert {area.get_label() for area in axes.collections} <= said, name
            bars = {patch.get_label() for patch in axes.patches if not patch.get_label().startswith("_")}
            assert bars <= said and len(bars) == len(axes.containers) + (name in ("feature_norms", "tightness")) * len(axes.patches), name
    roc = explained(figures["roc"])
    assert r"at $\tau$: FAR 0, TAR 50.0%" in roc and r"certified at $\epsilon$ = 0.25" in roc
    assert any("may cost" in text for text in roc) and any(re.match(r"at \$\\tau\$: FAR up to [\d.]+, TAR at least [\d.]+%", text) for text in roc)
    assert "at the top: without success" in explained(figures["radius_against_attack"])


def test_what_tau_gives_under_attack_is_on_the_certified_curve_and_in_the_legend(tmp_path, figures):
    """Of unit embeddings in the plane: a pair stays as it is up to the sine of the angle between it and the threshold."""
    cosines = np.array([0.9, 0.1, 0.0, -0.5])
    reach = np.sin(np.arccos(cosines) - np.arccos(0.2))
    found = small(norm_right=1.0, cosine=cosines, radius=[-reach[0], 0, *reach[2:]])
    plots.plot_roc(found, tmp_path / "roc.png", eps=[0.3])
    assert reach[2] < 0.3 < reach[3] and -reach[0] > 0.3, "one of two false pairs may be accepted, one of two true pairs stays so"
    assert r"at $\tau$: FAR up to 0.5, TAR at least 50.0%" in explained(figures["roc"])
    (axes,) = figures["roc"].axes
    curve, dot = (next(line.get_xydata() for line in axes.lines if line.get_label().startswith(start)) for start in ("certified", r"at $\tau$: FAR up"))
    place = np.searchsorted(curve[:, 0], 0.5)
    assert dot.tolist() == [[0.5, 50.0]] and curve[place - 1, 1] <= 50 <= curve[place, 1], "where the curve rises"


def test_titles_say_the_set_the_protocol_and_the_far(tmp_path, figures):
    found = small()
    found.summary.update(bin="my_$set", far_target=0.01, flip="average")
    plots.write_plots(found, tmp_path)
    for figure in figures.values():
        title = figure.get_suptitle().replace("\n", " ")
        assert all(part in title for part in (r"my_\$set", "strict protocol", "FAR 0.01", r"$\tau$ = 0.200", "mirror images averaged")), title
    other = small()
    other.summary.update(bin="my_$set", far_target=0.1)
    plots.write_comparison({"a": found, "b": other}, tmp_path)
    title = figures["certified_accuracy"].get_suptitle()
    assert "strict protocol" in title and "FAR" not in title and "mirror" not in title, "what all have in common"
    assert explained(figures["certified_accuracy"]) == {"a", "b"}


@pytest.mark.parametrize("kind", drawing.FORMATS)
def test_figures_in_each_format_are_complete_and_the_same_each_time(tmp_path, kind):
    found = attacked()
    for name in "ab":
        plots.plot_radius_against_attack(found, tmp_path / f"{name}.{kind}", "t")
    plots.plot_roc(found, tmp_path / f"c.{kind}", title="t")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    for one in tmp_path.iterdir():
        content = one.read_bytes()
        assert len(content) > 2000
        if kind == "svg":
            root = ET.fromstring(content)
            assert root.tag.endswith("}svg") and len(list(root.iter())) > 50
        if kind == "pdf":
            assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF") and b"/Type3" not in content and b"/CreationDate" not in content


def test_the_command_writes_what_it_is_asked_for(world, capsys):
    assert command(world, "certify") == 0 and command(world, "certify", "--eps", "0.1", out="second/out") == 0
    capsys.readouterr()
    folders = [str(world / "out"), str(world / "second/out")]
    assert command_line.main(["plot", *folders, "--out", str(world / "plots"), "--format", "svg"]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert sorted(paths) == sorted(map(str, (world / "plots").iterdir())) and all(path.endswith(".svg") for path in paths)
    assert {str(world / "plots" / f"{name}.svg") for name in ("second_out_roc", "certified_accuracy", "feature_norms")} <= set(paths)
    with pytest.raises(SystemExit):
        command_line.main(["plot", *folders, "--format", "jpg"])


def test_hostile_names_are_drawn_or_refused_and_leave_nothing(tmp_path):
    for path in plots.write_comparison({"_hidden": small(), "$\\frac{": small(), "a" * 500: small(), "<!-- -->]]>&": small()}, tmp_path, "svg"):
        ET.parse(path)
    figure, _ = plots._single(r"$\nothing$", 4)
    for kind in drawing.FORMATS:
        with pytest.raises(InputError, match=f"a.{kind}: cannot be drawn"):
            drawing.save_figure(figure, tmp_path / f"a.{kind}")
        assert not (tmp_path / f"a.{kind}").exists()


def test_many_marks_are_pixels_in_a_figure_of_lines(tmp_path):
    values = np.linspace(0.1, 1, 20_000)
    plots._scatter({"x": (values, 2 * values)}, "y", tmp_path / "many.svg", "")
    assert (tmp_path / "many.svg").stat().st_size < 300_000 and b"<image" in (tmp_path / "many.svg").read_bytes()


def test_a_legend_has_no_more_columns_than_there_is_room_for():
    for length, expected in ((5, 3), (60, 1)):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for number in range(3):
            axes.plot([0, 1], label=f"{number} " + length * "n")
        drawing.legend_below(figure, [axes], 3)
        (legend,) = figure.legends
        assert legend._ncols == expected and legend.get_window_extent().width <= figure.bbox.width
