"""Train a 1-Lipschitz face network (or a baseline) with a margin header and the feature-norm regulariser.

    python train.py                                                        # one process, the embedded synthetic faces
    torchrun --standalone --nproc_per_node=8 train.py rec=/data/ms1mv3     # one node with eight GPUs
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_id=run1 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py rec=/data/ms1mv3
                                                         # the same line on both of two nodes; HOST is one of them (docs/training.md)
    torchrun --standalone --nproc_per_node=2 train.py backbone=sllnet_small output=out/run   # two CPU processes

Arguments are `key=value` settings over those of config.py, which lists them all. `batch_size` is that of all processes together:
one process and many give the same loss curve, to rounding. SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU end a run
after the step it is in, with its state saved; those that were ignored when it began (nohup) still are. With resume=auto the same command
goes on from the newest state, also by itself under `torchrun --max-restarts=N`.

Exit status: 0 done; 75 stopped by a signal, resume=auto goes on; 2 a setting or a file cannot be used; 1 the run cannot go on
(too many steps that are not finite, another process gone, no memory left).
"""
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils.cores import oversubscribed, usable_cores, workers  # isort: skip  # ahead of torch

import torch
from easydict import EasyDict
from torch import Tensor, nn

from adversarial import Adversary
from attacks import PGD
from augmentation import jittered, noisy
from backbones import ScaledInput, embedding_size, get_backbone, input_scale
from backbones.custom_layers import RescaledOnce
from config_checks import ADDED, FREE, OF_A_MACHINE, PUBLISHED, checked, complete
from datasets import Faces, SyntheticFaces, get_dataloader, get_dataset, sources, synthetic_pairs, to_float
from headers import HEADERS, get_header
from losses import objective, trades
from lr_scheduler import PolynomialLRWarmup
from muon import Muon
from sharding import MANY, shard_of
from utils import InputError, RunError, one_line
from utils.build_dataset import RESIZES, write_bin
from utils.checkpoint import load_weights
from utils.console import complain, lasting_console
from utils.distributed import distribute, from_first_rank, locally, process_group, rank, undistributed, world_size
from utils.faults.folder import owned
from utils.faults.guard import StepGuard, agree_on_skipping
from utils.faults.launch import alone_among_tasks
from utils.faults.lockstep import Interrupted
from utils.faults.machines import all_or_none, file_of_first_rank, require_agreement
from utils.faults.resources import advice, shortage
from utils.faults.run import Run
from utils.faults.signals import STOPPED, stopped, stops
from utils.in_memory import InMemory
from utils.settings import at_fault, run_command
from utils.utils_callbacks import CallBackLogging, CallBackVerification
from utils.utils_logging import AverageMeter, close, cpu_line, init_logging, tensorboard

LOGGER = logging.getLogger("training")
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}


@lasting_console()
def train(cfg: EasyDict, device: torch.device) -> None:
    """One run of the settings `cfg` on this process's `device`; all that comes of it is in the folder `cfg.output`.

    Raises InputError for settings, data or a state that cannot be used.
    """
    cfg = checked(cfg)
    with owned(cfg.output):
        _train(cfg, device)


def _train(cfg: EasyDict, device: torch.device) -> None:
    torch.manual_seed(cfg.seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cfg.deterministic, not cfg.deterministic
    precision = "fp32" if cfg.precision == "fp16" and device.type == "cpu" else cfg.precision
    fp16 = precision == "fp16"

    with all_or_none():  # files of users, which one machine may have and another lack
        dataset = InMemory(training_set(cfg)) if cfg.in_memory else training_set(cfg)
        loader = get_dataloader(dataset, cfg.batch_size // world_size(), seed=cfg.seed, num_workers=workers(cfg.num_workers),
                                skip_bad_records=cfg.on_bad_record == "skip", timeout=cfg.timeout, partners=cfg.partners)
        network = build_network(cfg).to(device)
    settings = settings_of(cfg, dataset)
    require_agreement({key: value for key, value in {**cfg, **settings}.items() if key not in OF_A_MACHINE})
    total_steps = cfg.num_epoch * len(loader)
    embed = ScaledInput(network, input_scale(cfg.backbone))
    with at_fault(cfg, "rec"):
        emb_size = embedding_size(embed, (3, *dataset.image_size), cfg.backbone, RESIZES)
    header = build_header(cfg, dataset.num_classes, emb_size).to(device)
    optimizer = build_optimizer(cfg, network, header, fused=device.type == "cuda")
    scheduler = PolynomialLRWarmup(optimizer, cfg.warmup_epoch * len(loader), total_steps, cfg.power)
    # it leaves out steps whose gradient is not finite, without waiting for the device, in every precision; only fp16 needs a scale
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if fp16 else 1.0, growth_interval=100)
    torch.manual_seed(cfg.seed + rank())  # from here on ranks draw different numbers, for dropout

    # where an earlier start left off, if there was one
    parts = dict(model=network, header=header, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    run = Run(cfg, parts, settings, loader, ADDED)
    guard = StepGuard((network, header), cfg.max_skipped_steps, overflows=fp16, output=cfg.output)
    verification = verification_of(cfg, dataset.image_size, run)
    init_logging(rank(), cfg.output, "training")
    verification.writer = writer = tensorboard(Path(cfg.output) / "tensorboard")
    describe(cfg, run, device, precision, total_steps, network, verification, dataset)
    log = CallBackLogging(cfg.frequent, total_steps, cfg.batch_size // world_size(), run.step, writer)
    meters = loss_mean, norm_mean, regulariser_mean = [AverageMeter() for _ in range(3)]

    model, classify = distribute(torch.compile(embed) if cfg.compile else embed, cfg.grad_accum_steps), distribute(header)
    forward = under_autocast(model, device, AUTOCAST[precision])
    adversary = build_adversary(cfg, undistributed(model), device, AUTOCAST[precision])
    loss_of = partial(objective, classify, lambda_=cfg.lambda_, xi=cfg.xi, contrast=cfg.contrast, contrast_args=cfg.contrast_args)
    if cfg.adversarial == "trades":
        loss_of = partial(trades, *loss_of.args, beta=cfg.trades_beta, **loss_of.keywords)
    network.train()
    header.train()
    with run:
        for epoch, images, labels in run.batches():
            # channels last, as the loader stacks them: faster convolutions on both kinds of device
            images = to_float(images, device, memory_format=torch.channels_last)
            images = noisy(jittered(images, cfg.jitter, cfg.seed, run.step), cfg.noise_sigma, cfg.seed, run.step)
            labels = labels.to(device, non_blocking=True)
            header.step = run.step  # random margins are keyed by the step, so that a resumed run draws the same ones
            guard.begin(images, labels)
            optimizer.zero_grad(set_to_none=True)
            loss, regulariser, norm = backward(model, forward, loss_of, images, labels, cfg.grad_accum_steps, scaler,
                                               adversary and partial(adversary, step=run.step))
            scaler.unscale_(optimizer)
            if getattr(header, "shard", None):
                agree_on_skipping(scaler, optimizer)
            gradient_norm = nn.utils.clip_grad_norm_(network.parameters(), cfg.max_norm)  # of the backbone alone, in every precision
            guard.end(gradient_norm, header)
            scaler.step(optimizer)
            scaler.update(None if fp16 else 1.0)
            scheduler.step()
            step = run.advance()

            for meter, value in zip(meters, (loss, norm, cfg.lambda_ * regulariser)):
                meter.update(value)
            if log(step, loss_mean, epoch, fp16, scheduler.get_last_lr()[0], scaler, norm_mean, regulariser_mean):
                guard.check(step)
            if step % cfg.verbose == 0 or step == total_steps:
                verification(step, embed)
            if step % cfg.save_steps == 0 or step % len(loader) == 0:
                run.save_state()
            if step % (cfg.save_epochs * len(loader)) == 0 and step < total_steps:
                run.save_weights(str(epoch + 1))
        run.checkpoints.save_weights("final")
    close(writer)
    LOGGER.info(cpu_line(run.cpu_seconds, run.step))
    LOGGER.info("done: %s", Path(cfg.output) / "model_final.pt")


def backward(model: nn.Module, embed: Callable[[Tensor], Tensor], loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
             images: Tensor, labels: Tensor, parts: int, scaler: torch.amp.GradScaler,
             adversary: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Put the gradient of the loss over `images` [B, C, H, W], `labels` [B] into .grad; returns what `loss_of` returns, detached.

    embed: `model` under autocast. adversary: (images, labels) -> the images to compute the loss of in their place. With parts > 1 the
    activations of only B / parts images are held at a time. Headers may look at the whole batch (margins by rank, batch medians), so the
    loss cannot be summed up part by part: the embeddings are computed first without a graph, then the loss and its gradient with respect
    to them, and that gradient is sent through the network part by part. The gradient is that of parts = 1 for networks whose samples are
    independent; BatchNorm sees parts, and dropout draws anew in each pass.
    """
    with RescaledOnce(model) as rescaling:
        images = adversary(images, labels) if adversary else images
        if parts == 1:
            rescaling.last()
            loss, *rest = loss_of(embed(images), labels)
            scaler.scale(loss).backward()
            return loss.detach(), *rest
        chunks = images.chunk(parts)
        with torch.no_grad():
            embeddings = torch.cat([embed(chunk) for chunk in chunks])
        embeddings.requires_grad_()
        loss, *rest = loss_of(embeddings, labels)
        scaler.scale(loss).backward()
        gradients = embeddings.grad.split([len(chunk) for chunk in chunks])
        with locally(model):
            for chunk, gradient in zip(chunks[:-1], gradients):
                embed(chunk).backward(gradient)
        rescaling.last()
        embed(chunks[-1]).backward(gradients[-1])
    return loss.detach(), *rest


def under_autocast(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """The forward pass in that precision (None: that of the weights), and it alone: the backward pass repeats that of each operation."""
    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return model(images)
    return forward


def build_adversary(cfg: EasyDict, model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Adversary | None:
    """The attack on `model` that training images are moved by, with the forward pass in that precision; None without one."""
    if cfg.adversarial == "none":
        return None
    pgd = PGD(cfg.adversarial_eps, cfg.adversarial_steps, cfg.adversarial_step_size)
    return Adversary(cfg.adversarial, pgd, model, under_autocast(model, device, dtype), cfg.grad_accum_steps, cfg.seed)


def build_network(cfg: EasyDict) -> nn.Module:
    """The backbone of the settings, with the weights to begin with, where there are any."""
    with at_fault(cfg, "backbone_args") if cfg.backbone_args else contextlib.nullcontext():
        network = sized_network(cfg.backbone, cfg.emb_size, cfg.backbone_args)
    if cfg.init_weights:
        load_weights(network, cfg.init_weights)
    return network


def sized_network(name: str, emb_size: int | None, arguments: Mapping[str, Any] = MappingProxyType({})) -> nn.Module:
    """The backbone with these arguments, and with embeddings of that length, if it can be told one. Raises InputError for arguments whose
    values it cannot use, TypeError for those that it does not take.
    """
    try:
        for argument in ("emb_size", "num_features") if emb_size is not None else ():  # of SLL networks; of IResNets
            with contextlib.suppress(TypeError):
                return get_backbone(name, **{argument: emb_size, **arguments})
        return get_backbone(name, **arguments)
    except (ValueError, RuntimeError) as error:  # RuntimeError: of memory that cannot be had
        if not arguments or isinstance(error, InputError):
            raise
        raise InputError(f"backbone {name}: {one_line(error)}") from error


def build_optimizer(cfg: EasyDict, network: nn.Module, header: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """AdamW for all; with a setting muon, orthogonalised updates for the matrices of the network."""
    if cfg.muon:
        return Muon(network, header, cfg.lr, cfg.muon, weight_decay=cfg.weight_decay, fused=fused)
    return torch.optim.AdamW([p for p in (*network.parameters(), *header.parameters()) if p.requires_grad], cfg.lr,
                             weight_decay=cfg.weight_decay, fused=fused)


def build_header(cfg: EasyDict, num_classes: int, emb_size: int) -> nn.Module:
    """The header of the settings, or the classes of it that this process has; where it draws random numbers it gets the run's seed."""
    if cfg.emb_size not in (None, emb_size):
        raise InputError(f"setting emb_size={cfg.emb_size}: backbone={cfg.backbone} has embeddings of length {emb_size} and no other")
    shard = shard_of(num_classes, rank(), world_size(), cfg.sample_rate, cfg.seed) if is_sharded(cfg, num_classes) else None
    with at_fault(cfg, "header_args"):
        return get_header(cfg.header, num_classes, emb_size, run_seed=cfg.seed, shard=shard, **cfg.header_args)


def is_sharded(cfg: EasyDict, num_classes: int) -> bool:
    """Whether the rows of the header are dealt out to the processes: where the settings say so, or there are many, or some are sampled."""
    if cfg.header_shards is not None:
        return cfg.header_shards
    return cfg.sample_rate < 1 or num_classes > MANY and getattr(HEADERS.find(cfg.header).build, "shardable", False)


def training_set(cfg: EasyDict) -> Faces:
    """The images to train on; num_image is how many synthetic ones to make, and is checked against what is there otherwise."""
    if cfg.rec == "synthetic":
        classes = cfg.num_classes or 200
        return SyntheticFaces(classes, max(1, (cfg.num_image or 20 * classes) // classes), seed=cfg.seed)
    dataset = get_dataset(cfg.rec, cfg.num_classes, cfg.recordio_backend)
    if cfg.num_image not in (None, len(dataset)):
        raise InputError(f"setting num_image={cfg.num_image}: {cfg.rec} has {len(dataset)} images")
    if getattr(dataset, "identities_seen", dataset.num_classes) < 2:
        raise InputError(f"setting rec={cfg.rec}: all {len(dataset)} images are of one identity, expected several to be told apart")
    return dataset


def verification_of(cfg: EasyDict, image_size: Sequence[int], run: Run) -> CallBackVerification:
    """On the .bin files beside the data, the first where there are several, with synthetic data on pairs of further identities, as many as
    there are images up to 400; the best so far are part of the state.
    """
    first = Path(sources(cfg.rec)[0])
    targets, folder = cfg.val_targets, first if first.is_dir() else first.parent
    with contextlib.ExitStack() as stack:
        if cfg.rec == "synthetic":
            targets, file = ["synthetic"] if targets is None else targets, Path(cfg.output) / "synthetic.bin"
            if targets:
                count = max(20, min(400, cfg.num_image or 400))  # two for each of the ten folds of an accuracy
                from_first_rank(lambda: write_bin(file, *synthetic_pairs(num_pairs=count, seed=cfg.seed)))
                folder = stack.enter_context(file_of_first_rank(file)).parent
        with all_or_none():
            verification = CallBackVerification(targets, folder, image_size=image_size)
    require_agreement({"sets of pairs": {name: len(verify.keywords["pairs"].same) for name, verify in verification.verify.items()}})
    verification.highest.update(run.progress["highest"])
    run.progress["highest"] = verification.highest
    return verification


def settings_of(cfg: EasyDict, dataset: Faces) -> dict:
    """What a run and its continuation must agree on."""
    settings = {key: value for key, value in cfg.items() if key not in FREE}
    # one setting, as states have it that were saved when networks had no arguments
    arguments = ", ".join(f"{key}={value!r}" for key, value in sorted(settings.pop("backbone_args").items()))
    if arguments:
        settings["backbone"] = f"{cfg.backbone}({arguments})"
    return settings | dict(header=HEADERS.find(cfg.header).name, header_args=dict(cfg.header_args), contrast_args=dict(cfg.contrast_args),
                           num_classes=dataset.num_classes, num_image=len(dataset), world_size=world_size(), data=dataset.fingerprint())


def describe(cfg: EasyDict, run: Run, device: torch.device, precision: str, total_steps: int, network: nn.Module,
             verification: CallBackVerification, dataset: Faces) -> None:
    """Head the log with the settings, the data and the machine."""
    for key, value in {**cfg, **run.checkpoints.settings, "device": device, "precision": precision}.items():
        LOGGER.info(": %-20s %s", key, value)
    LOGGER.info("%d usable cores, %d threads, %d workers for each of the processes of this machine", usable_cores(),
                torch.get_num_threads(), workers(cfg.num_workers))
    parameters = sum(p.numel() for p in network.parameters())
    LOGGER.info("%s with %d parameters, %d steps%s, verified on: %s", cfg.backbone, parameters, total_steps,
                f" from step {run.step}" if run.step else "", ", ".join(verification.verify) or "nothing")
    if precision != cfg.precision:
        LOGGER.info("precision=%s needs CUDA: this run uses %s", cfg.precision, precision)
    for remark in filter(None, [*getattr(dataset, "remarks", ()), *run.checkpoints.remarks, alone_among_tasks(),
                                oversubscribed(workers(cfg.num_workers))]):
        LOGGER.warning(remark)


@lasting_console()
def run(config: EasyDict, arguments: Sequence[str] | None = None) -> int:
    """The command line: settings from `arguments` (default: the process's own); returns the exit status."""
    def work(cfg: EasyDict) -> None:
        with process_group(cfg.device, cfg.timeout) as device:
            train(cfg, device)

    try:
        with stops():  # before the first step, where nothing is lost yet
            return run_command("train", work, complete(config), __doc__, arguments, PUBLISHED)
    except Interrupted:
        return STOPPED
    except KeyboardInterrupt as error:
        return stopped(error, "there was no step to save")
    except (RuntimeError, MemoryError) as error:
        kind = None if isinstance(error, RunError) else shortage(error)
        if kind is None and not isinstance(error, RunError):
            raise
        complain("train", f"{one_line(error)[:200]}: {advice(kind)}" if kind else error)
        return 1


if __name__ == "__main__":
    from config import config
    sys.exit(run(config))
