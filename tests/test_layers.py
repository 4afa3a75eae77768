"""Linear maps of the transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskgil_jax.models.layers import linear, product


@pytest.mark.parametrize("widths", [(6, 10), (10, 6)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_map_and_its_gradients_equal_those_of_flax(widths, dtype):
    """Both orders of the kernel's gradient: the input transposed, or the output's gradient."""
    layer = linear(*widths, dtype=dtype, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, widths[0]), jnp.dtype(dtype))
    weights, graph = jax.random.normal(jax.random.key(2), (2, 5, widths[1])), nnx.graphdef(layer)

    def loss(call):
        def of(kernel, x):
            return jnp.sum(weights * call(nnx.merge(graph, {"kernel": kernel}), x).astype(jnp.float32))

        return jax.value_and_grad(of, argnums=(0, 1))

    kernel = layer.kernel[...]
    (ours, ours_grads), (flax, flax_grads) = (
        loss(call)(kernel, x) for call in (lambda m, x: m(x), lambda m, x: nnx.Linear.__call__(m, x))
    )
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(ours, flax, **tolerance)
    for a, b in zip(ours_grads, flax_grads, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance)


@pytest.mark.parametrize("widths, transposed", [((6, 10), (40, 6)), ((10, 6), (40, 6))])
def test_kernel_gradient_transposes_the_narrower_operand(widths, transposed):
    x, kernel = jnp.zeros((8, 5, widths[0])), jnp.zeros(widths)
    jaxpr = jax.make_jaxpr(jax.grad(lambda k: jnp.sum(product(x, k))))(kernel)
    over_rows = [
        e for e in jaxpr.eqns if e.primitive.name == "dot_general" and e.params["dimension_numbers"][0] == ((0,), (0,))
    ]
    assert [e.invars[0].aval.shape for e in over_rows] == [transposed]
