"""Train with the last-layer-normalisation header: train.py with the settings of config_lln.py, and the same `key=value` overrides."""
import sys

from config_lln import config
from train import run

if __name__ == "__main__":
    sys.exit(run(config))
