"""Special tokens by which a text classifier finds the position of its logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from hf_distill.models.modules import mentions, text_config

PADDING, END = "pad_token_id", "eos_token_id"


def special_tokens(holder: Any) -> dict[str, int]:
    """The padding and end tokens that a tokenizer or a config defines."""
    known = {name: getattr(holder, name, None) for name in (PADDING, END)}
    return {name: token for name, token in known.items() if isinstance(token, int)}


class SpecialTokens:
    """Padding and end tokens of a model.

    A classifier on a decoder reads its logits at the last token that is not its config's padding,
    BART's at the last end token.

    Args:
        model: The model.
        config: Its config.
        who: The model, for messages.
        reads: True for a classifier of texts.

    Attributes:
        names: The config's fields of the tokens that it reads.
        from_data: The tokens of the data, where the config may name others.
    """

    def __init__(self, model: nn.Module, config: Any, who: str, reads: bool):
        self.from_data: dict[str, int] = {}
        self._config, self._who = config, who
        names = (PADDING, END) if reads else ()
        self.names = tuple(name for name in names if mentions(model, name))

    @property
    def finds_padding(self) -> bool:
        """True if it finds the end of a text by its padding."""
        return PADDING in self.names

    @property
    def _padding(self) -> int | None:
        return self.from_data.get(PADDING, getattr(text_config(self._config), PADDING, None))

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs with this model's padding token at masked positions.

        Masked positions have no other effect, so data padded with another token are read at the
        last real one too.

        Raises:
            ValueError: it has no padding token, and the batch has several texts.
        """
        found, ids, mask = dict(inputs), inputs.get("input_ids"), inputs.get("attention_mask")
        if not self.finds_padding or ids is None:
            return found
        padding = self._padding
        if padding is None and not self._config.is_encoder_decoder and len(ids) > 1:
            raise ValueError(
                f"Expected {self._who} to have a padding token, by which it finds the last token "
                "of a text; its config has none. Give the trainer the tokenizer "
                "(processing_class=…), or set model.config.pad_token_id = tokenizer.pad_token_id."
            )
        if padding is not None and mask is not None and mask.shape == ids.shape:
            found["input_ids"] = ids.masked_fill(~mask.bool(), padding)
        return found

    @contextlib.contextmanager
    def in_config(self) -> Iterator[None]:
        """Context with the data's tokens in the model's config, restored afterwards."""
        config: Any = text_config(self._config)
        from_data = {name: token for name, token in self.from_data.items() if name in self.names}
        before = {name: getattr(config, name, None) for name in from_data}
        for name in from_data:
            setattr(config, name, from_data[name])
        try:
            yield
        finally:
            for name in before:
                setattr(config, name, before[name])
