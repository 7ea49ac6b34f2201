"""Finished scenes as numbers: what the paper claims of them, measured by the toy world's truth or by CLIP."""
