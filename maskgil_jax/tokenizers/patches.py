"""Square patches of an image folded into its channels (pixel unshuffle), and back (pixel shuffle)."""

from __future__ import annotations

import jax


def fold_patches(x_bhwc: jax.Array, patch: int) -> jax.Array:
    """(b, h, w, c) -> (b, h / patch, w / patch, patch * patch * c): row and column inside the patch,
    then the channel."""
    if patch == 1:
        return x_bhwc
    b, h, w, c = x_bhwc.shape
    x_bhpwqc = x_bhwc.reshape(b, h // patch, patch, w // patch, patch, c)
    return x_bhpwqc.swapaxes(2, 3).reshape(b, h // patch, w // patch, patch * patch * c)


def unfold_patches(x_bhwc: jax.Array, patch: int) -> jax.Array:
    """Inverse of `fold_patches`."""
    if patch == 1:
        return x_bhwc
    b, h, w, c = x_bhwc.shape
    x_bhwpqc = x_bhwc.reshape(b, h, w, patch, patch, c // patch**2)
    return x_bhwpqc.swapaxes(2, 3).reshape(b, h * patch, w * patch, c // patch**2)
