"""Learning-rate schedule of the published runs."""
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class PolynomialLRWarmup(LRScheduler):
    """Linear warm-up from 0 over `warmup_iters` steps, then base_lr * ((total - k) / (total - warmup))^power at step k, down to 0.

    Call `step()` once per optimiser step. Raises ValueError unless 0 <= warmup_iters < total_iters and power > 0.
    """

    def __init__(self, optimizer: Optimizer, warmup_iters: int, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1):
        if not 0 <= warmup_iters < total_iters or power <= 0:
            raise ValueError(f"expected 0 <= warmup_iters < total_iters and power > 0, got {warmup_iters}, {total_iters}, {power}")
        self.warmup_iters, self.total_iters, self.power = warmup_iters, total_iters, power
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict:
        """Only how far it is: rates and length are the run's settings."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr):
            group["lr"] = rate

    def get_lr(self) -> list[float]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]

    def factor(self, step: int) -> float:
        """What the base learning rate is multiplied by at optimiser step `step` (from 0)."""
        if step < self.warmup_iters:
            return step / self.warmup_iters
        left = max(0, self.total_iters - step) / (self.total_iters - self.warmup_iters)
        return left**self.power
