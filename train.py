"""Train a 1-Lipschitz face network (or a baseline) with a margin header and the feature-norm regulariser.

    python train.py                                                        # one process, the embedded synthetic faces
    torchrun --standalone --nproc_per_node=8 train.py rec=/data/ms1mv3     # one node with eight GPUs
    torchrun --nnodes=2 --node_rank=0 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 --nproc_per_node=8 train.py rec=/data/ms1mv3
                                                                           # the same on both nodes, with node_rank=1 on the other
    torchrun --standalone --nproc_per_node=2 train.py backbone=sllnet_small output=out/run   # two CPU processes

Arguments are `key=value` settings over those of config.py, which lists them all. `batch_size` is that of all processes together:
one process and many give the same loss curve, to rounding. SIGTERM and SIGINT (Ctrl-C) end a run after the step it is in, with its
state saved; with resume=auto the same command goes on from the newest state, also by itself under `torchrun --max-restarts=N`.

Exit status: 0 done; 75 stopped by a signal, resume=auto goes on; 2 a setting or a file cannot be used; 1 the run cannot go on
(too many steps that are not finite, another process gone).
"""
import contextlib
import logging
import math
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Callable, Optional, Sequence

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm import tqdm

from backbones import ScaledInput, embedding_size, get_backbone, input_scale
from backbones.custom_layers import RescaledOnce
from datasets import SyntheticFaces, get_dataloader, get_dataset, synthetic_pairs, to_float
from eval.verification import PairSet, embed_images, norms, pair_cosines, read_bin, ten_fold_accuracy
from headers import HEADERS, get_header
from lr_scheduler import PolynomialLRWarmup
from utils import InputError, RunError, one_line
from utils.build_dataset import write_bin
from utils.utils_callbacks import CallBackCheckpoint, CallBackLogging, CallBackVerification
from utils.checkpoint import load_weights
from utils.settings import check_choices, check_least, check_not_negative, run_command
from utils.distributed import barrier, process_group, rank, world_size
from utils.faults.guard import StepGuard, keep_batch, poisoned
from utils.images import decode_image
from utils.faults.lockstep import STOPPED, DataError, Interrupted, StopSignals, in_lockstep
from utils.utils_logging import init_logging

LOGGER = logging.getLogger("training")
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}
# settings that may differ between a run and its continuation: they do not change what is computed
FREE = {"rec", "recordio_backend", "num_workers", "compile", "device", "output", "resume", "frequent", "verbose", "val_targets",
        "save_epochs", "save_steps", "keep_states", "init_weights", "on_bad_record", "max_bad_records", "max_skipped_steps", "timeout",
        "resume_changed"}


def train(cfg: EasyDict, device: torch.device) -> None:
    """One run of the settings `cfg` on this process's `device`; all that comes of it is in the folder `cfg.output`.

    Raises InputError for settings, data or a state that cannot be used.
    """
    check(cfg)
    torch.manual_seed(cfg.seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cfg.deterministic, not cfg.deterministic
    precision = "fp32" if cfg.precision == "fp16" and device.type == "cpu" else cfg.precision

    dataset = training_set(cfg)
    loader = get_dataloader(dataset, cfg.batch_size // world_size(), seed=cfg.seed, num_workers=workers(cfg.num_workers),
                            skip_bad_records=cfg.on_bad_record == "skip", timeout=cfg.timeout)
    if not len(loader):
        raise InputError(f"{cfg.rec}: {len(dataset)} images are less than one batch of {cfg.batch_size}")
    total_steps = cfg.num_epoch * len(loader)

    network = get_backbone(cfg.backbone)
    if cfg.init_weights:
        load_weights(network, cfg.init_weights)
    network.to(device)
    embed = ScaledInput(network, input_scale(cfg.backbone))
    header = make_header(cfg, dataset.num_classes, embedding_size(embed, (3, *dataset.image_size))).to(device)
    optimizer = torch.optim.AdamW([p for p in (*network.parameters(), *header.parameters()) if p.requires_grad], cfg.lr,
                                  weight_decay=cfg.weight_decay, fused=device.type == "cuda")
    scheduler = PolynomialLRWarmup(optimizer, cfg.warmup_epoch * len(loader), total_steps, cfg.power)
    # it leaves out steps whose gradient is not finite, without waiting for the device, in every precision; only fp16 needs a scale
    fp16 = precision == "fp16"
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16 if fp16 else 1.0, growth_interval=100)

    settings = {key: value for key, value in cfg.items() if key not in FREE}
    settings.update(header_args=dict(cfg.header_args), num_classes=dataset.num_classes, num_image=len(dataset), world_size=world_size(),
                    data=dataset.fingerprint())
    parts = dict(model=network, header=header, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    torch.manual_seed(cfg.seed + rank())  # from here on ranks draw different numbers, for dropout
    checkpoints = CallBackCheckpoint(cfg.output, parts, settings, cfg.keep_states)
    progress = checkpoints.restore(cfg.resume, cfg.resume_changed)

    validated = validation_sets(cfg, dataset.image_size)
    init_logging(cfg.output)
    writer = tensorboard(cfg.output)
    verification = CallBackVerification({pairs.name: partial(verify, scale=input_scale(cfg.backbone), pairs=pairs)
                                         for pairs in validated}, writer)
    verification.highest.update(progress.get("highest", {}))
    step = progress.get("step", 0)
    describe(cfg, settings, device, precision, total_steps, step, network, verification)
    for remark in checkpoints.remarks:
        LOGGER.warning(remark)
    logging_line = CallBackLogging(cfg.frequent, total_steps, cfg.batch_size, step, writer)

    model = distribute(torch.compile(embed) if cfg.compile else embed, cfg.grad_accum_steps)
    classify = distribute(header)

    def forward(images: Tensor) -> Tensor:
        # around the forward pass alone: the backward pass repeats the precision of each operation by itself
        with torch.autocast(device.type, AUTOCAST[precision], enabled=AUTOCAST[precision] is not None):
            return model(images)

    loss_of = partial(objective, classify, lambda_=cfg.lambda_, xi=cfg.xi)
    guard = StepGuard((network, header), cfg.max_skipped_steps, overflows=fp16)
    network.train()
    header.train()

    with StopSignals() as signals, tqdm(total=total_steps, initial=step, unit="step", disable=None if rank() == 0 else True,
                                        dynamic_ncols=True) as bar:
        try:
            for epoch in range(step // len(loader), cfg.num_epoch):
                loader.set_epoch(epoch, start_batch=step % len(loader))
                for images, labels in in_lockstep(loader, signals, cfg.max_bad_records):
                    # channels last, as the loader stacks them: faster convolutions on both kinds of device
                    images = to_float(images, device, memory_format=torch.channels_last)
                    labels = labels.to(device, non_blocking=True)
                    header.step = step  # random margins are keyed by the step, so that a resumed run draws the same ones
                    optimizer.zero_grad(set_to_none=True)
                    guard.begin()
                    loss, reg_loss, norm = backward(model, forward, loss_of, images, labels, cfg.grad_accum_steps, scaler)
                    scaler.unscale_(optimizer)
                    # of the backbone alone, in every precision
                    guard.end(nn.utils.clip_grad_norm_(network.parameters(), cfg.max_norm), header)
                    scaler.step(optimizer)
                    scaler.update(None if fp16 else 1.0)
                    learning_rate = scheduler.get_last_lr()[0]
                    scheduler.step()
                    step += 1
                    bar.update()

                    if logging_line(step, epoch, learning_rate, loss, reg_loss, norm, lambda: scaler.get_scale() if fp16 else None):
                        guard.check(step)
                    if step % cfg.verbose == 0 or step == total_steps:
                        verification(step, network)
                    if step % cfg.save_steps == 0 or step % len(loader) == 0:
                        or_go_on(checkpoints.save_state, {"step": step, "highest": verification.highest})
                if (epoch + 1) % cfg.save_epochs == 0 and step < total_steps:
                    or_go_on(checkpoints.save_weights, str(epoch + 1))
        except (Interrupted, DataError, RunError) as end:  # on all ranks at the same step
            if isinstance(end, RunError):
                keep_batch(cfg.output, step, images, labels)
            if step:  # before the first one there is nothing to lose, and the same command is to start afresh
                checkpoints.save_state({"step": step, "highest": verification.highest})
            LOGGER.warning("stopped after step %d: %s%s", step, end, "; the state is saved and resume=auto goes on from it" if step else "")
            raise
        checkpoints.save_weights("final")
    if writer is not None:
        with contextlib.suppress(OSError):
            writer.close()
    LOGGER.info("done: %s", Path(cfg.output) / "model_final.pt")


def or_go_on(save: Callable, what: object) -> None:
    """Save, or say why not and go on: a disk that is full now costs no step, and what was saved before is still there."""
    try:
        save(what)
    except OSError as error:
        LOGGER.error("%s; the run goes on", error)


def objective(classify: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor, lambda_: float,
              xi: float) -> tuple[Tensor, Tensor, Tensor]:
    """cross_entropy(header(e), y) + lambda * mean(max(0, -xi log(||e|| / xi))), that regulariser, and the mean norm ||e||.

    embeddings: [N, D]; labels: int64 [N]. The 1e-24 keeps a zero embedding finite, and its gradient one that lets the norm grow.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        squares = embeddings.square().sum(1)
        log_norm = 0.5 * torch.log(squares + 1e-24)
        regulariser = F.relu(-xi * (log_norm - math.log(xi))).mean() if xi > 0 else squares.new_zeros(())
        loss = poisoned(F.cross_entropy(classify(embeddings, labels), labels) + lambda_ * regulariser)
    return loss, regulariser.detach(), squares.detach().sqrt().mean()


def backward(model: nn.Module, embed: Callable[[Tensor], Tensor], loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
             images: Tensor, labels: Tensor, parts: int, scaler: torch.amp.GradScaler) -> tuple[Tensor, Tensor, Tensor]:
    """Put the gradient of the loss over `images` [B, C, H, W], `labels` [B] into .grad; returns what `loss_of` returns, detached.

    embed: `model` under autocast. With parts > 1 the activations of only B / parts images are held at a time. Headers may look at the
    whole batch (margins by rank, batch medians), so the loss cannot be summed up part by part: the embeddings are computed first
    without a graph, then the loss and its gradient with respect to them, and that gradient is sent through the network part by part. The
    gradient is that of parts = 1 for networks whose samples are independent; BatchNorm sees parts, and dropout draws anew in each pass.
    """
    with RescaledOnce(model) as rescaling:
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


def locally(module: nn.Module) -> contextlib.AbstractContextManager:
    """Inside, backward passes add up gradients on this rank without averaging them over the ranks."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def distribute(module: nn.Module, parts: int = 1) -> nn.Module:
    """The module under DDP where there are several processes and anything to train."""
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=parts == 1)


def training_set(cfg: EasyDict) -> Dataset:
    """The images to train on; num_image is how many synthetic ones to make, and is checked against what is there otherwise."""
    if cfg.rec == "synthetic":
        classes = cfg.num_classes or 200
        return SyntheticFaces(classes, max(1, (cfg.num_image or 20 * classes) // classes), seed=cfg.seed)
    dataset = get_dataset(cfg.rec, cfg.num_classes, cfg.recordio_backend)
    if cfg.num_image not in (None, len(dataset)):
        raise InputError(f"setting num_image={cfg.num_image}: {cfg.rec} has {len(dataset)} images")
    return dataset


def validation_sets(cfg: EasyDict, size: Sequence[int]) -> list[PairSet]:
    """The .bin files beside the data, or those of them that val_targets names; pairs of further identities for synthetic data.

    Raises InputError now rather than after hours: where an image cannot be decoded or is not of the training images' size
    (height, width), and where there are too few pairs for the 10-fold accuracy.
    """
    if cfg.rec == "synthetic":
        path = Path(cfg.output) / "synthetic.bin"
        if rank() == 0:
            write_bin(path, *synthetic_pairs(num_pairs=400, seed=cfg.seed))
        barrier()
        paths = [path]
    else:
        folder = Path(cfg.rec) if Path(cfg.rec).is_dir() else Path(cfg.rec).parent
        paths = sorted(folder.glob("*.bin"))
    if cfg.val_targets is not None:
        missing = sorted(set(cfg.val_targets) - {path.stem for path in paths})
        if missing:
            raise InputError(f"setting val_targets: no {missing[0]}.bin; there are {', '.join(path.name for path in paths) or 'none'}")
        paths = [path for path in paths if path.stem in cfg.val_targets]
    validated = [read_bin(path) for path in paths]
    for pairs in validated:
        if len(pairs.same) < 10:
            raise InputError(f"{pairs.path}: {len(pairs.same)} pairs, expected at least 10 for the 10-fold accuracy (val_targets= leaves it out)")
        for number, data in enumerate(pairs.images):
            found = decode_image(data, pairs.describe(number)).shape[1:]
            if tuple(found) != tuple(size):
                raise InputError(f"{pairs.describe(number)}: the image has (height, width) {tuple(found)}, expected {tuple(size)} "
                                 "as the training images have")
    return validated


def verify(network: nn.Module, scale: float, pairs: PairSet) -> dict[str, float]:
    """10-fold accuracy of flip-summed embeddings and of the unflipped ones, and the mean norm over all images of the pairs."""
    embeddings = embed_images(ScaledInput(network, scale), pairs.images, flips=(False, True), describe=pairs.describe,
                              progress=pairs.name if rank() == 0 else "", distributed=True)
    accuracy, accuracy_std = ten_fold_accuracy(pair_cosines(embeddings.sum(0), pairs.left, pairs.right), pairs.same)
    unflipped, unflipped_std = ten_fold_accuracy(pair_cosines(embeddings[0], pairs.left, pairs.right), pairs.same)
    xnorm = norms(embeddings)[:, [*pairs.left, *pairs.right]].mean().item()
    return dict(xnorm=xnorm, accuracy=accuracy, accuracy_std=accuracy_std, unflipped=unflipped, unflipped_std=unflipped_std)


def make_header(cfg: EasyDict, num_classes: int, emb_size: int) -> nn.Module:
    """The header of the settings; one that draws random numbers gets the run's seed."""
    arguments = {**({"seed": cfg.seed} if cfg.header == "ecosface" else {}), **cfg.header_args}
    try:
        return get_header(cfg.header, num_classes, emb_size, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: weights for so many classes do not fit into memory
        raise InputError(f"setting header_args={dict(cfg.header_args)} does not fit header={cfg.header}: {error}") from error


def workers(wanted: Optional[int]) -> int:
    """Decoding processes of this training process: as asked for, or one per core that is left over, at most 8."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(8, (os.cpu_count() or 1) // processes - 1)) if wanted is None else wanted


def tensorboard(output: str):
    """A TensorBoard writer on rank 0, None elsewhere and where its file cannot be written."""
    if rank() != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter
    # its thread ends on a full disk, of which the next scalar tells: no need for a traceback as well
    threading.excepthook = lambda args: LOGGER.warning("TensorBoard: %s", args.exc_value)
    try:
        return SummaryWriter(str(Path(output) / "tensorboard"))
    except OSError as error:
        LOGGER.warning("TensorBoard gets no scalars: %s", error)
        return None


def describe(cfg: EasyDict, settings: dict, device: torch.device, precision: str, total_steps: int, step: int, network: nn.Module,
             verification: CallBackVerification) -> None:
    """Head the log with the settings, the data and the machine."""
    for key, value in {**cfg, **settings, "device": device, "precision": precision}.items():
        LOGGER.info(": %-20s %s", key, value)
    parameters = sum(p.numel() for p in network.parameters())
    LOGGER.info("%s with %d parameters, %d steps%s, verified on: %s", cfg.backbone, parameters, total_steps,
                f" from step {step}" if step else "", ", ".join(verification.verify) or "nothing")
    if precision != cfg.precision:
        LOGGER.info("precision=%s needs CUDA: this run uses %s", cfg.precision, precision)


def check(cfg: EasyDict) -> None:
    """Raise InputError, naming the setting, for a value out of range."""
    check_least(cfg, dict(num_epoch=1, batch_size=1, grad_accum_steps=1, frequent=1, verbose=1, save_epochs=1, save_steps=1, keep_states=1,
                          warmup_epoch=0, seed=0, max_bad_records=0, max_skipped_steps=1), bits=63)
    if cfg.num_workers is not None and not 0 <= cfg.num_workers <= 1024:
        raise InputError(f"setting num_workers={cfg.num_workers}: expected 0 to 1024")
    check_least(cfg, dict(num_classes=1, num_image=1), bits=31)
    if not all(isinstance(name, str) for name in cfg.val_targets or ()):
        raise InputError(f"setting val_targets={cfg.val_targets}: expected names of .bin files")
    check_not_negative(cfg, "lambda_", "xi", "lr", "weight_decay", "power", "max_norm", "timeout")
    check_choices(cfg, precision=tuple(AUTOCAST), header=HEADERS, recordio_backend=("builtin", "mxnet"), on_bad_record=("error", "skip"))
    if cfg.power == 0:
        raise InputError("setting power=0.0: expected a positive number")
    if cfg.warmup_epoch >= cfg.num_epoch:
        raise InputError(f"setting warmup_epoch={cfg.warmup_epoch}: expected less than num_epoch={cfg.num_epoch}")
    if cfg.batch_size % world_size():
        raise InputError(f"setting batch_size={cfg.batch_size}: expected a multiple of the {world_size()} processes")


def run(config: EasyDict, arguments: Optional[Sequence[str]] = None) -> int:
    """The command line: settings from `arguments` (default: the process's own); returns the exit status."""
    def work(cfg: EasyDict) -> None:
        with process_group(cfg.device, cfg.timeout) as device:
            train(cfg, device)

    try:
        return run_command("train", work, config, __doc__, arguments)
    except (Interrupted, KeyboardInterrupt):
        return STOPPED
    except RunError as error:
        print(f"train: {one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    from config import config
    sys.exit(run(config))
