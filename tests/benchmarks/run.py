"""Speed and memory next to plain implementations of the same thing: `make bench`.

Each row alternates the two in one process, or in a pair of processes where memory is measured, and reports medians and their ratio. Rows
that need a file of real faces make one of synthetic faces. Prints a table and writes out/bench/bench.json.
"""
import argparse
import contextlib
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from plain import plain, with_constant_t  # noqa: E402

from backbones import get_backbone  # noqa: E402
from backbones.custom_layers import RescaledOnce  # noqa: E402
from utils.utils_files import atomic_write  # noqa: E402


def alternate(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of each, taken in turns after one unmeasured call."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, found in zip((one, other), times):
            started = time.perf_counter()
            function()
            if repeat:
                found.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def row(work: str, against: str, ours: float, theirs: float, unit: str, target: float, ratio: "float | None" = None) -> dict:
    ratio = theirs / ours if ratio is None else ratio
    print(f"{work:45} {ours:10.4g} {theirs:10.4g} {unit:10} {ratio:7.2f}x (target {target:g}x)  against {against}", flush=True)
    return dict(work=work, against=against, ours=ours, theirs=theirs, unit=unit, ratio=ratio, target=target)


def random_network(name: str = "sllnet"):
    """Random weights: under the orthogonal start many correlations are rounding noise around 0."""
    torch.manual_seed(0)
    network = get_backbone(name)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p) / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.1 * torch.randn_like(p))
    return network


def step(network, images) -> None:
    network.zero_grad(set_to_none=True)
    with RescaledOnce(network) as rescaling:
        rescaling.last()
        network(images).square().sum().backward()


def plain_step(network, images) -> None:
    network.zero_grad(set_to_none=True)
    network(images).square().sum().backward()


def embedding_rows(quick: bool) -> list[dict]:
    ours = random_network().eval()
    theirs = plain(ours)
    rows = []
    for batch, target in ((1, 20), (16, 3.0), (64, 1.7)):
        images = torch.rand(batch, 3, 112, 112) - 0.5
        with torch.no_grad():
            a, b = ours(images), theirs(images)
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), "the two do not agree"
            seconds = alternate(lambda: ours(images), lambda: theirs(images), 2 if quick else 5)
        rows.append(row(f"embed, batch {batch}", "t by padded convolution", *seconds, "s", target))
    return rows


def training_rows(quick: bool) -> list[dict]:
    ours = random_network()
    theirs, constant = plain(ours), with_constant_t(ours)
    rows = []
    for batch, target in ((8, 2.0), (32, 1.5)):
        images = torch.rand(batch, 3, 112, 112) - 0.5
        step(ours, images)
        plain_step(theirs, images)
        print(f"largest relative difference of a gradient: {max(differences(ours, theirs)):.1e}", flush=True)
        seconds = alternate(lambda: step(ours, images), lambda: plain_step(theirs, images), 1 if quick else 3)
        rows.append(row(f"training step, batch {batch}", "t by padded convolution", *seconds, "s", target))
    seconds = alternate(lambda: step(ours, images), lambda: plain_step(constant, images), 1 if quick else 3)
    rows.append(row("training step, batch 32: its time", "t held constant", *seconds, "s", 1.2, ratio=seconds[0] / seconds[1]))
    return rows


def differences(ours, theirs) -> list[float]:
    """||a - b|| / ||b|| for the gradients of each weight."""
    return [((a.grad - b.grad).norm() / b.grad.norm()).item() for a, b in zip(ours.parameters(), theirs.parameters()) if a.grad is not None]


def memory_row(quick: bool) -> list[dict]:
    peaks = [int(subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True).stdout)
             for kind in ("ours", "plain")]
    return [row("training step, batch 32: peak memory", "plain autograd", *(p / 2**20 for p in peaks), "MiB", 0.75, ratio=peaks[0] / peaks[1])]


def peak(kind: str) -> int:
    """Bytes that a training step adds to the process at its peak."""
    network = random_network()
    network = plain(network) if kind == "plain" else network
    images = torch.rand(32, 3, 112, 112) - 0.5
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (plain_step if kind == "plain" else step)(network, images)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--only", help="rows of this group only: embedding, training, memory, data, evaluation, attack, help")
    parser.add_argument("--out", default=str(ROOT / "out" / "bench" / "bench.json"))
    parser.add_argument("--weights", help="a sllnet_small checkpoint, for the attack row")
    parser.add_argument("--bin", help="the .bin that the attack row attacks")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.weights and args.bin:
        ATTACKED.extend([args.weights, args.bin])
    if args.peak:
        print(peak(args.peak))
        return
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(machine)
    rows = []
    for name, group in GROUPS.items():
        if args.only in (None, name):
            rows += group(args.quick)
    with atomic_write(args.out) as file:
        json.dump({"machine": machine, "rows": rows}, file, indent=2)
    print(args.out)


def data_rows(quick: bool) -> list[dict]:
    """Read and decode every record of a file of synthetic faces, here and by MXNet's own reader and decoder."""
    from datasets import RecordDataset, SyntheticFaces, get_dataloader
    from utils.recordio import RecordWriter, import_mxnet, pack
    from utils.utils_image import encode_image
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        faces = SyntheticFaces(100, 10)
        copies = 2 if quick else 10  # a file long enough that starting workers does not count
        with RecordWriter(Path(folder) / "train") as writer:
            writer.write(0, pack([float(len(faces) * copies + 1), float(len(faces) * copies + 101)]))
            encoded = [(pack(float(label), image=encode_image(image, "jpeg"))) for image, label in faces]
            for key in range(len(faces) * copies):
                writer.write(key + 1, encoded[key % len(faces)])
        dataset = RecordDataset(folder)
        for image, _ in (dataset[0],):
            assert image.shape == (3, 112, 112)
        torch.set_num_threads(1)

        def ours() -> None:
            for index in range(len(dataset)):
                dataset[index]

        with contextlib.suppress(Exception):
            mxnet = import_mxnet()
            record = mxnet.recordio.MXIndexedRecordIO(f"{folder}/train.idx", f"{folder}/train.rec", "r")

            def theirs() -> None:
                for key in range(1, len(dataset) + 1):
                    mxnet.image.imdecode(mxnet.recordio.unpack(record.read_idx(key))[1]).asnumpy()

            seconds = alternate(ours, theirs, 3)
            rows.append(row("RecordIO read + decode, 1 process", "MXNet", *(len(dataset) / s for s in seconds), "images/s", 1.0,
                            ratio=seconds[1] / seconds[0]))
        loaders = [get_dataloader(dataset, 100, num_workers=workers) for workers in (2, 1)]
        seconds = alternate(*(lambda loader=loader: [None for _ in loader] for loader in loaders), 3)
        rows.append(row("the same, 2 workers", "1 worker", *(len(dataset) / s for s in seconds), "images/s", 1.7, ratio=seconds[1] / seconds[0]))
    return rows


def evaluation_rows(quick: bool) -> list[dict]:
    """Table 1 with four budgets, against a forward pass over both images of every pair for each kind and budget."""
    from eval import records
    from eval.verification import embed_images, read_bin
    network = get_backbone("sllnet_small").eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        pair_set = read_bin(_pairs(folder, 60 if quick else 300))
        both = [image for pair in zip(pair_set.left, pair_set.right) for image in pair]
        every = [pair_set.images[number] for number in both]

        def theirs() -> None:
            for _ in range(2 + 2 + 2):  # U, D and I at two budgets each
                embed_images(network, every)

        seconds = alternate(lambda: records.certify(network, pair_set, far=1e-2, tau=0.3), theirs, 1 if quick else 3)
    return [row(f"Table 1, 4 budgets, {len(pair_set.same)} pairs", "a pass per kind and budget", *seconds, "s", 6)]


def _pairs(folder: str, count: int) -> str:
    """A .bin in which, as in LFW's, some images are used several times."""
    from datasets import synthetic_pairs
    from utils.build_dataset import write_bin
    images, same = synthetic_pairs(num_pairs=count)
    for pair in range(0, count, 3):
        images[2 * pair + 1] = images[2 * ((pair + 1) % count)]
    write_bin(f"{folder}/pairs.bin", images, same)
    return f"{folder}/pairs.bin"


def attack_rows(quick: bool) -> list[dict]:
    """Forward passes (in images) of ERA by PGD-20, U, D and I at two budgets each, against every image of every pair for every step."""
    from eval.__main__ import main as evaluate
    if not ATTACKED:
        print("attack: give --weights (of sllnet_small) and --bin for the passes that ERA by PGD takes")
        return []
    with tempfile.TemporaryDirectory() as folder:
        weights, bin_file = ATTACKED
        status = evaluate(["attack", "--bin", bin_file, "--backbone", "sllnet_small", "--weights", weights, "--far", "1e-2", "--attack", "pgd",
                           "--out", folder, *(["--limit", "100"] if quick else [])])
        assert status == 0
        summary = json.loads((Path(folder) / "summary.json").read_text())
    images, pairs = (min(count, 100) if quick else count for count in (summary["n_images"], summary["n_pairs"]))
    plain_passes = 2 * (images + 2 * pairs) * (20 + 1)  # two budgets; both sides of a pair; 20 steps and a last look
    return [row("ERA by PGD-20, forward passes", "every pair for every step", summary["attacks"]["pgd"]["forward_passes"], plain_passes,
                "images", 3)]


def help_row(quick: bool) -> list[dict]:
    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)

    ours, theirs = alternate(lambda: run("-m", "eval", "--help"), lambda: run("-c", "import torch"), 3)
    return [row("python -m eval --help", "python -c 'import torch'", ours, theirs, "s", 1.0)]


ATTACKED: list[str] = []
GROUPS = {"embedding": embedding_rows, "training": training_rows, "memory": memory_row, "data": data_rows, "evaluation": evaluation_rows,
          "attack": attack_rows, "help": help_row}

if __name__ == "__main__":
    main()
