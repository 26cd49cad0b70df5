"""`python -m eval` as a user runs it, its figures recomputed by plain loops and, from the CSVs, by pandas."""
import io
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import small_world
import torch
from conftest import ROOT
from PIL import Image
from processes import python
from small_world import summary_of

import eval.__main__ as command_line
from backbones import get_backbone, load_network
from eval import records, verification
from eval.evaluation import Evaluation
from eval.show import tables
from eval.store import results
from eval.verification import PairSet
from utils import InputError
from utils.files import sha256
from utils.images import decode_image, encode_image

EPS_U, EPS = ("0.1", "0.4"), ("0.2", "0.45")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A .bin of 30 pairs of 24 noisy patterns, with repeated images, and a random network."""
    folder = tmp_path_factory.mktemp("eval")
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, 3, 7, 7, generator=noise)
    people = torch.nn.functional.interpolate(coarse, size=(112, 112), mode="bilinear").repeat_interleave(2, 0)
    images = ((people + 0.2 * torch.randn(people.shape, generator=noise)).clamp(0, 1) * 255).byte()
    encoded = [encode_image(image, "jpeg") for image in images]
    pairs = [(2 * k, 2 * k + 1) for k in range(12)] + [(k, (5 * k + 7) % 24) for k in range(18)]
    same = [left // 2 == right // 2 for left, right in pairs]
    content = pickle.dumps(([encoded[k] for pair in pairs for k in pair], same), 2)
    (folder / "faces.bin").write_bytes(content)
    torch.manual_seed(0)
    torch.save(get_backbone("sllnet_small").state_dict(), folder / "weights.pt")
    return folder


def arguments(files, out, *more, bins=("faces.bin",)):
    chosen = [part for name in bins for part in ("--bin", str(files / name))]
    return ["certify", *chosen, "--backbone", "sllnet_small", "--weights", str(files / "weights.pt"), "--out", str(out),
            "--far", "0.1", "--device", "cpu", "--num-workers", "0", "--eps-u", *EPS_U, "--eps", *EPS, *more]


def read_csv(path):
    return pd.read_csv(path, float_precision="round_trip")


@pytest.fixture(scope="session", params=["strict", "paper"])
def result(request, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new" / request.param
    run = python("-m", "eval", *arguments(files, out, "--protocol", request.param), cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return request.param, out, run


def plain_evaluation(files, protocol):
    """The definitions, pair by pair."""
    pairs = verification.read_bin(files / "faces.bin")
    network = load_network("sllnet_small", files / "weights.pt").double()
    batch = (torch.stack([decode_image(data, "") for data in pairs.images]).double() - 127.5) / 255
    views = [network(batch).numpy()] + ([network(batch.flip(-1)).numpy()] if protocol == "paper" else [])
    rows, norms = [], []
    for view in views:
        norms += [np.linalg.norm(embedding) for embedding in view]
        for left, right, same in zip(pairs.left, pairs.right, pairs.same):
            a, b = np.linalg.norm(view[left]), np.linalg.norm(view[right])
            rows.append((bool(same), view[left] @ view[right] / a / b, a, b))
    negatives = np.array([cosine for same, cosine, *_ in rows if not same])
    if protocol == "paper":
        tau = next(t for t in np.linspace(-1, 1, 1000)[::-1] if np.mean(negatives > t) > 0.1)
    else:
        tau = min(cosine for _, cosine, *_ in rows if np.mean(negatives > cosine) <= 0.1)
    found = []
    for same, cosine, a, b in rows:
        delta = abs(math.acos(cosine) - math.acos(tau))
        radius = min(a, b) * math.sin(delta if protocol == "paper" else min(delta, math.pi / 2))
        found.append((same, cosine > tau, abs(radius) if (cosine > tau) == same else 0))
    radius_u = [norm * (math.sqrt(1 - tau**2) if protocol == "paper" or tau > 0 else 1) for norm in norms]
    return tau, found, radius_u, np.mean([norm for _, _, *pair in rows for norm in pair])


def lower(values):
    return sorted(values)[(len(values) - 1) // 2]


def test_figures_are_those_of_the_definitions(files, result):
    protocol, out, _ = result
    summary = summary_of(out)
    tau, found, radius_u, norm = plain_evaluation(files, protocol)
    close = {"rel": 1e-4, "abs": 1e-5}  # float32 embeddings against float64
    assert summary["tau"] == pytest.approx(tau, **close) and summary["feature_norm"] == pytest.approx(norm, **close)
    assert summary["tar"] == np.mean([accepted for same, accepted, _ in found if same])
    assert summary["far"] == np.mean([accepted for same, accepted, _ in found if not same])
    kinds = {"u": (radius_u, EPS_U), "d": ([r for same, _, r in found if same], EPS),
             "i": ([r for same, _, r in found if not same], EPS)}
    for kind, (radii, budgets) in kinds.items():
        assert summary[f"cra_{kind}"] == {eps: np.mean([r > eps for r in radii]) for eps in map(float, budgets)}
        assert summary[f"med_{kind}"] == pytest.approx(lower(radii), **close)
    assert read_csv(out / "pairs.csv")["radius"].to_numpy() == pytest.approx([r for *_, r in found], **close)
    assert 0 < summary["cra_d"][0.45] < 1 and summary["cra_u"][0.4] > 0  # the comparison is not about nothing


def test_every_figure_follows_from_the_csv_files(files, result):
    protocol, out, run = result
    summary = summary_of(out)
    pairs, images = read_csv(out / "pairs.csv"), read_csv(out / "images.csv")
    assert list(pairs.columns) == ["pair", "flipped", "same", "left", "right", "cosine", "theta", "norm_left", "norm_right", "accepted", "radius", "upper_bound", "radius_both", "radius_joint"]
    assert list(images.columns) == ["image", "flipped", "norm", "radius_u"]
    assert all(pairs[name].dtype == bool for name in ("same", "flipped", "accepted"))
    unique, copies = len(verification.read_bin(files / "faces.bin").images), 1 + (protocol == "paper")
    assert unique == 24
    assert (len(pairs), len(images)) == (30 * copies, 24 * copies) == (summary["n_pairs"], summary["n_images"])
    true, false = pairs[pairs.same], pairs[~pairs.same]
    assert (summary["tar"], summary["far"]) == (true.accepted.mean(), false.accepted.mean())
    assert (pairs.accepted == (pairs.cosine > summary["tau"])).all() and np.allclose(np.cos(pairs.theta), pairs.cosine, atol=1e-12)
    right = {tau: ((pairs.cosine > tau) == pairs.same).mean() for tau in (summary["tau"], *pairs.cosine, -1)}
    assert summary["accuracy_at_tau"] == right[summary["tau"]]
    assert summary["best_accuracy"] == max(right.values()) == right[summary["best_threshold"]]
    assert (pairs.radius[pairs.accepted != pairs.same] == 0).all()
    for kind, radius in (("u", images.radius_u), ("d", true.radius), ("i", false.radius)):
        assert summary[f"cra_{kind}"] == {eps: (radius > eps).mean() for eps in summary[f"cra_{kind}"]}
        assert summary[f"med_{kind}"] == radius.quantile(0.5, interpolation="lower")
    assert summary["feature_norm"] == pytest.approx(pd.concat([pairs.norm_left, pairs.norm_right]).mean())
    first = pairs[~pairs.flipped]
    assert summary["accuracy"] == verification.ten_fold_accuracy(first.cosine, first.same)[0]
    norms = images.set_index(["flipped", "image"]).norm
    assert (pairs.norm_left == norms.reindex(zip(pairs.flipped, pairs.left)).values).all()
    expected = {"bin": "faces", "backbone": "sllnet_small", "protocol": protocol, "far_target": 0.1,
                "n_invalid_embeddings": 0, "weights_sha256": sha256(files / "weights.pt"),
                "bin_sha256": sha256(files / "faces.bin")}
    assert expected.items() <= summary.items() and summary["reasons"] == {}
    pixels = (torch.stack([decode_image(data, "") for data in verification.read_bin(files / "faces.bin").images]).double() - 127.5) / 255
    bound = [(pixels[row.left] - pixels[row.right]).norm().item() / math.sqrt(2 * (1 - summary["tau"]))
             * abs(math.sin(math.acos(summary["tau"]) - math.acos(row.cosine))) for row in pairs.itertuples()]
    assert pairs.upper_bound.to_numpy() == pytest.approx(bound, rel=1e-6)
    assert (false.radius <= false.upper_bound * (1 + 1e-6)).all()
    assert "warning" not in run.stderr and f"{100 * summary['tar']:.2f}" in run.stdout


def test_table_and_plot_from_results_folders(result, tmp_path, capsys):
    protocol, out, run = result
    assert command_line.main(["table", str(out), str(out.parent)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:6] == ["Model", "Dataset", "Protocol", "FAR", "TAR", "tau"] and len(rows) >= 2
    assert [protocol, *run.stdout.splitlines()[1].split()] in [line.split() for line in rows]
    assert command_line.main(["plot", str(out)]) == 0
    assert (out / "certified_accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert command_line.main(["plot", str(out), "--out", str(tmp_path / "plots")]) == 0
    assert {f"{protocol}_{name}.png" for name in ("certified_accuracy", "roc")} < {path.name for path in (tmp_path / "plots").iterdir()}


def test_several_bins_get_a_folder_each_and_one_table(files, tmp_path, capsys):
    (files / "other.bin").write_bytes((files / "faces.bin").read_bytes())
    assert command_line.main(arguments(files, tmp_path / "out", "--tau", "-0.2", bins=("faces.bin", "other.bin"))) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:3]] == ["Dataset", "faces", "other"]
    for name in ("faces", "other"):
        summary = summary_of(tmp_path / "out" / name)
        assert summary["bin"] == name and summary["tau"] == -0.2
        assert summary["far_target"] is None and summary["reasons"]["far_target"] == "tau was given"
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == sorted(
        ["faces", "other"] + 2 * ["images.csv", "pairs.csv", "summary.json"])


def bad_inputs(files):
    """(name, what is replaced in or added to good arguments, what the message must say)."""
    content = pickle.loads((files / "faces.bin").read_bytes())
    damaged = (content[0][:6] + [b"\xff\xd8 nothing"] + content[0][7:], content[1])
    (files / "damaged.bin").write_bytes(pickle.dumps(damaged))
    (files / "text.bin").write_text("not a pickle")
    (files / "true.bin").write_bytes(pickle.dumps((content[0][:8], [True] * 4)))
    (files / "small.bin").write_bytes(pickle.dumps(([encode_image(torch.zeros(3, 64, 64).byte(), "png")] * 2, [True])))
    (files / "file").write_text("")
    (files / "copy").mkdir(exist_ok=True)
    (files / "copy" / "faces.bin").write_bytes((files / "faces.bin").read_bytes())
    torch.save(get_backbone("sllnet_mnist").state_dict(), files / "mnist.pt")
    return [
        (["--bin", files / "none.bin"], ["none.bin"]), (["--bin", files / "text.bin"], ["text.bin", "not a pickle"]),
        (["--bin", files / "damaged.bin"], ["damaged.bin", "image 6"]), (["--bin", files], [str(files)]),
        (["--bin", files / "true.bin"], ["true.bin", "no false pairs"]),
        (["--bin", files / "small.bin", "--tau", "0.1"], ["small.bin", "64, 64"]),
        (["--weights", files / "none.pt"], ["none.pt"]), (["--weights", files / "mnist.pt"], ["mnist.pt", "missing"]),
        (["--weights", files / "faces.bin"], ["faces.bin"]),
        (["--backbone", "sllnet_smal"], ["sllnet_small"]), (["--backbone", "iresnet18"], ["not 1-Lipschitz"]),
        (["--device", "abacus"], ["abacus"]), (["--device", "meta"], ["--device meta"]),
        (["--out", files / "file"], ["file", "not a folder"]), (["--out", files / "file" / "below"], ["file", "not a folder"]),
        (["+bin", files / "copy" / "faces.bin"], ["several files are called faces"]),
        (["--tau", "1"], ["--tau"]), (["--tau", "nan"], ["--tau"]), (["--far", "0"], ["--far"]),
        (["--eps", "0"], ["--eps"]), (["--eps", "x"], ["--eps", "not a number"]), (["--eps-u", "inf"], ["--eps-u"]),
        (["--batch-size", "0"], ["--batch-size"]), (["--protocol", "loose"], ["--protocol"]),
    ]


def run_in_process(argv):
    try:
        return command_line.main(argv)
    except SystemExit as error:  # argparse ends by itself
        return error.code


def test_bad_input_ends_in_one_line_status_2_and_no_output(files, tmp_path, capsys):
    for number, (change, expected) in enumerate(bad_inputs(files)):
        out = tmp_path / str(number) / "out"
        argv = arguments(files, out)
        for option, value in zip(change[::2], map(str, change[1::2])):
            if option in argv:
                argv[argv.index(option) + 1] = value
            else:
                argv += [option.replace("+", "--"), value]
        assert run_in_process(argv) == 2, change
        captured = capsys.readouterr()
        message = captured.err
        assert message.startswith("error: ") and message.count("\n") == 1, message
        assert all(part in message for part in expected) and captured.out == "", message
        assert not out.parent.exists()


def test_a_bad_file_among_good_ones_leaves_nothing(files, tmp_path):
    bad_inputs(files)
    assert command_line.main(arguments(files, tmp_path / "out", bins=("faces.bin", "damaged.bin"))) == 2
    assert not (tmp_path / "out").exists()


def test_results_that_are_none(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.json").write_text("[]")
    for command in ("table", "plot"):
        for name, expected in (("none", "no summary.json"), ("broken", "not JSON"), ("other", "not a summary")):
            assert command_line.main([command, str(tmp_path / name)]) == 2
            assert expected in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = ("import sys, eval.__main__ as m\ntry: m.main(sys.argv[1:])\nexcept SystemExit: pass\n"
            "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))")
    for command in ([], ["certify"], ["identify"], ["table"], ["plot"]):
        argv = [sys.executable, "-c", code, *command, "--help"]
        run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
        assert run.stdout.splitlines()[-1] == "[]", run.stderr


def pair_set_of(same):
    left = np.arange(0, 2 * len(same), 2)
    image = encode_image(torch.zeros(3, 2, 2, dtype=torch.uint8), "png")
    return PairSet("x.bin", [image] * 2 * len(same), left, left + 1, np.array(same), left)


def example(same, embeddings):
    return records.measure(pair_set_of(same), embeddings[None])


@pytest.mark.parametrize("same", [[True] * 4, [False] * 4])
def test_one_kind_of_pairs_gives_what_it_can_and_says_the_rest(same):
    pairs, images = example(same, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    pairs["accepted"], pairs["radius"], images["radius_u"] = pairs["cosine"] > 0.1, 0.5, 1.0
    summary = records.summarise(pairs, images, Evaluation(tau=0.1, eps_u=[1.5], eps=[0.25]))
    missing, there = ("i", "d") if same[0] else ("d", "i")
    assert summary[f"cra_{missing}"] == {0.25: None} and summary[f"med_{missing}"] is None
    assert summary[f"cra_{there}"] == {0.25: 1.0} and summary["auc"] is None and summary["accuracy"] is None
    assert {f"cra_{missing}", f"med_{missing}", "auc", "eer", "accuracy", "accuracy_std"} < summary["reasons"].keys()
    assert [key for key, value in summary.items() if value is None and key not in summary["reasons"]] == []
    json.dumps(summary, allow_nan=False)
    assert "-" in tables.render(tables.table1([{**summary, "bin": "x", "far_target": None}]))


def test_embeddings_without_direction_are_rejected_and_counted(monkeypatch):
    embeddings = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    embeddings[0, 0], embeddings[0, 3] = 0, torch.nan
    monkeypatch.setattr(verification, "embed_images", lambda *args, **options: embeddings)
    monkeypatch.setattr(records, "image_distances", lambda pair_set: np.ones(4))
    found = records.certify(lambda images: images, pair_set_of([True, False] * 2), Evaluation(tau=-0.99, eps=[1e-9], eps_u=[1e-9]),
                            lipschitz=1)
    pairs, images, summary = found.pairs, found.images, found.summary
    assert pairs["cosine"].tolist()[:2] == [-math.inf] * 2 and not pairs["accepted"][:2].any()
    assert pairs["radius"].tolist()[:2] == [0, 0] and images["radius_u"][[0, 3]].tolist() == [0, 0]
    assert summary["n_invalid_embeddings"] == 2 and summary["cra_u"] == {1e-9: 0.75} and summary["n_images"] == 8
    assert math.isfinite(summary["feature_norm"]) and summary["auc"] is not None


def test_records_are_read_back_to_the_last_bit_and_faults_are_named(tmp_path):
    pairs, images = example([True, False], torch.randn(4, 3) / 3)
    pairs["accepted"], pairs["radius"], images["radius_u"] = True, 1 / 3, 0.1 + 0.2
    pairs.loc[0, "cosine"] = -math.inf
    evaluation = Evaluation(tau=0.1)
    summary = {**records.summarise(pairs, images, evaluation), "format": records.FORMAT, "bin": "x", "attacks": {"pgd": {
        "settings": "0123456789ab", "eps": [0.1], "eps_u": [0.1]}}}
    tries = pd.DataFrame([("i", 1, "left", "pgd", 0.1 + 0.2, True, 1 / 3, 2**62, "0123456789ab"),
                          ("u", 3, "image", "audit", math.nan, False, math.inf, 0, "audit")], columns=list(records.ATTACK_TYPES))
    results.write_records(tmp_path, records.Records(pairs, images, summary, tries))
    found = results.read_records(tmp_path)
    pd.testing.assert_frame_equal(found.attacks, tries, check_exact=True)
    assert found.summary == summary
    pd.testing.assert_frame_equal(found.pairs, pairs, check_exact=True)
    pd.testing.assert_frame_equal(found.images, images, check_exact=True)
    images.drop(columns="norm").to_csv(tmp_path / "images.csv")
    with pytest.raises(InputError, match="images.csv: columns norm missing"):
        results.read_records(tmp_path)


def test_table1_has_the_published_layout():
    summary = {"bin": "lfw", "protocol": "paper", "far_target": 1e-3, "tar": 0.8397, "tau": 0.2312, "feature_norm": 3.2451, "med_u": 3.136,
               "cra_u": {1.5: 1.0, 3.0: 0.7476}, "cra_d": {0.25: 0.6682, 0.75: 0.3005}, "med_d": 0.469,
               "cra_i": {0.25: 0.9821, 0.75: 0.4033}, "med_i": None}
    header, row = tables.render(tables.table1([summary])).splitlines()
    assert row.split() == ["lfw", "paper", "0.001", "83.97%", "0.231", "100.00%", "74.76%", "3.136", "66.82%", "30.05%", "0.469", "98.21%", "40.33%", "-", "3.245"]
    assert [name for name in header.split("  ") if name] and header.index("norm") > header.index("med I")
    other = {**summary, "cra_u": {10.0: 0.5}}
    frame = tables.table1([summary, other]).frame()
    assert list(frame.columns)[5:9] == ["CRA_U 1.5", "CRA_U 3.0", "CRA_U 10.0", "med U"]
    assert frame.isna().sum().sum() == 5


def test_images_of_another_size_are_resized_on_request_and_results_say_so(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(get_backbone("tiny").state_dict(), tmp_path / "tiny.pt")
    small_world.write_bin(tmp_path / "large.bin", small_world.faces(40))
    small_world.write_bin(tmp_path / "right.bin", small_world.faces(16))
    large, right = "large.bin", "right.bin"
    assert small_world.command(tmp_path, "certify", bin=large) == 2
    error = capsys.readouterr().err
    assert "large.bin: image 0: images of [3, 40, 40] do not fit" in error and error.count("\n") == 1
    assert small_world.command(tmp_path, "certify", "--resize", bin=large) == 0
    assert small_world.command(tmp_path, "certify", "--resize", bin=right, out="right") == 0
    summary, other = summary_of(tmp_path / "out"), summary_of(tmp_path / "right")
    assert summary["resized"] and not other["resized"] and summary["image_size"] == other["image_size"] == [3, 16, 16]
    images = [decode_image(data, "") for data in verification.read_bin(tmp_path / large).images]
    small = torch.nn.functional.interpolate(torch.stack(images).float(), (16, 16), mode="bicubic").round().clamp(0, 255)
    norms = load_network("tiny", tmp_path / "tiny.pt")((small - 127.5) / 255).norm(dim=1)
    assert read_csv(tmp_path / "out" / "images.csv").norm.to_numpy() == pytest.approx(norms.numpy(), rel=1e-5)
    attack = ("attack", "--attack", "pgd", "--steps", "2")
    assert small_world.command(tmp_path, *attack, bin=large) == 2 and "do not fit" in capsys.readouterr().err
    assert small_world.command(tmp_path, *attack, "--resize", bin=large) == 0
    assert command_line.main(["plot", str(tmp_path / "out"), "--bin", str(tmp_path / large), "--backbone", "tiny", "--weights",
                              str(tmp_path / "tiny.pt"), "--device", "cpu"]) == 0


def test_images_are_the_same_by_their_pixels_under_the_paper_protocol(tmp_path):
    torch.manual_seed(0)
    torch.save(get_backbone("tiny").state_dict(), tmp_path / "tiny.pt")
    images = small_world.faces(16)
    encoded = [encode_image(image, "png") for image in images]
    again = []  # the same pixels, other bytes
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "BMP")
        again.append(file.getvalue())
    pairs = [(0, 1), (2, 3), (4, 6), (8, 10)]
    content = [part for left, right in pairs for part in (encoded[left], again[right], again[left], encoded[right])]
    (tmp_path / "faces.bin").write_bytes(pickle.dumps((content, [True, True, True, True, False, False, False, False])))
    for protocol, images in (("strict", 16), ("paper", 2 * 8)):
        assert small_world.command(tmp_path, "certify", "--protocol", protocol, out=protocol) == 0
        assert summary_of(tmp_path / protocol)["n_images"] == images
