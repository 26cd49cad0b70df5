"""What sends new users astray is answered in one line that says what the file is, what was expected and what to do instead."""
import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import pytest
import small_world
import tiny_training
from conftest import ROOT
from PIL import Image
from small_world import command, world  # noqa: F401
from tiny_training import SETTINGS, write_faces

import eval.__main__ as command_line
import train
from backbones import export
from config import config
from utils import build_dataset
from utils.files import is_a, kind_of


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, kind)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("lfw.bin", b"x")
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
OTHER_FILES = {
    "jpeg": (picture("JPEG"), "a JPEG"), "png": (picture("PNG"), "a PNG"), "bmp": (picture("BMP"), "a BMP"), "webp": (picture("WEBP"), "a WebP"),
    "lfs": (LFS, "`git lfs pull`"), "html": (b"\n<!DOCTYPE html>\n<html>404</html>", "an HTML page"), "zip": (zipped(), "a zip"),
    "gzip": (gzip.compress(b"x"), "gunzip"), "empty": (b"", "an empty file"), "list": (b"lfw/a/1.jpg lfw/a/2.jpg 1\n", "a text"),
    "umlauts": ("M\xfcller/1.jpg M\xfcller/2.jpg 1\n".encode() * 20, "a text"), "zeros": (bytes(500), "zeros")}


def said(capsys) -> str:
    """What a command wrote: one line on standard error."""
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and found.err.endswith("\n"), found
    return found.err


@pytest.mark.parametrize("content, words", OTHER_FILES.values(), ids=OTHER_FILES)
def test_a_file_of_another_kind_is_called_by_its_name(world, capsys, content, words):  # noqa: F811
    (world / "other.bin").write_bytes(content)
    assert command(world, "certify", bin="other.bin") == 2
    message = said(capsys)
    assert "other.bin: " in message and words in message and "images and labels of pairs" in message and ("opcode" not in message or words == "a text")
    (world / "tiny.pt").write_bytes(content)
    assert command(world, "certify", out="new") == 2
    message = said(capsys)
    assert "tiny.pt: " in message and words in message and "bytes beginning with" not in message
    assert not (world / "new").exists()


def test_pickles_and_checkpoints_in_each_others_place(world, capsys):  # noqa: F811
    shutil.copy(world / "tiny.pt", world / "weights.bin")
    assert command(world, "certify", bin="weights.bin") == 2 and "a zip archive, as .pt" in said(capsys)
    shutil.copy(world / "faces.bin", world / "tiny.pt")
    assert command(world, "certify") == 2 and "a pickle, as .bin files of pairs are" in said(capsys)


def test_what_damaged_pickles_and_unknown_bytes_are_is_not_guessed(world, capsys):  # noqa: F811
    for content in (pickle.dumps(([b"x"] * 8, [True] * 4), protocol=0)[:-20], b"\x81\x02\x03\x04" * 20):
        assert kind_of(content) == is_a(content) == ""
        (world / "other.bin").write_bytes(content)
        assert command(world, "certify", bin="other.bin") == 2 and ": byte " in said(capsys)
    assert is_a(b"a line of an index") == is_a(b"") == "" and is_a(LFS).startswith(" (a pointer")


def test_an_occupied_folder(world, capsys):  # noqa: F811
    assert command(world, "certify") == 0
    before = (world / "out" / "summary.json").read_bytes()
    capsys.readouterr()
    for what, more in (("certify", {"backbone": "tight"}), ("attack", {"tau": "0.4"}), ("audit", {"backbone": "tight"})):
        assert command(world, what, *(["--attack", "fgsm"] if what == "attack" else []), **more) == 2
        assert "choose another folder (--out)" in said(capsys)
    assert (world / "out" / "summary.json").read_bytes() == before


def test_images_of_another_size(world, capsys):  # noqa: F811
    small_world.write_bin(world / "large.bin", small_world.faces(40))
    assert command(world, "certify", bin="large.bin") == 2
    message = said(capsys)
    assert "large.bin: image 0: images of [3, 40, 40] do not fit tiny, which is made for [3, 16, 16]; --resize" in message and "mat1" not in message
    assert command(world, "certify", "--resize", bin="large.bin") == 0
    capsys.readouterr()
    for person in "ab":
        (world / "people" / person).mkdir(parents=True)
        for number, image in enumerate(small_world.faces(40)[:4]):
            (world / "people" / person / f"{number}.png").write_bytes(small_world.encode_image(image, "png"))
    folder = str(world / "people")
    assert command_line.main(["identify", "--rec", folder, "--backbone", "tiny", "--weights", str(world / "tiny.pt"), "--device", "cpu",
                              "--out", str(world / "found")]) == 2
    message = said(capsys)
    assert f"--rec {folder}: images of [3, 40, 40] do not fit tiny" in message and "build_dataset rec --images FOLDER --size" in message
    assert train.run(config, [*SETTINGS, f"rec={folder}", f"output={world / 'run'}"]) == 2
    assert f"rec={folder}: images of [3, 40, 40] do not fit tiny, which is made for [3, 16, 16]; python -m utils" in said(capsys)
    assert build_dataset.main(["rec", "--images", folder, "--size", "16", "--out", str(world / "sized" / "train")]) == 0
    assert train.run(config, [*SETTINGS, f"rec={world / 'sized'}", f"output={world / 'run'}"]) == 0


def test_a_training_state_given_as_weights(world, capsys):  # noqa: F811
    run = world / "run"
    assert train.run(config, [*SETTINGS, f"rec={write_faces(world)}", f"output={run}"]) == 0
    state = max(run.glob("state_*.pt"))
    shutil.copy(state, world / "tiny.pt")
    shutil.copy(state, run / "tiny.pt")
    small_world.write_bin(run / "faces.bin", small_world.faces(16))
    capsys.readouterr()
    assert command(world, "certify") == 2 and "found a training state, for `resume`" in (message := said(capsys)) and "model_*.pt" in message
    assert command(run, "certify") == 2 and f"weights are {run / 'model_final.pt'}" in said(capsys)
    shutil.copy(run / "model_final.pt", run / "tiny.pt")
    assert command(run, "certify") == 0


ARGUMENTS = {
    "eps 0": (("--eps", "0"), "--eps: 0: expected a number above 0"), "tau 2": (("--tau", "2"), "--tau: 2: expected a number above -1 and below 1"),
    "far": (("--far", "one"), "--far: 'one' is not a number"), "workers": (("--num-workers", "-1"), "whole number, at least 0 and at most 1024"),
    "batch": (("--batch-size", "0"), "--batch-size: 0: expected a whole number, at least 1"), "protocol": (("--protocol", "x"), "invalid choice"),
    "unknown": (("--nonsense",), "unrecognized arguments: --nonsense")}


@pytest.mark.parametrize("more, words", ARGUMENTS.values(), ids=ARGUMENTS)
def test_errors_of_arguments_are_one_line(world, capsys, more, words):  # noqa: F811
    with pytest.raises(SystemExit) as error:
        command(world, "certify", *more)
    message = said(capsys)
    assert error.value.code == 2 and message.startswith("error: ") and words in message and "--help" in message
    assert not (world / "out").exists()


def test_other_command_lines_too(world, capsys):  # noqa: F811
    for main, argv, words in ((command_line.main, [], "COMMAND"), (command_line.main, ["certfy"], "'certify'"),
                              (build_dataset.main, ["rec"], "required: --images"), (export.main, ["--out", "x"], "required: --backbone")):
        with pytest.raises(SystemExit) as error:
            main(argv)
        assert error.value.code == 2 and words in said(capsys)
    assert command(world, "attack", "--attack", "pgdd") == 2 and "did you mean 'pgd'" in said(capsys)
    with pytest.raises(SystemExit) as error:
        command_line.main(["certify", "--help"])
    assert error.value.code == 0 and capsys.readouterr().out.startswith("usage:"), "who asks for it gets all of it"


@pytest.mark.parametrize("module, arguments, words", [
    (tiny_training.__file__, ["rec=/nowhere/faces", "output={out}"], "train: rec=/nowhere/faces: does not exist; expected a folder"),
    ("-m", ["eval", "attack", "--attack", "pgd", "--bin", "/nowhere.bin", "--backbone", "sllnet_small", "--weights", "w.pt", "--out", "{out}",
            "--tau", "2"], "error: argument --tau: 2: expected a number")])
def test_the_report_of_torchrun_ends_with_what_is_wrong(tmp_path, module, arguments, words):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launcher, module, *(each.format(out=tmp_path / "out") for each in arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    *_, last, border = done.stderr.strip().splitlines()
    assert done.returncode == 1 and words in last and set(border) == {"="}, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_fresh_clone_with_an_environment_installs_nothing(tmp_path):
    """Whatever the times of its files are: pip is asked whether anything is missing once for each content of the requirements."""
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, log = tmp_path / "old" / "bin" / "python", tmp_path / "calls"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    python.chmod(0o755)

    def calls() -> list[str]:
        log.write_text("")
        subprocess.run(["make", "install", "VENV=old", "PYTHON=false"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        return log.read_text().splitlines()
    asked = calls()
    assert len(asked) == 1 and "--no-index --dry-run" in asked[0]
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        os.utime(tmp_path / name)
    assert calls() == []
    (tmp_path / "requirements.txt").write_text("another\n")
    assert len(calls()) == 1


def test_a_launcher_that_keeps_no_reports(world, capsys, monkeypatch):  # noqa: F811
    for place in ("", str(world / "no" / "folder" / "error.json")):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", place)
        assert command_line.main(["table", str(world / "none")]) == 2 and "none" in said(capsys)
