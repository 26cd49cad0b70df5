"""The first minute on a GPU: `make check-gpu`. Each line is one check; exits 1 where one fails, 0 where there is no GPU.

Parity of embeddings, gradients and radii with the CPU; fp16 and bf16 training steps with finite loss; NCCL over all GPUs; five real training
steps; throughput of the loader and of the network.
"""
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from backbones import get_backbone  # noqa: E402
from datasets import SyntheticFaces, get_dataloader, to_float  # noqa: E402
from eval import certification  # noqa: E402
from headers import get_header  # noqa: E402
from train import objective  # noqa: E402
from utils.precision import full_precision  # noqa: E402


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
        found, gradient = gradients(network.cuda(), images.cuda())
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
        network.cuda()
        header = get_header("ecosface", 10, 512).cuda()
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-3, fused=True)
        for _ in range(3):
            with torch.autocast("cuda", dtype):
                embeddings = network(images.cuda())
            loss = objective(header, embeddings, torch.arange(8, device="cuda"), 10.0, 3.0)[0]
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert torch.isfinite(loss), f"{dtype}: loss {loss.item()}"
        losses.append(f"{str(dtype).removeprefix('torch.')} {loss.item():.3f}")
    return "loss after 3 steps: " + ", ".join(losses)


def five_steps() -> str:
    """torchrun over all GPUs: NCCL, DDP and the training script as they are used."""
    count = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "train.py", "rec=synthetic",
                   "num_classes=10", f"num_image={5 * 16 * count}", f"batch_size={16 * count}", "num_epoch=1", "frequent=1", "val_targets=[]",
                   f"output={folder}/run"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "4"})
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [line for line in (Path(folder) / "run" / "training.log").read_text().splitlines() if "Speed" in line]
        assert len(lines) == 5, lines
    return f"{count} GPU(s), " + lines[-1].split("-", 3)[-1][:70]


def throughput() -> str:
    network, _ = network_and_images()
    network = network.cuda().eval().requires_grad_(False)
    images = torch.rand(256, 3, 112, 112, device="cuda") - 0.5
    rates = []
    for dtype in (torch.float32, torch.float16):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            for repeat in range(6):
                if repeat == 1:
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                network(images)
        torch.cuda.synchronize()
        rates.append(f"{5 * len(images) / (time.perf_counter() - started):.0f}")
    loader = get_dataloader(SyntheticFaces(50, 20), 100, num_workers=min(8, os.cpu_count() or 1))
    list(loader)
    started, count = time.perf_counter(), 0
    loader.set_epoch(1)
    for batch, _ in loader:
        count += len(to_float(batch, "cuda"))
    torch.cuda.synchronize()
    return f"network {rates[0]} (float32), {rates[1]} (fp16) images/s; loader {count / (time.perf_counter() - started):.0f} images/s (synthetic)"


def main() -> int:
    if not torch.cuda.is_available():
        print("check-gpu: there is no GPU here; nothing was checked")
        return 0
    failed = 0
    checks: tuple[Callable[[], str], ...] = (parity, half_precision, five_steps, throughput)
    for check in checks:
        try:
            print(f"ok      {check.__name__}: {check()}", flush=True)
        except Exception as error:  # each check is told of, whatever the others gave
            failed += 1
            print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
