"""`python -m eval verify`: two photos, one answer with a certificate."""
import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from eval.commands.arguments import attack_arguments, device_named, inside, network_arguments, search_settings
from eval.evaluation import Evaluation
from utils import InputError, printable

MODEL, ATTACK, DETECTOR = "orthonet_faces", "ddn", "uniface"
ALIGNS = ("none", "landmarks", "auto")


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("verify", help="do two photos show one person? With a certificate",
                                 description="Compares two photos, or those of a list, or searches for people in a gallery, and says up to "
                                             "which size no change of the network's input turns each answer. Exit status: 0 accepted, 1 "
                                             "rejected, 2 where a photo cannot be used.")
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="two image files: JPEG, PNG or WebP")
    parser.add_argument("--pairs", metavar="FILE.csv", help="many pairs: columns left, right and, if known, same (1 or 0); paths are "
                                                            "relative to the file")
    parser.add_argument("--gallery", metavar="DIR", help="people to search for: a folder of photos for each, or one photo for each")
    parser.add_argument("--probes", metavar="DIR", help="photos to find them by")
    parser.add_argument("--out", metavar="FILE", help="write the answer of two photos as JSON, of many as csv")
    parser.add_argument("--skip-unusable", action="store_true", help="of many: say in a column why a photo cannot be used, and go on")
    parser.add_argument("--json", action="store_true", help="print the answer of two photos as JSON")
    parser.add_argument("--attack", nargs="?", const=ATTACK, metavar="NAME",
                        help=f"also look for the smallest change that turns the decision, by {ATTACK} or another of `python -m eval list`")
    parser.add_argument("--picture", metavar="FILE.png", help=f"draw faces, attack (--attack {ATTACK} if none is named) and certificate")
    _align_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help=f"a trained network of params/models.json (default {MODEL}); --backbone and "
                                                        "--weights take one of your own")
    network_arguments(parser, required=False)
    parser.add_argument("--far", type=inside(float, 0, 1), help="take the threshold that was found for this FAR with the model")
    parser.add_argument("--tau", type=inside(float, -1, 1), help="the threshold itself, a cosine")
    parser.add_argument("--sound", action="store_true", help="a radius that is proven in floating point, from embeddings in float64")
    attack_arguments(parser)
    parser.set_defaults(run=run)


def _align_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--align", choices=ALIGNS, help="none: the photos are aligned crops (default); landmarks: by --landmarks; auto: by "
                                                        "a detector of faces")
    parser.add_argument("--landmarks", metavar="FILE", help="five points of each photo, csv or JSON: eyes, nose, corners of the mouth")
    parser.add_argument("--detector", default=DETECTOR, metavar="NAME",
                        help=f"of --align auto (default {DETECTOR}), or package.module:Name")
    parser.add_argument("--face", type=_faces, metavar="N[,N]", default=(),
                        help="which face of a photo with several, 1 being the largest; two numbers are for two photos")


def _faces(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up, or two with a comma between them")
    return tuple(map(int, text.split(",")))


class _Judge(NamedTuple):
    """What decides. side: pixels of its images; align(photo, which of two it is): the crop; arguments: of the network; origin: where the
    answers come from.
    """
    side: int
    align: Callable[..., Any]
    evaluation: Evaluation
    device: Any
    arguments: dict[str, Any]
    origin: dict[str, Any]


def run(args: argparse.Namespace) -> int:
    """Answer. What can be wrong with the input is found before anything is computed or written."""
    _refuse_mixtures(args)
    for name in ("out", "picture"):
        _refuse_occupied(f"--{name}", getattr(args, name), [*args.photos, args.pairs, args.landmarks, args.weights])
    if args.out and args.picture and os.path.realpath(args.out) == os.path.realpath(args.picture):
        raise InputError(f"--out {args.out}: the picture is to be written there, expected another file")
    if args.attack or args.picture:
        from eval.robustness import build_attack
        args.attack = args.attack or ATTACK
        build_attack(args.attack, "strict", search_settings(args), None if _is_minimum_norm(args.attack) else 1.)
    judge = _judge(args)
    if args.photos:
        return _two(args, judge)
    return _pairs(args, judge) if args.pairs is not None else _search(args, judge)


def _is_minimum_norm(attack: str) -> bool:
    import attacks
    return attacks.ATTACKS.find(attack).minimum_norm


def _refuse_mixtures(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    many = args.pairs is not None, args.gallery is not None or args.probes is not None
    if [bool(args.photos), *many].count(True) != 1 or len(args.photos) not in (0, 2) or (args.gallery is None) != (args.probes is None):
        raise InputError("verify takes two photos, or --pairs FILE.csv, or --gallery DIR with --probes DIR")
    if any(many) and (args.attack or args.picture or args.json):
        raise InputError("--attack, --picture and --json are for two photos")
    if any(many) and args.out is None:
        raise InputError("--out: expected the csv file for the answers")
    if args.sound and args.gallery is not None:
        raise InputError("--sound is for pairs")
    if args.photos and args.skip_unusable:
        raise InputError("--skip-unusable is for many photos")
    if args.tau is not None and args.far is not None:
        raise InputError("--tau and --far: expected one of them")
    if (args.backbone is None) != (args.weights is None) or args.backbone is not None and args.model is not None:
        raise InputError("--backbone and --weights go together, and without --model")
    if args.sound and args.tight:
        raise InputError("--sound: its radii are divided by the Lipschitz constant already, leave --tight out")
    args.align = args.align or ("none" if args.landmarks is None else "landmarks")
    if (args.align == "landmarks") != (args.landmarks is not None):
        raise InputError("--align landmarks and --landmarks FILE go together")
    if args.face and args.align != "auto" or len(args.face) == 2 and not args.photos:
        raise InputError("--face is for --align auto, and two numbers are for two photos")


def _refuse_occupied(option: str, path: str | None, inputs: Sequence[str | None]) -> None:
    """Raise InputError where a file to write is one that is read, or a folder, or has the ending of another kind."""
    if path is None:
        return
    if any(name is not None and os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name) for name in inputs):
        raise InputError(f"{option} {path}: this file is read, expected another one to write")
    if os.path.isdir(path):
        raise InputError(f"{option} {path}: a folder, expected a file")
    if option == "--picture" and not path.lower().endswith(".png"):
        raise InputError(f"{option} {path}: expected a name that ends in .png")


def _judge(args: argparse.Namespace) -> _Judge:
    """What is asked for. The backbone, weights and flip of `args` are then those of the model."""
    from backbones import image_size, models
    from eval.store.subject import require_lipschitz
    model = models.find(args.model or MODEL) if args.backbone is None else None
    tau, far, said = _threshold(args, model)
    if model is not None:
        args.backbone, args.weights, args.flip = model.backbone, str(models.weights_of(model)), args.flip or model.flip
    args.flip = args.flip or Evaluation.flip
    require_lipschitz(args.backbone, "certified answers")
    _, height, width = image_size(args.backbone)
    if height != width:
        raise InputError(f"--backbone {args.backbone}: takes images of {height} x {width}, expected a network for square ones")
    origin = {"model": model.name if model else None, "tau": tau, "far": far, "tau_from": said, "align": args.align}
    return _Judge(width, _align(args, width, model.pupils if model else ()), Evaluation(tau=tau, flip=args.flip), device_named(args.device),
                  dict(model.arguments) if model else {}, origin)


def _threshold(args: argparse.Namespace, model: Any) -> tuple[float, float | None, str]:
    """tau, the FAR that it was found for, and where it comes from."""
    if args.tau is not None:
        return args.tau, None, "given by --tau"
    if model is None:
        raise InputError("--tau: nothing says which threshold belongs to these weights; `python -m eval certify` chooses one on pairs")
    if args.flip not in (None, model.flip):
        raise InputError(f"--flip {args.flip}: the thresholds of {model.name} are for {model.flip}; --tau gives another")
    found = model.threshold(args.far)
    return found["tau"], found["far"], f"for FAR {found['far']:g} of {model.name} on {model.found_on}"


def _align(args: argparse.Namespace, side: int, pupils: Sequence[Sequence[float]]) -> Callable[..., Any]:
    from eval import alignment
    if args.align == "none":
        return lambda photo, place=0: alignment.as_it_is(photo, side)
    target = alignment.template(side, pupils)
    if args.align == "landmarks":
        points_of = alignment.read_points(args.landmarks)
        return lambda photo, place=0: alignment.cropped(photo, points_of(photo.path), target, side)
    from eval.detection import detector
    found, faces = detector(args.detector), args.face or (0,)
    return lambda photo, place=0: alignment.of_face(photo, found, faces[place % len(faces)], target, side)


def _loaded(args: argparse.Namespace, judge: _Judge) -> tuple[Any, Any, dict[str, Any]]:
    """(network, proof of its rounding under --sound or None, how images are embedded)."""
    from backbones import naming
    from backbones.chain import followed
    from eval.commands.certify import model_of
    model, proven = model_of(args, judge.device, **judge.arguments)
    size = (3, judge.side, judge.side)
    judge.origin.update(model.origin, image_size=size)
    how = {"device": judge.device, "batch_size": args.batch_size}
    if proven is None:
        return model.network, None, how
    with naming(args.weights):  # what is proven of it is said with its rounding; its plain radii are for a constant of 1
        return followed(model.network, size), proven.prove(size), {**how, "lipschitz": 1.0}


def _two(args: argparse.Namespace, judge: _Judge) -> int:
    import json

    from eval import answer
    from eval.photos import read_photo
    from utils.files import write_json
    crops = [judge.align(read_photo(path), place) for place, path in enumerate(args.photos)]
    network, proof, how = _loaded(args, judge)
    found = answer.answer(network, answer.pair_set_of(crops, [0], [1], judge.side), judge.evaluation, proof, **how)
    success = answer.smallest_attack(found, args.attack, seed=args.seed, **search_settings(args)) if args.attack else None
    document = answer.document(found, crops, judge.origin, success)
    if args.picture and success is not None:
        from eval.show.answer import draw
        draw(crops, found, document, success, args.picture)
    if args.out:
        write_json(args.out, document)
    if args.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print(answer.describe(document), *_written(args.picture, args.out), sep="\n")
    return 0 if document["accepted"] else 1


def _pairs(args: argparse.Namespace, judge: _Judge) -> int:
    from eval import answer, photo_lists
    from utils.files import write_csv
    listed = photo_lists.read_list(args.pairs)
    left, right = listed["left_path"], listed["right_path"]
    _refuse_occupied("--out", args.out, [*left, *right])
    crops, unusable = photo_lists.crops_of([*left, *right], judge.align, args.skip_unusable, "photos")
    numbers = {path: number for number, path in enumerate(crops)}
    good = listed[left.isin(numbers) & right.isin(numbers)]
    if good.empty:
        raise InputError(f"{args.pairs}: no pair can be used: {next(iter(unusable.values()))}")
    network, proof, how = _loaded(args, judge)
    pair_set = answer.pair_set_of(list(crops.values()), good["left_path"].map(numbers), good["right_path"].map(numbers), judge.side)
    found = answer.answer(network, pair_set, judge.evaluation, proof, progress="pairs", **how)
    table = listed.drop(columns=["left_path", "right_path"]).join(answer.table_of(found).set_index(good.index))
    if args.skip_unusable:
        table["unusable"] = photo_lists.reasons(unusable, left, right)
    write_csv(args.out, table.assign(tau=judge.evaluation.tau))
    print(answer.describe_many(table, judge.origin), *_written(args.out), sep="\n")
    return 0


def _search(args: argparse.Namespace, judge: _Judge) -> int:
    from eval import answer, gallery, photo_lists
    from utils.files import write_csv
    enrolled, probes = (photo_lists.photos_in(folder) for folder in (args.gallery, args.probes))
    _refuse_occupied("--out", args.out, [path for path, _ in [*enrolled, *probes]])
    crops, _ = photo_lists.crops_of([path for path, _ in enrolled], judge.align, False, "gallery")
    searched, unusable = photo_lists.crops_of([path for path, _ in probes], judge.align, args.skip_unusable, "probes")
    network, _, how = _loaded(args, judge)
    found = gallery.search(network, list(crops.values()), [person for _, person in enrolled], list(searched.values()), judge.origin["tau"],
                           judge.side, progress="search", **how)
    table = found.set_index("probe").reindex([path for path, _ in probes]).reset_index()
    if args.skip_unusable:
        table["unusable"] = photo_lists.reasons(unusable, table["probe"])
    write_csv(args.out, table.assign(tau=judge.evaluation.tau))
    print(gallery.describe(table, [person for _, person in enrolled], judge.origin), answer.SCOPE, *_written(args.out), sep="\n")
    return 0


def _written(*paths: str | None) -> list[str]:
    return [f"written: {printable(path)}" for path in paths if path]
