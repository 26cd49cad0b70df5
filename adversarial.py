"""Adversarial training: the images of a step are moved by an attack on the network as it is, before the network learns from them.

    pgd      the loss of the moved images (Madry et al., ICLR 2018). Each is moved away from its person: from the embedding of the next
             image of the person in the whole batch, where there is one, and otherwise from its own
    trades   the loss of the clean images, and beta times how far the attack moves their embeddings (`losses.trades`), which the attack
             maximises: each is moved away from its own embedding

Both lower a cosine, as `attacks.PGD` does for the objective "dodging", with its steps (`PGD.ahead`), the l2 budget in pixels of
[-0.5, 0.5]. The loop is another one: the search of attacks.py drops samples that have succeeded and keeps their best points, for which
the host waits for the device several times a step; here all samples take all steps and the last point counts.

The attack sees the network as it is deployed, in eval mode: with the running statistics of batch normalisation, which it leaves alone, and
without dropout. Then samples do not depend on one another, nor on how a batch is dealt out to processes or parts.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks import PGD
from attacks_base import Box, Embed, each, inputs_only, margin, project_at_once, unit
from augmentation import START, normals_like
from losses import companions
from utils.distributed import all_gather_interleaved, buffers_of_first_rank, rank, world_size

BOX: Box = (-0.5, 0.5)
# A part of eps: near the image the distance from its own embedding is stationary, and rounding, of float16 above all, would choose the
# direction
RANDOM_START = 0.1
# of the cosine: its gradient is normalised, and may be too small for float16 on its way back. A power of two changes nothing else
SCALE = 2.0**10


@dataclass(frozen=True)
class Adversary:
    """Moves the images of a step. network: attacked as `embed`, its forward pass, under autocast perhaps; not under DDP, as nothing is
    averaged. parts: in which a rank computes its batch.
    """
    kind: str
    pgd: PGD
    network: nn.Module
    embed: Embed
    parts: int
    seed: int

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """What the network is to be trained on in this step, of images [N, C, H, W] in the box and labels int64 [N]: adversarial images
        [N, C, H, W], and for trades [2N, C, H, W], the clean ones first.

        Random numbers are keyed by (seed, step) and the place in the whole batch. All ranks have to take part.
        """
        # those that a state has; a rank's own running statistics would be gone when a run goes on
        buffers_of_first_rank(self.network)
        with inputs_only(self.network):
            with torch.no_grad():
                clean = torch.cat([self.embed(part) for part in images.chunk(self.parts)])
            targets = clean if self.kind == "trades" else of_other_images(clean, labels)
            starts = images + RANDOM_START * float(self.pgd.eps) * unit(normals_like(images, self.seed, step, START))
            parts = zip(images.chunk(self.parts), starts.chunk(self.parts), targets.chunk(self.parts))
            adversarial = torch.cat([self._moved(*part) for part in parts])
        return torch.cat([images, adversarial]) if self.kind == "trades" else adversarial

    def _moved(self, images: Tensor, starts: Tensor, targets: Tensor) -> Tensor:
        eps = torch.full((len(images),), float(self.pgd.eps), dtype=torch.float64, device=images.device)
        state = {"images": images, "eps": eps, "points": project_at_once(starts, images, eps, BOX), "velocity": torch.zeros_like(images)}
        if self.pgd.step_size is not None:
            state["step_size"] = torch.full_like(eps, float(self.pgd.step_size))
        for number in range(self.pgd.steps):
            gradients = self._gradients(state["points"], targets)
            state["points"] = project_at_once(self.pgd.ahead(state, gradients, number), images, eps, BOX)
        return state["points"]

    def _gradients(self, points: Tensor, targets: Tensor) -> Tensor:
        """Of the cosines; 0, so that a sample stays where it is, where one is not finite: the step itself is judged by its own loss."""
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            cosines = margin(self.embed(points), targets, 0.0, "dodging", torch.promote_types(targets.dtype, torch.float32))
            gradients, = torch.autograd.grad(SCALE * cosines.sum(), points)
        return torch.where(each(gradients.isfinite().flatten(1).all(1), gradients), gradients, 0.0)


def of_other_images(embeddings: Tensor, labels: Tensor) -> Tensor:
    """[N, D] of this rank -> for each sample the embedding of the next other image of the person in the batches of all ranks, the first
    coming after the last; its own where there is none.
    """
    everyone, (others, _) = all_gather_interleaved(embeddings), companions(labels)
    numbers = torch.arange(len(everyone), device=labels.device)
    ahead = (numbers - numbers[rank()::world_size(), None]) % len(everyone)
    return everyone[torch.where(others, ahead, len(everyone) + ahead).argmin(1)]
