"""`python -m eval smooth`: certified radii of any network, by randomised smoothing."""
import argparse
import time
from typing import Any

from eval.commands import closing
from eval.commands.arguments import budget, count, evaluation_arguments, given, inside, limit_argument, print_once, seed_argument, subjects
from eval.evaluation import Evaluation
from utils import InputError

_SETTINGS = ("sigma", "n0", "n", "alpha", "seed", "limit", "threat")


def declare(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("smooth", help="certified radii of any network, by randomised smoothing",
                                 description="Certified verification by the majority of decisions under Gaussian noise, for networks that "
                                             "are not 1-Lipschitz as well: prints Table 1 and writes pairs.csv, images.csv and "
                                             "summary.json. Each radius holds with confidence 1 - alpha. Under torchrun the work is "
                                             "shared by its processes. An interrupted run goes on where it was.")
    evaluation_arguments(parser)
    limit_argument(parser)
    seed_argument(parser)
    parser.add_argument("--sigma", type=budget, required=True, metavar="SIGMA",
                        help="standard deviation of the noise, in the scale of pixels in [-0.5, 0.5]")
    parser.add_argument("--n0", type=count, default=100, metavar="N", help="samples that choose threshold and decisions (default 100)")
    parser.add_argument("--n", "--samples", type=count, default=1000, metavar="N",
                        help="samples that certify them (default 1000); torchrun takes --n for an option of its own: write --samples there")
    parser.add_argument("--alpha", type=inside(float, 0, 1), default=1e-3, metavar="A",
                        help="the chance that a radius is too large (default 0.001)")
    parser.add_argument("--threat", choices=("one", "joint"), default="one",
                        help="one: noise on the image that is presented, either one of a pair; joint: on both, whose changes share a "
                             "budget (default one)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Certify the pairs of each .bin file."""
    from eval.show import sentence, tables
    from eval.smoothed import describe, smooth
    from eval.smoothing import Smoothing
    from eval.store import results
    settings = Smoothing(**{name: getattr(args, name) for name in _SETTINGS})
    if args.tight:
        raise InputError("--tight: it changes no cosine, and so no smoothed decision, leave it out")
    for subject in subjects(args, smoothed=True):
        before, start = subject.records, time.perf_counter()
        found = smooth(subject, settings, Evaluation(**given(args)))
        print_once(tables.render(tables.table1([found.summary])))
        print_once(describe(found))
        if found is not before:
            passes, seconds = found.summary["smoothing"]["forward_passes"], time.perf_counter() - start
            print_once(f"{passes} images passed, {passes / seconds:.0f} a second of this run")
        closing.found(subject.folder, sentence.in_words(found.summary), (results.PAIRS, results.IMAGES, results.SUMMARY))
    closing.go_on(["audit", *closing.same_subject(args), "--limit", "10", "--restarts", "1"], "tries to break it, quickly; more without "
                                                                                              "--limit and --restarts")
    if args.threat == "one":
        closing.go_on(["attack", *closing.same_subject(args), "--attack", "pgd", "--limit", "10"], "accuracy under attack; more without "
                                                                                                   "--limit")
    closing.go_on(["plot", args.out], "figures")
    closing.report(args)
