"""What a generator is conditioned on: small pytrees of arrays with a leading batch axis."""

from __future__ import annotations

import flax.struct
import jax


@flax.struct.dataclass
class ClassCondition:
    """Class labels. `label_b`: int32 (b,), 0..num_classes-1; `num_classes` itself is the learned null class."""

    label_b: jax.Array


@flax.struct.dataclass
class TextCondition:
    """Features of a frozen text encoder. `features_btd`: float (b, t, d); `mask_bt`: bool (b, t), True at real tokens.

    t and d are the generator's `text_tokens` and `text_dim`. Texts are padded on the left, so that the last real token stands
    before the image; padding is seen by nothing.
    """

    features_btd: jax.Array
    mask_bt: jax.Array
