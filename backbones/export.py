"""The network with the rescaling folded into its weights: plain convolutions for deployment, without this project's code.

    python -m backbones.export --backbone sllnet --weights params/model_final.pt --out model.onnx

The ending of --out says what is written: .pt the state dict of plain weights, .pt2 a torch.export program, .ts TorchScript, .onnx ONNX
(needs the packages onnx and onnxscript). All take images [N, 3, H, W] with pixels in [-0.5, 0.5], N free.
"""
import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones import averaged, embedding_size, image_size, is_lipschitz, load_network
from backbones.bounds import lipschitz_bound
from backbones.chain import followed
from backbones.proof import fold
from utils import InputError, checkpoint
from utils.console import Parser, complain, lasting_console
from utils.faults.signals import INTERRUPTED, stopped, stops
from utils.files import atomic_write, with_homes
from utils.remarks import warnings_as_lines

FORMATS = (".pt", ".pt2", ".ts", ".onnx")


def export(network: nn.Module, path: "str | os.PathLike[str]", image_size: Sequence[int]) -> None:
    """Write the folded `network`, which takes images [N, C, H, W] with image_size = (C, H, W), to `path` in the format of its ending.

    Raises InputError for another ending, for a network that has no Lipschitz bound (see bounds.py: what is written is to be what is
    certified), where a package that ONNX needs is missing, and where an ONNX file, run on images of noise by
    onnxruntime where that is there, does not give the network's embeddings, as exporters have had their errors.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in one of {', '.join(FORMATS)}")
    lipschitz_bound(network, image_size)
    folded = fold(network).cpu()
    if path.suffix == ".pt":
        checkpoint.save(path, folded.state_dict())
        return
    dtype = next(folded.parameters()).dtype
    example = torch.zeros(2, *image_size, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about their own next versions
        written = Path(folder) / f"network{path.suffix}"
        _WRITERS[path.suffix](folded, example, written)
        if path.suffix == ".onnx":
            _check(folded, torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=dtype) - 0.5, written)
        with atomic_write(path, "wb") as file:
            file.write(written.read_bytes())


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """`network` traced for images [N, C, H, W] with N free. Without a largest N torch 2.7 finds that it must not be 2^63 - 1."""
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**31 - 1)},))


def _write_torchscript(network: nn.Module, example: Tensor, path: Path) -> None:
    torch.jit.save(torch.jit.trace(network, example), str(path))


def _write_program(network: nn.Module, example: Tensor, path: Path) -> None:
    torch.export.save(_program(network, example), path)


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs the package {error.name}: pip install onnx onnxscript") from None
    # in simple operations: for PixelUnshuffle itself torch 2.7 writes SpaceToDepth, which orders the channels in another way
    program = _program(network, example).run_decompositions()
    torch.onnx.export(program, (), str(path), input_names=["images"], output_names=["embeddings"], dynamo=True, external_data=False,
                      verbose=False)


@torch.no_grad()
def _check(network: nn.Module, images: Tensor, path: Path) -> None:
    """Raise InputError where the ONNX file at `path` does not compute what the network does."""
    try:
        import onnxruntime
    except ImportError:
        return
    expected = network(images)
    found = torch.from_numpy(onnxruntime.InferenceSession(str(path)).run(None, {"images": images.numpy()})[0])
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()):
        raise InputError(f"the exporter of this version of torch ({torch.__version__}) wrote an ONNX file that gives other embeddings, off "
                         f"by {(found - expected).abs().max():.2g}; another version of torch and onnxscript, or another format, may do")


_WRITERS = {".ts": _write_torchscript, ".pt2": _write_program, ".onnx": _write_onnx}


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= 4096):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1 to 4096")
    return int(text)


@lasting_console()
@warnings_as_lines()
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(prog="python -m backbones.export", description="Write an SLL network as plain convolutions.")
    parser.add_argument("--backbone", required=True, metavar="NAME")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its state dict")
    parser.add_argument("--out", required=True, metavar="FILE", help=f"what to write; the ending chooses the format: {' '.join(FORMATS)}")
    parser.add_argument("--image-size", type=_size, nargs=3, metavar=("C", "H", "W"),
                        help="size of the images (default: that of the network)")
    parser.add_argument("--flip", choices=("none", "average"), default="none",
                        help="average: embeddings are means over an image and its mirror image (default none)")
    args = with_homes(parser.parse_args(argv))
    try:
        with stops():
            _export(args)
    except (InputError, OSError) as error:
        complain("error", error)
        return 2
    except KeyboardInterrupt as error:
        return stopped(error, "nothing was written", INTERRUPTED)
    print(args.out)
    return 0


def _export(args: argparse.Namespace) -> None:
    if not is_lipschitz(args.backbone):
        raise InputError(f"--backbone {args.backbone}: no SLL network, there is nothing to fold")
    size = args.image_size or image_size(args.backbone)
    if args.flip == "average" and Path(args.out).suffix == ".pt":
        raise InputError(f"--flip average --out {args.out}: a state dict cannot say so, expected another format")
    network = load_network(args.backbone, args.weights)
    embedding_size(network, size)
    if Path(args.out).suffix != ".pt":  # whose names are those of the network
        network = followed(network, size)
    export(averaged(network, args.flip), args.out, size)


if __name__ == "__main__":
    sys.exit(main())
