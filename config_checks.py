"""What the settings of config.py may be, which of them a run may be continued with, and what the published configuration calls them."""
import math
from collections.abc import Mapping
from typing import Any

from easydict import EasyDict

from config import config
from headers import HEADERS
from utils import InputError
from utils.distributed import world_size
from utils.settings import check_choices, check_least, check_not_negative, override, require_known

PRECISIONS = ("fp16", "bf16", "fp32")
ADVERSARIAL = ("none", "pgd", "trades")
# settings that may differ between a run and its continuation: they do not change what is computed
FREE = {"rec", "recordio_backend", "in_memory", "num_workers", "compile", "device", "output", "resume", "frequent", "verbose",
        "val_targets", "save_epochs", "save_steps", "keep_states", "init_weights", "on_bad_record", "max_bad_records", "max_skipped_steps",
        "timeout", "resume_changed", "header_shards", "save_header"}
# of these, those that may differ between the processes of a run: where a machine has its files, and what it is
OF_A_MACHINE = {"rec", "recordio_backend", "in_memory", "num_workers", "device", "output", "resume", "init_weights", "timeout"}

# settings that states of earlier versions do not name, and what they were there
ADDED = {key: config[key] for key in ("contrast", "contrast_args", "partners", "jitter", "muon", "sample_rate", "noise_sigma",
                                    "adversarial", "adversarial_eps", "adversarial_steps", "adversarial_step_size", "trades_beta")}


def _precision(fp16: str) -> str:
    if fp16 not in ("True", "False"):
        raise InputError(f"setting fp16={fp16[:60]}: expected True or False")
    return f"precision={'fp16' if fp16 == 'True' else 'fp32'}"


PUBLISHED = {"lambd": "lambda_={}".format, "fp16": _precision}  # as `override` takes them; emb_size is the same


def complete(cfg: EasyDict) -> EasyDict:
    """The settings with what they lack taken from config.py."""
    return EasyDict({**config, **cfg})


def checked(cfg: EasyDict) -> EasyDict:
    """The complete settings, under our own names. Raises InputError, naming the setting, for one that is not known and for a value out
    of range.
    """
    cfg = override(complete(cfg), [], PUBLISHED)
    for key in cfg:
        require_known(key, config)
    check_least(cfg, dict(num_epoch=1, batch_size=1, grad_accum_steps=1, frequent=1, verbose=1, save_epochs=1, save_steps=1, keep_states=1,
                          warmup_epoch=0, seed=0, max_bad_records=0, max_skipped_steps=1, adversarial_steps=1), bits=63)
    if cfg.num_workers is not None and not 0 <= cfg.num_workers <= 1024:
        raise InputError(f"setting num_workers={cfg.num_workers}: expected 0 to 1024")
    check_least(cfg, dict(num_classes=1, num_image=1, emb_size=1), bits=31)
    if not all(isinstance(name, str) for name in cfg.val_targets or ()):
        raise InputError(f"setting val_targets={cfg.val_targets}: expected names of .bin files")
    check_not_negative(cfg, "lambda_", "xi", "lr", "weight_decay", "power", "max_norm", "timeout", "contrast", "jitter", "muon",
                       "noise_sigma", "trades_beta")
    if cfg.jitter > 10:
        raise InputError(f"setting jitter={cfg.jitter}: expected at most 10")
    if not 0 < cfg.sample_rate <= 1 or cfg.sample_rate < 1 and cfg.header_shards is False:
        raise InputError(f"setting sample_rate={cfg.sample_rate}: expected a number above 0 and at most 1; 1 without shards")
    for key in ("header_shards", "save_header"):
        if cfg[key] not in (None, True, False):
            raise InputError(f"setting {key}={cfg[key]}: expected True, False or None")
    _check_contrast(cfg.contrast_args)
    _check_adversarial(cfg)
    check_choices(cfg, precision=PRECISIONS, recordio_backend=("builtin", "mxnet"), on_bad_record=("error", "skip"))
    HEADERS.find(cfg.header)
    if cfg.power == 0:
        raise InputError("setting power=0.0: expected a positive number")
    if cfg.warmup_epoch >= cfg.num_epoch:
        raise InputError(f"setting warmup_epoch={cfg.warmup_epoch}: expected less than num_epoch={cfg.num_epoch}")
    if cfg.batch_size % world_size():
        raise InputError(f"setting batch_size={cfg.batch_size}: expected a multiple of the {world_size()} processes")
    return cfg


def _check_contrast(given: Mapping[str, Any]) -> None:
    numbers = [value for value in given.values() if type(value) in (int, float) and math.isfinite(value)]
    if set(given) != {"s", "m"} or len(numbers) < 2 or given["s"] <= 0:
        raise InputError(f"setting contrast_args={dict(given)}: expected finite numbers 's', positive, and 'm'")


def _check_adversarial(cfg: EasyDict) -> None:
    check_choices(cfg, adversarial=ADVERSARIAL)
    for key in ("adversarial_eps", "adversarial_step_size"):
        if cfg[key] is not None and not 0 < cfg[key] < math.inf:
            raise InputError(f"setting {key}={cfg[key]}: expected a positive, finite number")
    if cfg.adversarial != "none" and cfg.noise_sigma > 0:
        raise InputError(f"setting noise_sigma={cfg.noise_sigma}: expected 0 with adversarial={cfg.adversarial}, whose images stay in "
                         "the pixel range")
