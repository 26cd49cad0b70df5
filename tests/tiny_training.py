"""train.py with a network of a few thousand weights on images of 16 pixels, for tests that start, stop and kill real processes.

    python tests/tiny_training.py key=value ...        also under torchrun

FAULTS="3:1:SIGKILL 5:0:SIGTERM" sends process 1 a signal at step 3, and process 0 another one at step 5, each once for all restarts.
"""
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import small_world  # noqa: E402, F401  for its network "tiny"

import train  # noqa: E402
from backbones import register  # noqa: E402
from config import config  # noqa: E402
from utils.distributed import rank  # noqa: E402
from utils.images import encode_image  # noqa: E402
from utils.recordio import RecordWriter, pack  # noqa: E402
from utils.utils_callbacks import CallBackLogging  # noqa: E402

SETTINGS = ["backbone=tiny", "batch_size=8", "num_epoch=2", "frequent=1", "num_workers=0", "device=cpu", "xi=1", "val_targets=[]",
            "save_steps=2", "verbose=1000"]


@register("with_batch_norm", image_size=(3, 16, 16), lipschitz=False)
class WithBatchNorm(nn.Sequential):
    """[N, 3, 16, 16] -> [N, 32] with running means, which a step that is not finite must not spoil."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 32, bias=False))


def write_faces(folder: Path, people: int = 12, bad: "tuple[int, ...]" = (), seed: int = 0) -> Path:
    """train.rec and train.idx with 4 images of 16 pixels of each of `people`; those of the keys in `bad` are none."""
    noise = torch.Generator().manual_seed(seed)
    with RecordWriter(folder / "train") as writer:
        writer.write(0, pack([4 * people + 1, 4 * people + 1 + people]))
        for key in range(1, 4 * people + 1):
            image = torch.randint(256, (3, 16, 16), generator=noise, dtype=torch.uint8)
            writer.write(key, pack((key - 1) // 4, key, b"no image" if key in bad else encode_image(image, "png")))
    return folder


def with_faults() -> None:
    """Let `CallBackLogging` send this process the signals that FAULTS has for it."""
    plain, output = CallBackLogging.__call__, next(Path(a[7:]) for a in sys.argv if a.startswith("output="))

    def faulty(self, step, *rest):
        due = plain(self, step, *rest)
        for fault in os.environ.get("FAULTS", "").split():
            at, who, name = fault.split(":")
            done = output / f"done_{at}_{who}"
            if (int(at), int(who)) == (step, rank()) and not done.exists():
                done.touch()
                os.kill(os.getpid(), getattr(signal, name))
        return due
    CallBackLogging.__call__ = faulty


if __name__ == "__main__":
    with_faults()
    settings = {setting.partition("=")[0]: setting for setting in (*SETTINGS, *sys.argv[1:])}
    sys.exit(train.run(config, list(settings.values())))
