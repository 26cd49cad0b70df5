"""Full float32 arithmetic where a bound or a radius depends on it."""
import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Turn off TF32 and reduced-precision float32 products (CUDA, cuDNN and CPU) inside; what was set before comes back after.

    TF32 keeps 10 bits of the mantissa: a relative error of 1e-3 in an embedding norm or a rescaling is an error of 1e-3 in a radius.
    """
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if matmul == "highest" and not convolution:
        yield
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
