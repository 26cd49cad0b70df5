"""The jitter of training images against loops over pixels, and what its numbers depend on."""
import math

import numpy as np
import pytest
import torch
from conftest import ROOT  # noqa: F401

import augmentation
from augmentation import SHIFT, TURN, ZOOM, jittered


def images(count=5, height=9, width=7, seed=0):
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5
    return noise.contiguous(memory_format=torch.channels_last)


def mirrored(place, side):
    """The pixel, from 0, that a place on the line of pixels means: 0 1 2 2 1 0 0 1 2 for a side of 3."""
    place %= 2 * side
    return place if place < side else 2 * side - 1 - place


def by_loops(image, turn, zoom, right, down):
    """One image [C, H, W], float64, pixel by pixel."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y = column - (width - 1) / 2, row - (height - 1) / 2
            at_x = (1 + zoom) * (math.cos(turn) * x - math.sin(turn) * y) + width * right + (width - 1) / 2
            at_y = (1 + zoom) * (math.sin(turn) * x + math.cos(turn) * y) + height * down + (height - 1) / 2
            left, top = math.floor(at_x), math.floor(at_y)
            for i, share_y in ((top, 1 - (at_y - top)), (top + 1, at_y - top)):
                for j, share_x in ((left, 1 - (at_x - left)), (left + 1, at_x - left)):
                    out[:, row, column] += share_x * share_y * image[:, mirrored(i, height), mirrored(j, width)]
    return out


@pytest.mark.parametrize("amount", [0.5, 1.0, 6.0])
@pytest.mark.parametrize("size", [(9, 7), (6, 6)])
def test_it_is_the_similarity_transform(amount, size):
    batch = images(4, *size)
    before = batch.clone()
    found = jittered(batch, amount, seed=3, step=8)
    assert found.shape == batch.shape and found.is_contiguous(memory_format=torch.channels_last) and torch.equal(batch, before)
    uniform = np.random.default_rng([3, 8, 2]).uniform(-1, 1, (4, 4))
    for image, moved, numbers in zip(batch, found, uniform):
        limits = amount * np.array([0.12, 0.08, 0.03, 0.03])
        assert np.allclose(moved.double().numpy(), by_loops(image.double().numpy(), *(limits * numbers)), atol=2e-5)
        assert (moved - image).abs().max() > 0.01


def test_nothing_is_done_without_it():
    batch = images()
    assert jittered(batch, 0.0, 0, 0) is batch


def test_the_numbers_follow_seed_step_and_place_and_fill_their_range(monkeypatch):
    def numbers(*key, count=6, rank=0, world=1):
        monkeypatch.setattr(augmentation, "rank", lambda: rank)
        monkeypatch.setattr(augmentation, "world_size", lambda: world)
        return augmentation._numbers(count, *key)

    whole = numbers(1, 2)
    for world in (2, 3):
        for rank in range(world):
            assert torch.equal(numbers(1, 2, count=6 // world, rank=rank, world=world), whole[rank::world])
    assert len({tuple(numbers(*key).flatten().tolist()) for key in [(0, 0), (0, 1), (1, 0), (2**40, 1)]}) == 4
    scaled = numbers(0, 0, count=20000) / torch.tensor([TURN, ZOOM, SHIFT, SHIFT], dtype=torch.float64)
    assert scaled.abs().max() <= 1 and scaled.abs().amax(0).min() > 0.999
    assert scaled.mean(0).abs().max() < 0.02 and (scaled.square().mean(0) - 1 / 3).abs().max() < 0.02
    assert (torch.corrcoef(scaled.T) - torch.eye(4)).abs().max() < 0.03, "each by itself"


def test_ranks_see_the_images_of_one_process(monkeypatch):
    batch = images(6, 12, 12)
    whole = jittered(batch, 1.0, 0, 5)
    monkeypatch.setattr(augmentation, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(augmentation, "rank", lambda: rank)
        assert torch.equal(jittered(batch[rank::2], 1.0, 0, 5), whole[rank::2])
