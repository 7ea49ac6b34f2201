"""Diffusion models as priors, one file a family. Importing this package loads neither diffusers nor transformers."""
