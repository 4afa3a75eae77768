"""The interface of a conditioner: what pipelines, trainers and the planner know of a kind of condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from maskgil_jax.config import ConfigError, require


class Conditioner(Protocol):
    """Makes conditions (`models.condition`) of one kind from what a user asks for or what a training batch holds."""

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Names of the arrays that a training batch must hold."""

    def encode(self, requests: Any) -> Any:
        """The condition of a user's requests, one row each. Raises a `ConfigError` that says what is accepted."""

    @property
    def frozen(self) -> Any:
        """Arrays that every training step gets beside its batch, such as the parameters of a text encoder.

        None if there are none.
        """

    def from_batch(self, batch: dict, frozen: Any = None) -> Any:
        """The condition of a training batch. Traceable. frozen: the arrays of that name."""

    def examples(self, count: int) -> Any:
        """A condition of `count` rows that are spread over what there is to ask for: for previews and for planning."""

    def fixed_parameters(self, cfg: Any) -> dict[str, Any]:
        """Parameters of a network of these options that training sets at its start and never changes, by path."""

    def network_options(self) -> dict[str, Any]:
        """Options of a generator that takes these conditions."""

    def metadata(self) -> dict[str, Any]:
        """What `config.json` must hold for `conditioner_of` to make this conditioner again."""


def checked_prompts(requests: str | Sequence[str]) -> list[str]:
    """The prompts of a request: one text or several. Raises a `ConfigError` for anything else, and for none."""
    prompts = [requests] if isinstance(requests, str) else requests
    if not isinstance(prompts, (list, tuple, np.ndarray)):
        raise ConfigError(f"prompts: expected text or a list of texts, got {type(prompts).__name__} {prompts!r:.40}")
    require(len(prompts) > 0, "prompts: none given")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ConfigError(f"prompts: expected text, got {type(prompt).__name__} {prompt!r:.40}")
    return [str(prompt) for prompt in prompts]
