"""The models of params/models.json: found by their name, compared with checksum and card, downloaded when asked for and not before."""
import dataclasses
import functools
import hashlib
import http.server
import json
import threading

import pytest
import torch
from conftest import ROOT, SHARED, needs_shared

import eval.__main__ as command_line
import hubconf
from backbones import FlipAveraged, load_network, models
from eval import verification
from utils import InputError

NAME = "orthonet_faces"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A function that makes a registry of some entries the one in use; its folder is returned."""
    folder = tmp_path / "params"
    folder.mkdir()

    def use(*entries):
        (folder / "models.json").write_text(json.dumps({"models": entries}))
        monkeypatch.setattr(models, "FOLDER", folder)
        monkeypatch.setattr(models, "REGISTRY", folder / "models.json")
        return folder
    return use


def test_a_model_is_its_backbone_with_its_file_and_mirror_images():
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 0.5
    plain = load_network("orthonet", ROOT / "params" / "orthonet_faces.pt")
    found = load_network(NAME)
    assert isinstance(found, FlipAveraged) and not found.training
    assert torch.equal(found(images), (plain(images) + plain(images.flip(-1))) / 2)
    assert torch.equal(getattr(hubconf, NAME)()(images), found(images))


def test_the_card_says_what_the_registry_says():
    model, card = models.find(NAME), (ROOT / "params" / "orthonet_faces.md").read_text()
    assert f"`{model.sha256}`" in card and f"network | `{model.backbone}`" in card and f"`--flip {model.flip}`" in card
    for threshold in model.thresholds:
        assert f"| FAR 1e-{round(-torch.tensor(threshold['far']).log10().item())} | {threshold['tau']:.4f} |" in card
    for pupil in model.pupils:
        assert f"({pupil[0]:g}, {pupil[1]:g})" in card


@needs_shared
def test_its_thresholds_keep_their_far():
    pairs = verification.read_bin(SHARED / "data" / "lfwcrop" / "lfw.bin")
    cosines = verification.pair_cosines(verification.embed_images(load_network(NAME), pairs.images)[0], pairs.left, pairs.right)
    for threshold in models.find(NAME).thresholds:
        assert (cosines[~pairs.same] > threshold["tau"]).mean() <= threshold["far"]
        assert (cosines[~pairs.same] > threshold["tau"] - 2e-4).mean() >= 0.5 * threshold["far"]  # no tighter than it has to be


def test_names_of_models_and_of_backbones_are_not_mixed_up():
    with pytest.raises(InputError, match="model 'orthonet' is not known"):
        load_network("orthonet")
    with pytest.raises(InputError, match="backbone 'orthonet_faces' is not known"):
        load_network(NAME, ROOT / "params" / "orthonet_faces.pt")


def test_a_file_of_another_checksum_is_refused(registry):
    entry = dataclasses.asdict(models.find(NAME))
    folder = registry(entry)
    data = bytearray((ROOT / "params" / "orthonet_faces.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / entry["file"]).write_bytes(data)
    with pytest.raises(InputError, match=r"orthonet_faces.pt: its SHA-256 is [0-9a-f]{64}, expected 7fd3188b"):
        load_network(NAME)


def test_weights_that_are_not_here_say_how_to_get_them(registry):
    registry({"name": "a", "backbone": "sllnet", "note": "", "file": "a.pt", "sha256": 64 * "0", "url": "https://example.org/a.pt"},
             {"name": "b", "backbone": "sllnet", "note": "", "page": "https://example.org/page"}, {"name": "c", "backbone": "sllnet", "note": ""})
    for name, words in (("a", "`python -m eval fetch a` downloads it"), ("b", "by hand from https://example.org/page"),
                        ("c", "no address is known")):
        with pytest.raises(InputError, match=words):
            load_network(name)


def test_thresholds():
    model = models.find(NAME)
    assert model.threshold() == model.threshold(0.01) and model.threshold(0.001)["tau"] > model.threshold()["tau"]
    with pytest.raises(InputError, match="for FAR 0.5, expected --far 0.01 or 0.001"):
        model.threshold(0.5)
    with pytest.raises(InputError, match="no threshold of it is known, expected --tau"):
        models.find("sllnet_published").threshold()


@pytest.mark.parametrize("content", ["{", "[]", '{"models": [{"name": "a"}]}', '{"models": [{"name": "a", "backbone": "b", "note": "", "x": 1}]}'])
def test_a_registry_that_is_none(registry, content):
    (registry() / "models.json").write_text(content)
    with pytest.raises(InputError, match="models.json"):
        models.models()


@pytest.fixture
def server(tmp_path):
    """A folder and its address on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


def test_weights_are_fetched_whole_or_not_at_all(registry, server, capsys):
    served, address = server
    (served / "a.pt").write_bytes(b"weights")
    good = hashlib.sha256(b"weights").hexdigest()
    folder = registry(*({"name": name, "backbone": "sllnet", "note": "", "file": f"{name}.pt", "sha256": digest, "url": f"{address}/{page}"}
                        for name, digest, page in (("good", good, "a.pt"), ("wrong", 64 * "0", "a.pt"), ("missing", good, "b.pt"))))
    assert command_line.main(["fetch", "good"]) == 0
    assert (folder / "good.pt").read_bytes() == b"weights" and capsys.readouterr().out.strip() == str(folder / "good.pt")
    (served / "a.pt").write_bytes(b"others")
    assert command_line.main(["fetch", "good"]) == 0  # it is here: nothing is downloaded
    for name in ("wrong", "missing", "other"):
        assert command_line.main(["fetch", name]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "invalid hash" in lines[0] and "404" in lines[1] and "'other' is not known" in lines[2]
    assert sorted(path.name for path in folder.iterdir()) == ["good.pt", "models.json"]


def test_list_shows_them(capsys):
    assert command_line.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*models.models(), "uniface"))
