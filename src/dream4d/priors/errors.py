"""What can be wrong with a pretrained model, as one exception that says which it is and what to do."""

from __future__ import annotations

from typing import Literal

Problem = Literal["absent", "removed", "gated", "offline", "wrong", "corrupt", "unsafe"]


class ModelError(ValueError):
    """A model that cannot be had or used. The message is one line: the model or file, what is wrong, what to do.

    problem: `absent` (not on this machine), `removed` (the hub has no such repository any more), `gated` (its licence
    must be accepted first), `offline` (the hub cannot be reached), `wrong` (another kind of model), `corrupt`
    (a damaged or incomplete file), `unsafe` (a pickle that asks for code).
    """

    def __init__(self, problem: Problem, message: str):
        super().__init__(message)
        self.problem = problem
