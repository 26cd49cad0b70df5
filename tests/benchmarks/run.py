"""Speed and memory next to plain implementations of the same thing: `make bench`.

Each row alternates the two in one process, or in a pair of processes where memory is measured, and reports medians and their ratio. Rows
that need a file of real faces make one of synthetic faces; those of training steps on a GPU are there where one is. Prints a table and
writes out/bench/bench.json.
"""
import argparse
import copy
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from check_gpu import measured_steps  # noqa: E402
from large_index import write  # noqa: E402
from launches import CEILINGS, Launches  # noqa: E402
from memory import memory  # noqa: E402
from plain import plain, with_constant_t  # noqa: E402

from backbones import get_backbone  # noqa: E402
from backbones.custom_layers import RescaledOnce  # noqa: E402
from backbones.proof import fold  # noqa: E402
from utils import InputError  # noqa: E402
from utils.files import atomic_write  # noqa: E402


def alternate(one: Callable[[], object], other: Callable[[], object], repeats: int, warm: bool = False) -> tuple[float, float]:
    """Median seconds of each, taken in turns, after one unmeasured call unless they are warm."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(warm, repeats + 1):
        for function, found in zip((one, other), times):
            started = time.perf_counter()
            function()
            if repeat:
                found.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def row(work: str, against: str, ours: float, theirs: float, unit: str, target: str, value: "float | None" = None) -> dict:
    """One row, printed as it comes. value: what the target ("at least 3x", "at most 600 MiB") is about; None: theirs / ours."""
    value = theirs / ours if value is None else value
    direction, bound = target.rsplit(" ", 1)
    limit = float(bound.removesuffix("x")) if bound.endswith("x") else float(direction.rsplit(" ", 1)[1])
    met = value >= limit if target.startswith("at least") else value <= limit
    result = dict(work=work, against=against, ours=ours, theirs=theirs, unit=unit, value=value, target=target, met=met)
    print(" | ".join(cells(result)), flush=True)
    return result


HEAD = ("work", "here", "plain", "plain form", "found", "target", "met")


def cells(row: dict) -> tuple[str, ...]:
    """A row as HEAD names its cells."""
    unit = row["target"].rsplit(" ", 1)[1]
    found = f"{row['value']:.2f}x" if unit.endswith("x") else f"{row['value']:.3g} {unit}"
    theirs = f"{row['theirs']:.4g} {row['unit']}" if row["theirs"] is not None else "-"
    return row["work"], f"{row['ours']:.4g} {row['unit']}", theirs, row["against"], found, row["target"], "yes" if row["met"] else "no"


def markdown(result: dict) -> str:
    """The table as the README quotes it."""
    lines = [HEAD, ["---"] * len(HEAD), *map(cells, result["rows"])]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", f"Machine: {result['machine']}."])


def machine() -> str:
    """What the figures depend on."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] \
        if Path("/proc/cpuinfo").exists() else []
    return (f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} "
            f"threads, Python {platform.python_version()}, torch {torch.__version__}")


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
    network = random_network().eval()
    ours, theirs = fold(network), plain(network)  # as load_network has it
    rows = []
    for batch, target in ((1, "20x"), (16, "3.0x"), (64, "1.7x")):
        images = torch.rand(batch, 3, 112, 112) - 0.5
        with torch.no_grad():
            a, b = ours(images), theirs(images)
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), "the two do not agree"
            seconds = alternate(lambda: ours(images), lambda: theirs(images), 2 if quick else 5)
        rows.append(row(f"embed, batch {batch}", "t by padded convolution", *seconds, "s", f"at least {target}"))
    return rows


def training_rows(quick: bool) -> list[dict]:
    ours = random_network()
    theirs, constant = plain(ours), with_constant_t(ours)
    rows = gradient_rows(ours, theirs)
    for batch, target in ((8, "2.0x"), (32, "1.5x")):
        images = torch.rand(batch, 3, 112, 112) - 0.5
        seconds = alternate(lambda: step(ours, images), lambda: plain_step(theirs, images), 1 if quick else 3)
        rows.append(row(f"training step, batch {batch}", "t by padded convolution", *seconds, "s", f"at least {target}"))
    seconds = alternate(lambda: step(ours, images), lambda: plain_step(constant, images), 1 if quick else 3)
    rows.append(row("training step, batch 32: its time", "t held constant", *seconds, "s", "at most 1.2x", seconds[0] / seconds[1]))
    return rows


def gradient_rows(ours, theirs) -> list[dict]:
    """||a - b|| / ||b|| for the gradients of the parameters: the largest in float32, which is what the target is about, and, to tell
    rounding from errors, the median there and the largest in float64."""
    rows, images = [], torch.rand(8, 3, 112, 112) - 0.5
    for dtype in (torch.float32, torch.float64):
        pair = [copy.deepcopy(network).to(dtype) for network in (ours, theirs)]
        step(pair[0], images.to(dtype))
        plain_step(pair[1], images.to(dtype))
        found = [((a.grad - b.grad).norm() / b.grad.norm()).item() for a, b in zip(*(network.parameters() for network in pair))
                 if a.grad is not None]
        for which in (max, statistics.median) if dtype == torch.float32 else (max,):
            name = f"gradients, batch 8, {str(dtype).removeprefix('torch.')}: the {'largest' if which is max else 'median'} differs by"
            rows.append(row(name, "t by padded convolution", which(found), None, "relative", "at most 1e-5 relative", which(found)))
    return rows


def memory_rows(quick: bool) -> list[dict]:
    """Peaks of processes of their own: of a training step, also with an allocator that gives back what is freed, as glibc's else keeps
    holes that depend on the order of allocations; and of evaluating a .bin of 12,000 images and their mirror images."""
    def found(kind: str, *arguments: str, **environment: str) -> float:
        command = [sys.executable, __file__, "--peak", kind, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment).stdout) / 2**20

    rows = []
    for name, environment in (("peak memory", {}), ("the same, freed memory given back", {"MALLOC_MMAP_THRESHOLD_": str(2**20)})):
        ours, theirs = (found(kind, **environment) for kind in ("ours", "plain"))
        rows.append(row(f"training step, batch 32: {name}", "plain autograd", ours, theirs, "MiB", "at most 0.75x", ours / theirs))
    with tempfile.TemporaryDirectory() as folder:
        peak = found("evaluation", "--bin", _many_images(folder, 1200 if quick else 12000))
    return rows + [row("evaluate 12,000 images with flips: peak memory", "none: a limit", peak, None, "MiB", "at most 600 MiB", peak)]


def _many_images(folder: str, count: int) -> str:
    """A .bin of `count` different images, of about the size that faces have as JPEG files."""
    from datasets import SyntheticFaces
    from utils.build_dataset import write_bin
    from utils.images import encode_image
    faces, generator = [image for image, _ in SyntheticFaces(10, 2)], torch.Generator().manual_seed(0)
    noise = (torch.randint(-6, 7, (1, 112, 112), generator=generator) for _ in range(count))
    images = [encode_image((faces[k % len(faces)].int() + n).clamp(0, 255).byte(), "jpeg") for k, n in enumerate(noise)]
    write_bin(f"{folder}/many.bin", images, [k % 2 == 0 for k in range(count // 2)])
    return f"{folder}/many.bin"


def header_rows(quick: bool) -> list[dict]:
    """A header of a million classes x 128 on four processes, dealt out to them and held by each: the largest peak, the bytes of a step."""
    command = [sys.executable, str(Path(__file__).with_name("header.py")), "--classes", str(10**5 if quick else 10**6)]
    ours, theirs = (json.loads(subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout)
                    for more in (["--sharded"], []))
    return [row("header of a million classes, 4 processes: peak memory of one", "held by each", ours["peak"] / 2**20, theirs["peak"] / 2**20,
                "MiB", "at most 0.333x", ours["peak"] / theirs["peak"]),
            row("the same: sent by one in a step", "held by each", ours["sent"] / 2**20, theirs["sent"] / 2**20, "MiB", "at most 1 MiB",
                ours["sent"] / 2**20)]


def launch_rows(quick: bool) -> list[dict]:
    """Kernels of `sllnet` and others on a GPU, counted on the CPU; the published code issues 351 forward and 981 with gradients."""
    rows = []
    for name, ceilings in CEILINGS.items():
        network = random_network(name)
        images = torch.rand(2, 3, 112, 112) - 0.5
        found = []
        for work in (lambda: network(images), lambda: network(images).sum().backward()):
            work()
            network.zero_grad(set_to_none=True)
            with Launches() as counted:
                work()
            found.append(counted.total)
        for what, count, limit in zip(("forward", "forward and backward"), found, ceilings):
            rows.append(row(f"{name}, {what}: kernels started", "none: a limit", count, None, "", f"at most {limit} kernels", count))
    return rows


class _FirstBatches(torch.nn.Module):
    """The network for the first batches, which need the most memory, and random embeddings, which take no time, for the others."""

    def __init__(self, network, count: int = 8):
        super().__init__()
        self.network, self.left = network, count

    def forward(self, images):
        self.left -= 1
        return self.network(images) if self.left >= 0 else torch.randn(len(images), 512)


def peak(kind: str, bin_file: "str | None") -> int:
    """Bytes that a training step, or an evaluation, adds to the process at its peak."""
    from eval import records  # what it imports is no part of what is measured
    from eval.evaluation import Evaluation
    from eval.verification import read_bin
    network = random_network()
    images = torch.rand(32, 3, 112, 112) - 0.5
    if kind == "plain":
        network = plain(network)
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of making the network, is forgotten
    if kind == "evaluation":
        network = _FirstBatches(network.requires_grad_(False)).eval()
        records.certify(network, read_bin(bin_file), Evaluation(protocol="paper", far=1e-2), lipschitz=1.0, num_workers=2)
    else:
        (plain_step if kind == "plain" else step)(network, images)
    return memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--only", choices=GROUPS, help="rows of this group only")
    parser.add_argument("--markdown", metavar="FILE", help="measure nothing: print a bench.json as a table for the README")
    parser.add_argument("--out", default=str(ROOT / "out" / "bench" / "bench.json"))
    parser.add_argument("--weights", help="a sllnet_small checkpoint, for the attack row")
    parser.add_argument("--bin", help="the .bin that the attack row attacks")
    parser.add_argument("--entries", type=int, default=42_000_000, help="of the index that the data rows open (default 42000000)")
    parser.add_argument("--scratch", help="folder for that index, 0.9 GB (default: the system's for temporary files)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(Path(args.markdown).read_text())))
        return
    if args.peak:
        print(peak(args.peak, args.bin))
        return
    if args.weights and args.bin:
        ATTACKED.extend([args.weights, args.bin])
    ENTRIES[:] = [args.entries, args.scratch]
    result = {"machine": machine(), "quick": args.quick, "rows": []}
    print(result["machine"], " | ".join(HEAD), sep="\n", flush=True)
    for name, group in GROUPS.items():
        if args.only in (None, name):
            result["rows"] += group(args.quick)
            with atomic_write(args.out) as file:  # after each group: a long run that is interrupted has what it found
                json.dump(result, file, indent=2)
    print(args.out)


def index_rows(quick: bool) -> list[dict]:
    """Open an index of as many entries as WebFace42M has images, in the order of its keys and shuffled, in processes of their own; what a
    worker that is spawned is then sent. Of the records there is a hole."""
    rows, count = [], ENTRIES[0] // (42 if quick else 1)
    for order in ("in order", "shuffled"):
        with tempfile.TemporaryDirectory(dir=ENTRIES[1]) as folder:
            write(Path(folder), count, order == "shuffled")
            command = [sys.executable, str(Path(__file__).with_name("large_index.py")), folder]
            seconds, cpu, mebibytes, sent = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        name = f"index of {count:,} entries, {order}"
        rows += [row(f"{name}: open", "CPU time", seconds, cpu, "s", "at most 20 s", seconds),
                 row(f"{name}: peak memory of the process", "none: a limit", mebibytes, None, "MiB", "at most 2048 MiB", mebibytes),
                 row(f"{name}: pickle for a spawned worker", "none: a limit", sent, None, "KiB", "at most 16 KiB", sent)]
    return rows


def data_rows(quick: bool) -> list[dict]:
    """`index_rows`; read and decode every record of a file of synthetic faces, here and by MXNet's own reader and decoder."""
    from datasets import RecordDataset, SyntheticFaces, get_dataloader
    from utils.images import encode_image
    from utils.recordio import RecordWriter, import_mxnet, pack
    rows = index_rows(quick)
    with tempfile.TemporaryDirectory() as folder:
        faces = SyntheticFaces(100, 10)
        copies = 2 if quick else 10  # a file long enough that starting workers does not count
        with RecordWriter(Path(folder) / "train") as writer:
            writer.write(0, pack([float(len(faces) * copies + 1), float(len(faces) * copies + 101)]))
            encoded = [(pack(float(label), image=encode_image(image, "jpeg"))) for image, label in faces]
            for key in range(len(faces) * copies):
                writer.write(key + 1, encoded[key % len(faces)])
        dataset = RecordDataset(folder)
        assert dataset[0][0].shape == (3, 112, 112)

        def ours() -> None:
            for index in range(len(dataset)):
                dataset[index]

        try:
            mxnet = import_mxnet()
        except InputError as error:
            print(f"RecordIO read + decode: not compared: {error}")
        else:
            record = mxnet.recordio.MXIndexedRecordIO(f"{folder}/train.idx", f"{folder}/train.rec", "r")

            def theirs() -> None:
                for key in range(1, len(dataset) + 1):
                    mxnet.image.imdecode(mxnet.recordio.unpack(record.read_idx(key))[1]).asnumpy()

            seconds = alternate(ours, theirs, 3)
            rows.append(row("RecordIO read + decode, 1 process", f"MXNet {mxnet.__version__}", *(len(dataset) / s for s in seconds), "images/s",
                            "at least 1.0x", seconds[1] / seconds[0]))
        loaders = [get_dataloader(dataset, 100, num_workers=workers) for workers in (2, 1)]
        seconds = alternate(*(lambda loader=loader: [None for _ in loader] for loader in loaders), 3)
        rows.append(row("the same, 2 workers", "1 worker", *(len(dataset) / s for s in seconds), "images/s", "at least 1.7x",
                        seconds[1] / seconds[0]))
    return rows


def evaluation_rows(quick: bool) -> list[dict]:
    """Table 1 with four budgets, against a forward pass over both images of every pair for each kind and each of its two budgets: of
    pairs that share images as those of LFW do, and of pairs that share none."""
    from eval import records
    from eval.evaluation import Evaluation
    from eval.verification import embed_images, read_bin
    network = random_network().eval().requires_grad_(False)
    rows = []
    for sharing in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            pair_set = read_bin(_pairs(folder, 12 if quick else 1200, sharing))
        every = [pair_set.images[number] for pair in zip(pair_set.left, pair_set.right) for number in pair]

        def theirs() -> None:
            for _ in range(3 * 2):
                embed_images(network, every)

        embed_images(network, every[:16])
        seconds = alternate(lambda: records.certify(network, pair_set, Evaluation(tau=0.3)), theirs, 2 if quick else 1, warm=True)  # minutes
        name = f"Table 1, 4 budgets, {len(pair_set.same)} pairs of {len(pair_set.images)} images{', as in LFW' if sharing else ''}"
        rows.append(row(name, "a pass per kind and budget", *seconds, "s", "at least 6x"))
    return rows


def _pairs(folder: str, count: int, sharing: bool) -> str:
    """A .bin of pairs that share no image, or as many as those of LFW: its 6,000 pairs have 7,701 images, 64 % of 12,000; here, 65 %."""
    from datasets import synthetic_pairs
    from utils.build_dataset import write_bin
    images, same = synthetic_pairs(num_pairs=count)
    for number in range(count // 2 if sharing else 0):
        pair = 2 * number + 1  # of different identities: that of the pair before, and for the first half, that of the pair after
        images[2 * pair] = images[2 * (pair - 1)]
        if number < count // 4 and number % 6:
            images[2 * pair + 1] = images[2 * (pair + 1)]
    write_bin(f"{folder}/pairs.bin", images, same)
    return f"{folder}/pairs.bin"


def attack_rows(quick: bool) -> list[dict]:
    """Passes (in images, forward and backward) of ERA by PGD-20, U, D and I at two budgets each, against every image of every pair for
    every step; also with radii divided by the proven Lipschitz constant, which spare more of the attacks."""
    from eval.__main__ import main as evaluate
    from eval.store.results import read_records
    if not ATTACKED:
        print("ERA by PGD-20: not measured: give --weights, of a sllnet_small, and --bin")
        return []
    limit = 20 if quick else None
    weights, bin_file = ATTACKED
    command = ["attack", "--bin", bin_file, "--backbone", "sllnet_small", "--weights", weights, "--far", "1e-2", "--attack", "pgd", "--steps",
               "20", *(["--limit", str(limit)] if limit else [])]
    rows = []
    for name, options in (("ERA by PGD-20, passes", []), ("the same with --tight", ["--tight"])):
        with tempfile.TemporaryDirectory() as folder:
            assert evaluate([*command, *options, "--out", folder]) == 0
            found = read_records(folder)
        same = found.pairs["same"]
        attacked = len(found.images[:limit]) + 2 * sum(len(found.pairs[kind][:limit]) for kind in (same, ~same))  # both images of a pair
        passes = found.summary["attacks"]["pgd"]
        theirs = 2 * attacked * (20 + 1 + 20)  # two budgets; 20 steps, forward and backward, and a last look
        rows.append(row(name, "every pair for every step", passes["forward_passes"] + passes["backward_passes"], theirs, "images", "at least 3x"))
    return rows


def decision_rows(quick: bool) -> list[dict]:
    """A certified decision about one image and a person whose embedding is kept: proven, by the network of params/, and by randomised
    smoothing of an unconstrained one with 100 + 1,000 samples; on the GPU where there is one."""
    from backbones import load_network
    from eval import certification, smoothing
    from eval.noise import LEFT, Draws, noisy_embeddings
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours, theirs = load_network("orthonet", ROOT / "params/orthonet_faces.pt", device=device), fold(get_backbone("net_small")).to(device)
    image, draws = torch.rand(3, 112, 112, device=device) - 0.5, (20, 80) if quick else (100, 1000)
    with torch.no_grad():
        kept = [network(image[None]) for network in (ours, theirs)]

        def proven() -> None:
            embedding = ours(image[None])
            certification.one_sided_radius(embedding.norm(dim=1), certification.angle(embedding, kept[0]), 0.3).item()

        def smoothed() -> None:
            embeddings = noisy_embeddings(theirs, image, 0.25, Draws((0, LEFT, 0), 0, sum(draws)), 512)
            accepted = torch.cat([torch.cosine_similarity(batch, kept[1]) > 0.3 for batch in embeddings])
            smoothing.smoothed_radius(smoothing.lower_probability(int(accepted[draws[0]:].sum()), draws[1], 1e-3), 0.25)

        seconds = alternate(proven, smoothed, 2 if quick else 5)
    return [row(f"a certified decision on {device}: proven, 1 pass", f"smoothing, {sum(draws):,} passes", *seconds, "s", "at least 100x")]


def help_rows(quick: bool) -> list[dict]:
    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)

    ours, theirs = alternate(lambda: run("-m", "eval", "--help"), lambda: run("-c", "import torch"), 3)
    return [row("python -m eval --help", "python -c 'import torch'", ours, theirs, "s", "at most 1.5 s", ours)]


def gpu_rows(quick: bool) -> list[dict]:
    """Training steps of `sllnet` on a GPU, in each precision, next to the published form and to t held constant; `make check-gpu` has more."""
    if not torch.cuda.is_available():
        print("training steps on a GPU: not measured: there is none here")
        return []
    rows = []
    for batch, precision, times, peak in measured_steps("cuda"):
        name = f"training step on {torch.cuda.get_device_name()}, batch {batch}, {precision}"
        ours, published, constant = (time / 1e3 for time in times.values())
        rows += [row(name, "published form", ours, published, "s", "at least 1.0x"),
                 row(f"{name}: its time", "t held constant", ours, constant, "s", "at most 1.2x", ours / constant),
                 row(f"{name}: memory", "none: a limit", peak, None, "MiB", "at most 81920 MiB", peak)]
    return rows


ATTACKED: list[str] = []
ENTRIES: list = []
GROUPS = {"embedding": embedding_rows, "training": training_rows, "memory": memory_rows, "data": data_rows, "evaluation": evaluation_rows,
          "attack": attack_rows, "decision": decision_rows, "help": help_rows, "header": header_rows, "launches": launch_rows, "gpu": gpu_rows}

if __name__ == "__main__":
    main()
