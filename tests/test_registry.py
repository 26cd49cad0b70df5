"""Things by name: registration, aliases, nearest names, and those of other projects."""
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from conftest import ROOT
from processes import python

from utils import InputError
from utils.registry import Registry


@dataclass(frozen=True)
class Entry:
    name: str
    build: Callable
    colour: str = "grey"


@pytest.fixture
def fruits():
    registry = Registry("fruit", Entry)

    @registry.register("apple", "malus", colour="red")
    class Apple:
        pass

    @registry.register("pear")
    def pear():
        return "a pear"
    registry.Apple, registry.pear = Apple, pear
    return registry


def test_names_aliases_and_facts(fruits):
    assert fruits.names() == ["apple", "pear"]
    assert fruits.find("apple") is fruits.find("malus") and fruits.find("malus").name == "apple"
    assert fruits.find("apple").build is fruits.Apple and fruits.find("apple").colour == "red"
    assert fruits.find("pear").build() == "a pear" and fruits.find("pear").colour == "grey"
    with pytest.raises(TypeError, match="weight"):
        fruits.register("plum", weight=3)(fruits.pear)


@pytest.mark.parametrize("names", [("apple",), ("malus",), ("plum", "apple"), ("plum", "malus"), ("plum", "pear")])
def test_names_that_are_taken_are_refused(fruits, names):
    with pytest.raises(ValueError, match=f"fruit '{names[-1]}' is registered already"):
        fruits.register(*names)(lambda: None)
    assert fruits.names() == ["apple", "pear"] and fruits.find("malus").build is fruits.Apple


def test_the_same_thing_may_register_again(fruits):
    """As where its module is imported a second time."""
    fruits.register("apple", "malus", colour="green")(fruits.Apple)
    assert fruits.names() == ["apple", "pear"] and fruits.find("malus").colour == "green"


@pytest.mark.parametrize("given, nearest", [("aple", "apple"), ("Apple", "apple"), ("MALUS", "malus"), ("PAER", "pear"), ("Malu", "malus")])
def test_a_mistyped_name_leads_to_the_nearest(fruits, given, nearest):
    with pytest.raises(InputError, match=rf"fruit '{given}' is not known; did you mean '{nearest}'\? \(there are apple, pear; ") as error:
        fruits.find(given)
    assert "package.module:Name" in str(error.value)


def test_a_name_like_no_other_lists_them_all(fruits):
    with pytest.raises(InputError, match=r"fruit 'xyz' is not known \(there are apple, pear;"):
        fruits.find("xyz")


def test_modules_are_imported_when_somebody_asks(tmp_path, monkeypatch):
    (tmp_path / "orchard_of_plums.py").write_text("raise RuntimeError('too early')")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("fruit", Entry, lambda: ["orchard_of_plums"])
    (tmp_path / "orchard_of_plums.py").write_text("import sys\nsys.plums.register('plum')(print)\n")
    monkeypatch.setattr(sys, "plums", registry, raising=False)
    assert registry.names() == ["plum"] and registry.find("plum").build is print


OUTSIDE = '''
from test_registry import FRUITS

def plain():
    return "plain"

@FRUITS.register("quince", "cydonia", colour="yellow")
class Quince:
    class Inner:
        pass

number = 3
'''
FRUITS = Registry("fruit", Entry)


@pytest.fixture
def orchard(tmp_path, monkeypatch):
    """A folder outside the repository, in which one works, with a package."""
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "quinces.py").write_text(OUTSIDE)
    texts = {"fails": "1 / 0", "torn": "def f(:", "needs": "import a_module_that_is_nowhere", "many": "raise ValueError('two\\nlines')"}
    for name, text in texts.items():
        (tmp_path / "somewhere" / f"{name}.py").write_text(text + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "somewhere"]:
        del sys.modules[name]


def test_a_thing_of_somebody_else(orchard, fruits):
    entry = fruits.find("somewhere.quinces:plain")
    assert entry.build() == "plain" and entry.colour == "grey" and entry.name == "somewhere.quinces:plain"
    assert fruits.names() == ["apple", "pear"], "it is not taken in"
    assert str(orchard) in sys.path and sys.path[0] != str(orchard), "what is installed goes before the current folder"


def test_what_it_was_registered_with_holds_for_it(orchard):
    entry = FRUITS.find("somewhere.quinces:Quince")
    assert (entry.name, entry.colour) == ("quince", "yellow") and FRUITS.find("cydonia") is entry


@pytest.mark.parametrize("name, words", [
    ("somewhere.nothing:Quince", "No module named 'somewhere.nothing'"), ("nowhere:Quince", "No module named 'nowhere'"),
    ("somewhere.quinces:Medlar", "has no attribute 'Medlar'"), ("somewhere.quinces:number", "is a int, expected a class or a function"),
    ("somewhere.quinces:", "has no attribute ''"), (":Quince", "ValueError"), ("..quinces:Quince", "cannot be imported"),
    ("somewhere.needs:x", "No module named 'a_module_that_is_nowhere'"), ("somewhere.fails:x", "ZeroDivisionError: division by zero"),
    ("somewhere.torn:x", "SyntaxError: ")])
def test_what_cannot_be_imported_says_so(orchard, fruits, name, words):
    with pytest.raises(InputError) as error:
        fruits.find(name)
    assert str(error.value).startswith(f"fruit {name}: ") and words in str(error.value) and "\n" not in str(error.value)


def test_command_lines_say_it_in_one_line(orchard):
    done = python(ROOT / "train.py", "header=somewhere.many:Head", cwd=orchard)
    assert done.returncode == 2 and done.stderr == "train: header somewhere.many:Head: cannot be imported: ValueError: two lines\n"
