"""The weights in params/: they load by their name, are 1-Lipschitz, certify, and are what their card says."""
import hashlib
import re

import pytest
import torch
from conftest import ROOT, SHARED, needs_shared

import eval.__main__ as command_line
from backbones import lipschitz_bound, load_network, stored_network
from datasets import synthetic_pairs
from eval.store import results
from utils.build_dataset import write_bin

WEIGHTS, CARD = ROOT / "params" / "orthonet_faces.pt", (ROOT / "params" / "orthonet_faces.md").read_text()
IMAGE = (3, 112, 112)


def told(pattern):
    found = re.search(pattern, CARD)
    assert found, f"the card says nothing of the form {pattern}"
    return float(found.group(1))


def certify(tmp_path, bin_file, *more):
    assert command_line.main(["certify", "--bin", str(bin_file), "--backbone", "orthonet", "--weights", str(WEIGHTS), "--out", str(tmp_path),
                              "--num-workers", "0", "--device", "cpu", *more]) == 0
    (summary,) = results.read_summaries(tmp_path).values()
    return summary


def test_the_card_is_of_this_file():
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in CARD
    assert WEIGHTS.stat().st_size <= 15 * 2**20


def test_it_is_the_network_of_the_card_with_its_constant():
    network = stored_network("orthonet", WEIGHTS)
    assert sum(p.numel() for p in network.parameters()) == told(r"(\d+) parameters")
    assert lipschitz_bound(network, IMAGE) == pytest.approx(told(r"\((0\.\d+), rounded up\)"), abs=1e-7)


def test_it_certifies_pairs_it_has_never_seen(tmp_path):
    write_bin(tmp_path / "generated.bin", *synthetic_pairs(num_pairs=40, seed=1))
    summary = certify(tmp_path / "out", tmp_path / "generated.bin", "--far", "0.1", "--sound", "--flip", "average")
    assert summary["feature_norm"] > 2 and summary["tar"] > 0.3


def test_an_attack_of_a_radius_moves_an_embedding_by_no_more():
    network = load_network("orthonet", WEIGHTS)
    images = torch.rand(4, *IMAGE, generator=torch.Generator().manual_seed(0)) - 0.5
    direction = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    changed = images.clone().requires_grad_()
    (network(changed) * direction).sum().backward()  # the steepest way, linearly
    step = changed.grad / changed.grad.flatten(1).norm(dim=1)[:, None, None, None]
    moved = (network(images + step) - network(images)).norm(dim=1)
    assert (moved <= 1 + 1e-5).all() and (moved > 0.2).all()


@needs_shared
def test_its_figures_are_those_of_the_card(tmp_path):
    summary = certify(tmp_path, SHARED / "data" / "lfwcrop" / "lfw.bin", "--far", "1e-2", "--flip", "average")
    tau, tar, cra_d = (told(rf"FAR 1e-2 \|{' [^|]+ [|]' * column} (\d+\.\d+)") for column in range(3))
    assert summary["tau"] == pytest.approx(tau, abs=1e-3)
    assert [100 * summary["tar"], 100 * summary["cra_d"][0.25]] == pytest.approx([tar, cra_d], abs=0.2)
