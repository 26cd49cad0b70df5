"""Settings of the published run with last-layer normalisation (LLN): another header and no regulariser."""
import copy

from config import config as proposed

config = copy.deepcopy(proposed)
config.header = "naive"
config.lambda_ = 0.0
config.xi = 0.0
config.output = "out/train_lln"
