"""How certify, attack and audit end: a sentence that the records bear out, what was written, and a command that works as it stands."""
import shlex

import numpy as np
import pandas as pd
import pytest
from small_world import command, summary_of, world  # noqa: F401

import eval.__main__ as command_line
from eval.show import sentence


def last_lines(capsys, count):
    return capsys.readouterr().out.splitlines()[-count:]


def follow(line):
    """Run the command that a line asks to run next."""
    assert line.startswith("next: python -m eval ") and "    # " in line
    return command_line.main(shlex.split(line.removeprefix("next: python -m eval "), comments=True))


def test_each_command_leads_to_the_next_one(world, capsys, monkeypatch):
    """From a certificate to the page, by nothing but what the commands say; also with names that a shell would take apart."""
    (world / "my out").mkdir()
    out = world / "my out" / "lfw"
    assert command(world, "certify", "--flip", "average", "--tight", out="my out/lfw") == 0
    said, written, then = last_lines(capsys, 3)
    pairs = pd.read_csv(out / "pairs.csv")
    radius, accepted = pairs.radius[pairs.same], pairs.accepted[pairs.same]
    assert said == (f"{np.floor(1000 * (radius > 0.25).mean()) / 10:g} % of true pairs stay accepted under any attack on one image up to 0.25, which is proven; "
                    f"{np.floor(1000 * accepted.mean()) / 10:g} % are accepted without an attack, at a threshold that {100 * pairs.accepted[~pairs.same].mean():.3g} % of false pairs pass.")
    assert written == f"written to {out}: pairs.csv, images.csv, summary.json"
    assert follow(then.replace("--steps 20", "--steps 2")) == 0
    again, audited, written, then = last_lines(capsys, 4)
    assert again == said and audited.startswith("An audit attacked ") and audited.endswith("2 steps an attack) and broke none.")
    assert written == f"written to {out}: audit.json"
    assert follow(then) == 0 and last_lines(capsys, 1) == [str(out / "report.html")] and (out / "report.html").is_file()
    assert command(world, "attack", "--attack", "pgd", "--steps", "2", "--eps", "0.06", "--flip", "average", "--tight", out="my out/lfw") == 0
    again, left, written, then = last_lines(capsys, 4)
    era = summary_of(out)["era_d"]["pgd"][0.06]
    assert again == said and left == f"PGD left {np.floor(1000 * era + 1e-9) / 10:g} % of true pairs accepted at 0.06."
    assert written == f"written to {out}: attacks.csv, summary.json" and follow(then) == 0


def test_smoothed_results_lead_on_as_well(world, capsys):
    """smooth asks for an audit, attacks, figures and the page, and attack and audit for the page."""
    assert command(world, "smooth", "--sigma", "0.3", "--n0", "20", "--n", "40", "--flip", "average", backbone="loose", out="my out") == 0
    said, written, *then = last_lines(capsys, 6)
    pairs, summary = pd.read_csv(world / "my out/pairs.csv"), summary_of(world / "my out")
    radius = pairs.radius[pairs.same]
    assert said == (f"{np.floor(1000 * (radius > 0.25).mean()) / 10:g} % of true pairs stay accepted under any attack on one image up to 0.25, with a confidence of 99.9 % for each "
                    f"(randomised smoothing, noise of sigma 0.3); {np.floor(1000 * (radius > 0).mean()) / 10:g} % are accepted without an attack, at a threshold that "
                    f"{100 * (pairs.radius[~pairs.same] == 0).mean():.3g} % of false pairs pass. {100 * summary['smoothing']['abstained']:.3g} % of all decisions abstain, which counts as wrong.")
    assert written == f"written to {world / 'my out'}: pairs.csv, images.csv, summary.json"
    assert [line.split()[4] for line in then] == ["audit", "attack", "plot", "report"]
    for line in then[:2]:
        assert follow(line.replace("--limit 10", "--limit 2 --steps 1 --draws 2")) == 0
        again, after, written, page = last_lines(capsys, 4)
        assert again == said and ("no more than their confidence allows" in after or "PGD through the noise (2 draws a step) left" in after) and "eval report" in page
    assert follow(then[2]) == 0 and (world / "my out/roc.png").is_file()
    assert follow(then[3]) == 0 and (world / "my out/report.html").is_file()


def test_what_cannot_be_attacked_is_not_asked_for(world, capsys):
    assert command(world, "smooth", "--sigma", "0.3", "--n0", "20", "--n", "40", "--threat", "joint", backbone="loose") == 0
    assert [line.split()[4] for line in last_lines(capsys, 3)] == ["audit", "plot", "report"]


def test_several_files_have_a_sentence_each_and_one_next_command(world, capsys):
    (world / "more.bin").write_bytes((world / "faces.bin").read_bytes())
    assert command(world, "certify", "--bin", str(world / "more.bin")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("written")] == [f"written to {world / 'out' / name}: pairs.csv, images.csv, summary.json" for name in ("faces", "more")]
    assert sum("stay accepted" in line for line in lines) == 2 and sum(line.startswith("next: ") for line in lines) == 1
    assert follow(lines[-1].replace("--steps 20", "--steps 1").replace("--limit 10", "--limit 1")) == 0


def test_the_next_command_repeats_what_it_depends_on(world, capsys):
    assert command(world, "certify", "--resize") == 0
    (then,) = last_lines(capsys, 1)
    assert {"--resize", "--device", "cpu", "--num-workers", "0", "--batch-size", "5"} <= set(then.split()) and not {"--flip", "--tight"} & set(then.split())


SUMMARY = {"protocol": "strict", "tar": 0.625, "far": 0.01, "cra_d": {0.25: 0.6, 0.75: 0.1}, "cra_i": {0.25: 0.9}}


@pytest.mark.parametrize("change, said", [
    ({}, "60 % of true pairs stay accepted under any attack on one image up to 0.25, which is proven; 62.5 % are accepted without an attack, at a threshold that 1 % of false pairs pass."),
    ({"protocol": "paper"}, "60 % of true pairs stay accepted under any attack on one image up to 0.25, by the paper's formula; 62.5 % are"),
    ({"lipschitz_assumed": True}, "up to 0.25, if the Lipschitz constant that was given for the network is right; 62.5 %"),
    ({"cra_d_sound": {0.25: 0.5555}, "sound_lipschitz": 0.9}, "55.5 % of true pairs stay accepted under any attack on one image up to 0.25, which is proven, rounding included;"),
    ({"smoothing": {"alpha": 1e-12, "sigma": 0.5, "threat": "joint", "abstained": 0.0123}},
     "under any attack on both images together up to 0.25, with a confidence of 99.9999999999 % for each (randomised smoothing, noise of sigma 0.5); 62.5 %"),
    ({"tar": None, "cra_d": {0.25: None}}, "90 % of false pairs stay rejected under any attack on one image up to 0.25, which is proven; 99 % are rejected without an attack."),
    ({"far": None}, "62.5 % are accepted without an attack."),
    ({"cra_d": {0.25: None}}, "62.5 % of true pairs are accepted without an attack, at a threshold that 1 % of false pairs pass; nothing is proven of this network under one."),
    ({"tar": None, "far": None}, "There are no pairs")])
def test_the_sentence(change, said):
    assert said in sentence.certified({**SUMMARY, **change})


@pytest.mark.parametrize("share, text", [(1, "100 %"), (0.99999, "99.9 %"), (0.29, "29 %"), (0.0009, "0 %"), (2 / 3, "66.6 %"), (0, "0 %"), (0.57, "57 %")])
def test_no_sentence_promises_more_than_was_found(share, text):
    assert sentence.percent(share) == text


def test_what_was_attacked():
    attacks = {**SUMMARY, "attacks": {"pgd": {"limit": 60}, "own.file:Thing": {}}, "era_d": {"pgd": {0.75: 0.1, 0.25: 0.6}, "own.file:Thing": {0.25: 0.7}, "cw": {}}}
    assert sentence.in_words(attacks, ["pgd", "own.file:Thing", "cw"])[1:] == [
        "PGD left 60 % of the first 60 true pairs accepted at 0.25.", "Thing left 70 % of true pairs accepted at 0.25."]
    report = {"attacked": {"d": 1000, "i": 234}, "settings": {"threat": "both", "steps": 7}, "n_violations": 2}
    assert sentence.audited(report) == ("An audit attacked 1,234 certified pairs just below the radius (both images move, each by eps; 7 steps an attack) and broke 2: "
                                        "these certificates do not hold.")
    smoothed = {"attacked": {"u": 3, "d": 1000, "i": 234}, "settings": {"threat": "one", "steps": 7}, "n_violations": 0, "n_fallen": 1}
    how = "An audit attacked 1,237 certified decisions through the noise just below the radius (one image moves; 7 steps an attack); 1 fell, "
    assert sentence.audited(smoothed) == f"{how}no more than their confidence allows."
    assert sentence.audited({**smoothed, "n_violations": 1}) == f"{how}more than their confidence allows."
