"""What long work says of itself: what it is to cost, first, and a line a minute where there is no terminal. No test waits: the clock is set."""
import io
import sys

import pytest
import torch
from small_world import command, world  # noqa: F401

import attacks
from eval import verification
from utils import progress
from utils.images import encode_image


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by `clock.step` seconds whenever it is looked at."""
    class Clock:
        now, step = 0., 0.

        def __call__(self):
            self.now += self.step
            return self.now
    monkeypatch.setattr(progress, "clock", Clock())
    return progress.clock


def test_a_line_a_minute_and_how_long_it_takes(clock, capsys):
    work = progress.Work("lfw attack pgd", 300, "at most 15 attacks", each=20)
    assert capsys.readouterr().err == "lfw attack pgd: at most 15 attacks\n", "at once"
    with work.stage("U", items=10) as stage:
        # a pass every ten seconds, of 300: 200 of this stage, and 100 of another
        for now, said in ((5, ""), (10, "lfw attack pgd: about 25 min at most\n"), (30, ""), (59, ""),
                          (60, "lfw attack pgd: U, 0 of 10 images after 1 min, at most about 59 min to go\n"), (110, ""),
                          (120, "lfw attack pgd: U, 0 of 10 images after 2 min, at most about 1 h 24 min to go\n")):
            clock.now = now
            stage.tick(1)
            assert capsys.readouterr().err == said, now
        clock.now = 210
        stage.update(4, "ERA <= 50%")  # 7 passes in 210 s; 6 images are left, and the other stage
        assert capsys.readouterr().err == "lfw attack pgd: U, 4 of 10 images, ERA <= 50% after 4 min, at most about 1 h 50 min to go\n"


def test_what_is_over_sooner_than_planned_leaves_less(clock, capsys):
    work = progress.Work("", 1000, each=50)
    with work.stage("first", items=10, planned=10) as stage:
        clock.now = 30
        stage.tick(10)
        stage.update(10)  # each of them took one pass
    with work.stage("second", items=2, planned=10) as stage:
        clock.now = 61
        stage.tick(50)
    assert capsys.readouterr().err.splitlines()[-1] == f"second, 0 of 2 images after 1 min, at most about {progress.duration(50 * 61 / 60)} to go"


def test_short_work_says_nothing(clock, capsys):
    with progress.Work("x", 100).stage("", items=100) as stage:
        for clock.now in range(50):
            stage.tick(2)
            stage.update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_has_a_bar_and_another_process_nothing(clock, monkeypatch, shown):
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    monkeypatch.setattr(sys, "stderr", Terminal())
    clock.step = 100
    with progress.Work("x", 100, "first", shown).stage("U", items=100) as stage:
        stage.tick(5)
        stage.update(5, "ERA <= 50%")
    text = sys.stderr.getvalue()
    assert ("first\n" in text and "x U" in text and "100" in text) if shown else text == ""
    assert "after" not in text, "no lines beside a bar"


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 0 min"), (7800, "2 h 10 min")])
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_embedding_says_a_line_a_minute(clock, capsys):
    clock.step = 20
    images = [encode_image(torch.full((3, 4, 4), number, dtype=torch.uint8), "png") for number in range(12)]
    verification.embed_images(torch.nn.Flatten(), images, batch_size=2, progress="lfw")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("lfw: about ") and lines[1].startswith("lfw: ") and " of 12 images after " in lines[1] and 3 <= len(lines) <= 6


@pytest.mark.parametrize("what, stages", [(("attack", "--attack", "ddn", "--steps", "4"), "UDI"), (("audit", "--steps", "4", "--restarts", "1"), "UDI"),
                                          (("audit", "--threat", "joint", "--steps", "4", "--restarts", "1"), "DI")])
def test_commands_say_what_they_cost_and_then_where_they_are(world, clock, capsys, what, stages):
    assert command(world, "certify") == 0
    clock.step = 25
    capsys.readouterr()
    assert command(world, *what) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("faces: ")]
    assert lines[0].startswith(f"faces {what[0]} ") and " attacks, of at most " in lines[0]
    assert all(any(f": {kind}, " in line and " after " in line for line in lines) for kind in stages)
    assert sum("at most" in line and line.startswith("faces") for line in lines) == len(lines)


NETWORK = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8, bias=False))


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize("name", ["pgd", "apgd", "fgsm", "cw", "ddn"])
def test_no_attack_takes_more_passes_than_it_says(name, protocol):
    """And those that never succeed, whom nothing stops, take all of them but for the last bisections."""
    settings = {} if name == "fgsm" else {"steps": 5}
    settings |= {} if name in ("fgsm", "cw") else {"restarts": 3}
    eps = None if attacks.ATTACKS.find(name).form(protocol).minimum_norm else 1e-6
    attack = attacks.preset(name, eps, protocol, **settings)
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    for tau, all_of_them in ((-0.9999, True), (0.99, False)):
        clean = NETWORK(images).detach()
        result = attack(NETWORK, images, clean, "untargeted", tau, clean=clean)
        assert result.forward_passes <= len(images) * attack.most_passes
        assert eps is None or not (all_of_them and result.success.any())
        if all_of_them and not result.success.any():
            bisections = 8 if attack.minimum_norm and not attack.published else 0
            assert result.forward_passes == len(images) * (attack.most_passes - bisections)
