"""No test reaches for a network, and torch leaves cores to the others."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(2)
