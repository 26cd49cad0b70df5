"""Things of one kind by name, each registered beside its definition; things of others by `package.module:Name`."""
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from utils import InputError


class Named(Protocol):
    """What entries have in common."""

    @property
    def name(self) -> str:
        """What commands call it."""

    @property
    def build(self) -> Callable[..., Any]:
        """What was registered."""


E = TypeVar("E", bound=Named)
T = TypeVar("T")


class Registry(Generic[E]):
    """Entries of one kind: what was registered, and what commands need to know of it.

    kind: what messages call a thing ("backbone"). entry: the class of the entries, a dataclass with the fields `name` and `build` (what was
    registered) and further ones with defaults (the facts). modules: the names of the modules where the built-in things are defined;
    they are imported when somebody first asks.
    """

    def __init__(self, kind: str, entry: Callable[..., E], modules: Callable[[], Iterable[str]] = tuple):
        self.kind, self._entry, self._modules = kind, entry, modules
        self._entries: dict[str, E] = {}
        self._aliases: dict[str, str] = {}
        self._complete = False

    def register(self, name: str, *aliases: str, **facts: Any) -> Callable[[T], T]:
        """A decorator that makes a class or function known as `name` (and as `aliases`); `facts` go to its entry.

        Raises ValueError for a name that something else has.
        """
        def add(build: T) -> T:
            for word in (name, *aliases):
                known = self._entries.get(self._aliases.get(word, word))
                if known is not None and not _same(known.build, build):
                    raise ValueError(f"{self.kind} {word!r} is registered already, as {known.build!r}")
            self._entries[name] = self._entry(name=name, build=build, **facts)
            self._aliases.update(dict.fromkeys(aliases, name))
            return build
        return add

    def names(self) -> list[str]:
        """All registered names, without aliases, in the order of registration."""
        self._load()
        return list(self._entries)

    def find(self, name: str) -> E:
        """The entry of a registered name, of an alias, or of `package.module:Name` of somebody else's code.

        What `Name` was registered with there holds for it; without that, an entry whose facts are the defaults. Modules are looked for
        where Python looks and in the current folder. Raises InputError, with the nearest name, where there is none.
        """
        if ":" in name:
            return self._outside(name)
        self._load()
        name = self._aliases.get(name, name)
        if name not in self._entries:
            raise InputError(f"{self.kind} {name!r} is not known{self._nearest(name)} (there are {', '.join(self._entries)}; another "
                             "project's is given as package.module:Name)")
        return self._entries[name]

    def _load(self) -> None:
        if not self._complete:
            self._complete = True  # first: these modules may ask for names themselves
            for module in self._modules():
                importlib.import_module(module)

    def _nearest(self, name: str) -> str:
        words = {word.casefold(): word for word in (*self._entries, *self._aliases)}
        near = difflib.get_close_matches(name.casefold(), words, n=1)
        return f"; did you mean {words[near[0]]!r}?" if near else ""

    def _outside(self, name: str) -> E:
        module, _, attribute = name.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            build = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever the other project's code raises while it is imported
            reason = str(error) if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: {error}"
            raise InputError(f"{self.kind} {name}: cannot be imported: {reason}") from error
        if not callable(build):
            raise InputError(f"{self.kind} {name}: is a {type(build).__name__}, expected a class or a function")
        registered = next((entry for entry in self._entries.values() if entry.build is build), None)
        return registered or self._entry(name=name, build=build)


def _same(one: Any, other: Any) -> bool:
    """Whether two definitions are one, that of a module which was imported again."""
    places = [(getattr(build, "__module__", None), getattr(build, "__qualname__", None)) for build in (one, other)]
    return one is other or None not in places[0] and places[0] == places[1]


def check_arguments(build: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise TypeError, naming it, for an argument of `build` that is of another type than its default (an int may stand for a float), or
    negative where that is an int. `build` itself says which ones it does not take.
    """
    parameters = inspect.signature(build).parameters
    for key, value in given.items():
        default = parameters[key].default if key in parameters else None
        kind = type(default)
        if default is None or default is inspect.Parameter.empty:  # tells nothing of the type
            continue
        if type(value) is not kind and (kind, type(value)) != (float, int) or kind is int and value < 0:
            raise TypeError(f"{key}={value!r}, expected {kind.__name__}{' >= 0' * (kind is int)}")
