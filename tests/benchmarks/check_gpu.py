"""A few minutes on a GPU (77 seconds on an H100): `make check-gpu`. Each line is one check; exits 1 where one fails, 0 where there is no GPU.

Parity of embeddings, gradients, radii, orthogonalised updates and an attack with the CPU; fp16 and bf16 training steps with finite loss; NCCL
over all GPUs, with a header that all hold and one that is dealt out; then a table to send: what a training step takes next to the published
form and next to one with t held constant, kernels and host time, memory, throughput of the loader and of the network.

--device cpu runs what needs no GPU, in small, to see that this script works.
"""
import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from plain import plain, with_constant_t  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from attacks import preset  # noqa: E402
from backbones import get_backbone  # noqa: E402
from datasets import SyntheticFaces, get_dataloader, to_float  # noqa: E402
from eval import certification  # noqa: E402
from headers import get_header  # noqa: E402
from losses import objective  # noqa: E402
from muon import orthogonalised  # noqa: E402
from utils.precision import full_precision  # noqa: E402

DEVICE = "cuda"


def network_and_images() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = get_backbone("sllnet")
    with torch.no_grad():
        for p in network.parameters():  # the orthogonal start has correlations that are rounding noise, with gradients of either sign
            p.copy_(torch.randn_like(p) / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.1 * torch.randn_like(p))
    return network, torch.rand(8, 3, 112, 112) - 0.5


def gradients(network: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and the gradient of all weights as one vector, on the CPU."""
    network.zero_grad(set_to_none=True)
    embeddings = network(images)
    embeddings.square().sum().backward()
    return embeddings.detach().cpu(), torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])


def parity() -> str:
    network, images = network_and_images()
    with full_precision():
        expected, expected_gradient = gradients(network, images)
        found, gradient = gradients(network.to(DEVICE), images.to(DEVICE))
    error = ((found - expected).norm() / expected.norm()).item()
    gradient_error = ((gradient - expected_gradient).norm() / expected_gradient.norm()).item()
    radii = [certification.pair_radius(e.norm(dim=1)[:4], e.norm(dim=1)[4:], certification.angle(e[:4], e[4:]), 0.3) for e in (expected, found)]
    radius_error = ((radii[0] - radii[1]).abs() / radii[0].abs().clamp_min(1e-6)).max().item()
    assert error < 1e-4 and gradient_error < 1e-3 and radius_error < 1e-3, (error, gradient_error, radius_error)
    return f"embeddings to {error:.0e}, gradients to {gradient_error:.0e}, radii to {radius_error:.0e}"


def half_precision() -> str:
    losses = []
    for dtype in (torch.float16, torch.bfloat16):
        network, images = network_and_images()
        network.to(DEVICE)
        header = get_header("ecosface", 10, 512).to(DEVICE)
        scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-3, fused=True)
        for _ in range(3):
            with torch.autocast(DEVICE, dtype):
                embeddings = network(images.to(DEVICE))
            loss = objective(header, embeddings, torch.arange(8, device=DEVICE), 10.0, 3.0)[0]
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert torch.isfinite(loss), f"{dtype}: loss {loss.item()}"
        losses.append(f"{str(dtype).removeprefix('torch.')} {loss.item():.3f}")
    return "loss after 3 steps: " + ", ".join(losses)


def updates() -> str:
    matrices = torch.randn(3, 64, 300, generator=torch.Generator().manual_seed(0))
    with full_precision():
        expected, found = orthogonalised(matrices), orthogonalised(matrices.to(DEVICE)).cpu()
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < 1e-3, error
    return f"orthogonalised to {error:.0e}"


def attack() -> str:
    torch.manual_seed(0)
    network = get_backbone("sllnet_small").eval().requires_grad_(False)
    images, margins = torch.rand(8, 3, 112, 112) - 0.5, []
    with full_precision():
        for device in ("cpu", DEVICE):
            moved = network.to(device)
            targets = moved(images.flip(0).to(device))
            margins.append(preset("pgd-5", eps=1.0)(moved, images.to(device), targets, "dodging", -0.9).margin.cpu())
    error = (margins[0] - margins[1]).abs().max().item()
    assert error < 1e-2, error
    return f"margins of PGD to {error:.0e}"


def real_steps(*settings: str) -> str:
    """torchrun over all GPUs: NCCL, DDP and the training script as they are used."""
    count = torch.cuda.device_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "train.py", "rec=synthetic",
                   "num_classes=10", f"num_image={5 * 16 * count}", f"batch_size={16 * count}", "num_epoch=1", "frequent=1", "val_targets=[]",
                   f"output={folder}/run", f"device={DEVICE}", *settings]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "4"})
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [line for line in (Path(folder) / "run" / "training.log").read_text().splitlines() if "Speed" in line]
        assert len(lines) == 5, lines
    return f"{count} process(es), " + lines[-1].split("-", 3)[-1][:70]


def five_steps() -> str:
    return real_steps()


def five_steps_dealt_out() -> str:
    return real_steps("header_shards=True")


def synchronize(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _step(network: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype) -> None:
    network.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        embeddings = network(images)
    embeddings.float().square().sum().backward()


def _milliseconds(network: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype, repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        synchronize(images.device)
        started = time.perf_counter()
        _step(network, images, dtype)
        synchronize(images.device)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[2:])


def measured_steps(device: str) -> Iterator[tuple[int, str, dict[str, float], float]]:
    """(batch, precision, milliseconds of a training step of each form, MiB of ours at its peak); NaN for what found no memory."""
    network, _ = network_and_images()
    network, gpu = network.to(device), device == "cuda"
    forms = {"here": network, "published form": plain(network), "t held constant": with_constant_t(network)}
    for batch in (64, 512) if gpu else (2,):
        images = torch.rand(batch, 3, 112, 112, device=device) - 0.5
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if gpu else (torch.float32,):
            times, peak = {}, math.nan
            for name, form in forms.items():
                if gpu and name == "here":
                    torch.cuda.reset_peak_memory_stats()
                try:
                    times[name] = _milliseconds(form, images, dtype, 10 if gpu else 1)
                except torch.OutOfMemoryError:
                    times[name] = math.nan
                if gpu and name == "here":
                    peak = torch.cuda.max_memory_allocated() / 2**20
            yield batch, str(dtype).removeprefix("torch."), times, peak


def steps() -> str:
    lines = ["", "batch | precision | here, ms | published form, ms | t held constant, ms | memory, MiB (nan: there was too little)"]
    lines += [" | ".join([str(batch), precision, *(f"{time:.1f}" for time in times.values()), f"{peak:.0f}"])
              for batch, precision, times, peak in measured_steps(DEVICE)]
    return "\n  ".join(lines)


def kernels() -> str:
    network, _ = network_and_images()
    network, images = network.to(DEVICE), torch.rand(64 if DEVICE == "cuda" else 2, 3, 112, 112, device=DEVICE) - 0.5
    _step(network, images, torch.float32)
    started = time.perf_counter()
    _step(network, images, torch.float32)
    host = time.perf_counter() - started
    synchronize(DEVICE)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    with profile(activities=activities) as found:
        _step(network, images, torch.float32)
        synchronize(DEVICE)
    launched = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return f"{len(launched)} started by a step of 64 images in float32, the host done with it after {1e3 * host:.1f} ms"


def throughput() -> str:
    network, _ = network_and_images()
    network = network.to(DEVICE).eval().requires_grad_(False)
    images = torch.rand(256 if DEVICE == "cuda" else 2, 3, 112, 112, device=DEVICE) - 0.5
    rates = []
    for dtype in (torch.float32, torch.float16):
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            for repeat in range(6):
                if repeat == 1:
                    synchronize(DEVICE)
                    started = time.perf_counter()
                network(images)
        synchronize(DEVICE)
        rates.append(f"{5 * len(images) / (time.perf_counter() - started):.0f}")
    loader = get_dataloader(SyntheticFaces(50, 20), 100, num_workers=min(8, os.cpu_count() or 1))
    list(loader)
    started, count = time.perf_counter(), 0
    loader.set_epoch(1)
    for batch, _ in loader:
        count += len(to_float(batch, DEVICE))
    synchronize(DEVICE)
    return f"network {rates[0]} (float32), {rates[1]} (fp16) images/s; loader {count / (time.perf_counter() - started):.0f} images/s (synthetic)"


def main() -> int:
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    DEVICE = parser.parse_args().device
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("check-gpu: there is no GPU here; nothing was checked")
        return 0
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else 'no GPU'}, torch {torch.__version__}", flush=True)
    failed = 0
    checks: tuple[Callable[[], str], ...] = (parity, half_precision, updates, attack, five_steps, five_steps_dealt_out, steps, kernels,
                                             throughput)
    for check in checks:
        try:
            print(f"ok      {check.__name__}: {check()}", flush=True)
        except Exception as error:  # each check is told of, whatever the others gave
            failed += 1
            print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
