"""Settings given as `key=value`, read as literals and checked against the type of what they replace, and against their range."""
import ast
import contextlib
import copy
import difflib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from easydict import EasyDict

from utils import InputError
from utils.console import complain
from utils.files import at_home
from utils.remarks import warnings_as_lines

# what settings that are None by default may be given
_OPTIONAL = {"num_classes": int, "num_image": int, "num_workers": int, "emb_size": int, "init_weights": str, "device": str, "resume": str,
             "val_targets": list, "epochs": int, "batch_size": int, "header_shards": bool, "save_header": bool,
             "adversarial_step_size": float}


NO_NAMES: Mapping[str, Callable[[str], str]] = MappingProxyType({})


def override(config: EasyDict, arguments: Sequence[str], names: Mapping[str, Callable[[str], str]] = NO_NAMES) -> EasyDict:
    """A copy of `config` with the `key=value` arguments put in.

    Values are Python literals; text needs no quotes. An int may stand for a float. A path may begin with ~. names: other projects'
    names of settings, each with a function from the text of its value to the `key=value` meant; those in `config` hold over what it has
    under our own names. Raises InputError for an argument without "=", an unknown key (naming the nearest one), a key given twice, or a
    value of another type.
    """
    settings = copy.deepcopy(config)
    foreign = [f"{key}={settings.pop(key)}" for key in names if key in settings]
    if foreign:
        settings = override(settings, foreign, names)
    defaults, given = dict(settings), set()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise InputError(f"argument {argument[:60]!r}: expected key=value")
        if key in names:
            key, _, text = names[key](text).partition("=")
        require_known(key, settings)
        if key in given:
            raise InputError(f"setting {key!r} is given twice")
        given.add(key)
        settings[key] = _typed(key, text, defaults[key])
    for key, value in settings.items():
        settings[key] = at_home(value)
    return settings


def require_known(key: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError, with the nearest name, for a key that is none of the settings."""
    if key not in settings:
        names = {name.casefold(): name for name in settings}
        near, word = [names[name] for name in difflib.get_close_matches(key.casefold(), names, n=1)], key.rstrip("s").casefold()
        alike = [name for name in settings if len(word) > 3 and word in name]
        if len(alike) > 1:  # the nearest of several may be another one: of epochs that is save_epochs
            hint = f"did you mean one of {', '.join(alike)}?"
        else:
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(settings)}"
        raise InputError(f"setting {key[:60]!r} is not known; {hint}")


@contextlib.contextmanager
def at_fault(cfg: EasyDict, key: str) -> Iterator[None]:
    """Messages of what cannot be used inside, or of arguments that do not fit, begin with the setting that says so."""
    try:
        yield
    except (InputError, TypeError) as error:
        raise InputError(f"setting {key}={cfg[key]}: {error}") from error


def _typed(key: str, text: str, default: Any) -> Any:
    kind = _OPTIONAL[key] if default is None else dict if isinstance(default, dict) else type(default)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if default is None and value is None:
        return None
    if kind is str:
        return value if isinstance(value, str) else text
    if kind is list and isinstance(value, (str, tuple)):
        value = value.split(",") if isinstance(value, str) else list(value)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        value = EasyDict(value)
    if kind is dict and type(value) is dict:
        raise InputError(f"setting {key}={' '.join(text[:60].split())}: expected names as keys")
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"setting {key}={' '.join(text[:60].split())}: expected {kind.__name__}, found {type(value).__name__}")


def run_command(name: str, work: Callable[[EasyDict], object], config: EasyDict, usage: str, arguments: Sequence[str] | None = None,
                names: Mapping[str, Callable[[str], str]] = NO_NAMES) -> int:
    """The command line of a script: `work` with `config` and its `key=value` arguments (None: the process's own), or `usage` for --help.

    names: as `override` takes them.

    Returns the exit status: 0, or 2 after one line headed by `name` where `work` raises InputError or OSError.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(usage)
        return 0
    try:
        with warnings_as_lines():
            work(override(config, arguments, names))
    except (InputError, OSError) as error:
        complain(name, error)
        return 2
    return 0


def check_least(cfg: EasyDict, least: Mapping[str, int], bits: int | None = None) -> None:
    """Raise InputError, naming the setting, unless each one is None or at least that number; with `bits`, also below 2**bits."""
    for key, bound in least.items():
        if cfg[key] is not None and not bound <= cfg[key] < (2**bits if bits else math.inf):
            raise InputError(f"setting {key}={cfg[key]}: expected at least {bound}" + (f", and less than 2**{bits}" if bits else ""))


def check_not_negative(cfg: EasyDict, *keys: str) -> None:
    """Raise InputError, naming the setting, unless each one is finite and not negative."""
    for key in keys:
        if not 0 <= cfg[key] < math.inf:
            raise InputError(f"setting {key}={cfg[key]}: expected a finite number that is not negative")


def check_choices(cfg: EasyDict, **allowed: Sequence[str]) -> None:
    """Raise InputError, naming the setting, unless each one is among the allowed words."""
    for key, words in allowed.items():
        if cfg[key] not in words:
            raise InputError(f"setting {key}={cfg[key]}: expected one of {', '.join(words)}")
