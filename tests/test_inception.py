"""The FID network against its reference activations, the input protocols, and extraction over batches and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.feature_network_weights import INCEPTION as FACTS
from helpers.feature_network_weights import inception_state
from helpers.torch_names import GOLDEN, state_hash
from safetensors.numpy import save_file

from maskgil_jax.checkpoints.weights import SHIPPED, load_network
from maskgil_jax.config import InceptionConfig
from maskgil_jax.convert.main import convert, export
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.evaluation.extraction import BatchedApply, local_mesh, rebatch
from maskgil_jax.evaluation.features import inception_features, preprocess
from maskgil_jax.models import inception
from maskgil_jax.networks import abstract_params, build, flatten, unflatten

REFERENCE = np.load(GOLDEN / "metrics" / "inception_recipe.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The recipe's weights as a published file, converted."""
    path, state = tmp_path_factory.mktemp("inception"), inception_state()
    assert state_hash(state) == FACTS["state_sha256"]
    save_file(state, path / "published.safetensors")
    done = convert(path / "published.safetensors", path / "weights")
    assert done.plan.name == "inception" and set(done.plan.ignored.values()) == {"a counter of training"}
    return path / "weights"


@pytest.fixture(scope="module")
def network(folder):
    return load_network(folder, "inception")


def images(name):
    if name == "big":
        return (np.random.RandomState(FACTS["recipe"]["seed"] + 1).random_sample((2, 299, 299, 3)) * 256).astype(np.uint8)
    if name == "small":
        return REFERENCE["small.image_uint8"]
    return np.kron(REFERENCE["smooth.lowres_uint8"], np.ones((1, 16, 16, 1), np.uint8))


# ------------------------------------------------------------------------------------------------ names and sizes
def test_inception_plan_uses_or_ignores_every_published_name():
    found = {name: (tuple(shape), np.dtype(kind.removeprefix("torch."))) for name, (shape, kind) in FACTS["keys"].items()}
    plan, problems = make_plan(found)
    assert (plan.name, plan.cfg, problems) == ("inception", InceptionConfig(), [])
    assert plan.needed.keys() | plan.ignored.keys() == found.keys() and len(plan.ignored) == 94
    # 23 850 960 trained parameters and the running means and variances.
    statistics = sum(int(np.prod(tensor.shape)) for name, tensor in plan.needed.items() if "running_" in name)
    assert plan.parameters - statistics == 23_850_960


def test_inception_build_refuses_wrong_weights_by_name():
    flat = dict(flatten(abstract_params(InceptionConfig())))
    flat["fc/kernel"] = np.zeros((2048, 1000), np.float32)
    flat["mixed_5b/branch1x1/gamma"] = flat.pop("mixed_5b/branch1x1/scale")
    with pytest.raises(ValueError, match=r"a\.pth.*missing mixed_5b/branch1x1/scale.*unexpected .*gamma.*\(2048, 1000\)"):
        build(InceptionConfig(), unflatten(flat), "a.pth")


def test_load_network_refuses_a_folder_of_another_network():
    with pytest.raises(ValueError, match="classifier: holds a classifier, expected inception"):
        load_network(SHIPPED / "demo" / "classifier", "inception")


@pytest.mark.slow
def test_inception_export_returns_the_published_weights(folder):
    back, state = export(folder, "inception"), inception_state()
    assert back.keys() == {name for name in state if not name.endswith("num_batches_tracked")}
    assert all(np.array_equal(back[name], state[name]) for name in back)


# ------------------------------------------------------------------------------------------------ parity
@jax.jit
def _activations(net, images_bhwc):
    inputs_bhwc = preprocess(images_bhwc, "pytorch-fid")
    outputs = net(inputs_bhwc)
    return {**outputs, "resized": (inputs_bhwc + 1) / 2, "softmax": jax.nn.softmax(outputs["logits"])}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["big", "small", "smooth"])
def test_inception_activations_equal_the_reference(network, name):
    outputs = {tap: np.asarray(array) for tap, array in _activations(network, images(name)).items()}
    checked = 0
    for key, tolerance in FACTS["tolerance"].items():
        case, what = key.split(".")
        if case != name:
            continue
        tap, _, summary = what.partition("_") if what.startswith(("block", "resized")) else (what, "", "")
        ours = outputs[tap]
        if summary == "mean":
            ours = ours.astype(np.float64).mean(axis=(1, 2))
        elif summary == "slice512":  # of the array in the published layout
            ours = ours.transpose(0, 3, 1, 2).ravel()[np.linspace(0, ours.size - 1, 512).astype(np.int64)]
        np.testing.assert_allclose(ours, REFERENCE[key], atol=tolerance["atol"], rtol=tolerance["rtol"], err_msg=key)
        checked += 1
    assert checked >= 10


@pytest.mark.slow
def test_spatial_tap_is_the_first_seven_channels_of_the_1x1_branch_of_6d(network):
    def branch(net, x_bhwc):
        for stage in inception.STEM:
            for step in stage:
                x_bhwc = inception.pool(step, x_bhwc) if isinstance(step, str) else getattr(net, step.name)(x_bhwc)
        for block in ("mixed_5b", "mixed_5c", "mixed_5d", "mixed_6a", "mixed_6b", "mixed_6c"):
            x_bhwc, _ = getattr(net, block)(x_bhwc)
        return net.mixed_6d.branch1x1(x_bhwc)

    small = preprocess(jnp.asarray(images("small")), "adm")
    spatial = np.asarray(jax.jit(lambda net, x: net(x)["spatial"])(network, small))
    assert spatial.shape == (2, 17 * 17 * 7)
    expected_bhwc = np.asarray(jax.jit(branch)(network, small))
    np.testing.assert_allclose(spatial.reshape(2, 17, 17, 7), expected_bhwc[..., :7], atol=1e-5)


def test_average_pool_excludes_padding():
    ones = jnp.ones((1, 4, 4, 2))
    np.testing.assert_array_equal(inception.pool("average", ones), ones)


# ------------------------------------------------------------------------------------------------ protocols
def _tf1_pixel(image_hwc, row, column):
    """One pixel of TensorFlow 1's ResizeBilinear to 299 x 299, written out."""
    position = [
        np.float32(i) * (np.float32(n) / np.float32(299)) for i, n in ((row, image_hwc.shape[0]), (column, image_hwc.shape[1]))
    ]
    (top, left), (dy, dx) = zip(*((int(p), p - int(p)) for p in position), strict=True)
    bottom, right = min(top + 1, image_hwc.shape[0] - 1), min(left + 1, image_hwc.shape[1] - 1)
    image_hwc = image_hwc.astype(np.float64)
    upper = image_hwc[top, left] * (1 - dx) + image_hwc[top, right] * dx
    lower = image_hwc[bottom, left] * (1 - dx) + image_hwc[bottom, right] * dx
    return upper * (1 - dy) + lower * dy


@pytest.mark.parametrize("size", [(64, 64), (23, 37), (512, 300)])
def test_tf1_resize_equals_a_pixel_by_pixel_twin(size):
    rng = np.random.default_rng(5)
    image_hwc = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    ours = np.asarray(preprocess(jnp.asarray(image_hwc)[None], "adm"))[0]
    assert ours.shape == (299, 299, 3)
    places = [(0, 0), (298, 298), (0, 298), (298, 0), *rng.integers(0, 299, (200, 2))]
    expected = np.array([(_tf1_pixel(image_hwc, row, column) - 128) / 128 for row, column in places])
    np.testing.assert_allclose(ours[tuple(np.array(places).T)], expected, atol=1e-6)
    fidelity = preprocess(jnp.asarray(image_hwc)[None], "torch-fidelity")
    np.testing.assert_array_equal(fidelity[0], ours)


def test_protocols_scale_and_resize_differently():
    image = jnp.asarray(images("small"))
    adm, torch = (np.asarray(preprocess(image, name)) for name in ("adm", "pytorch-fid"))
    assert np.abs(adm - torch).mean() > 0.05  # half a pixel apart on noise
    same = jnp.asarray(np.tile(np.arange(256, dtype=np.uint8).repeat(2)[:299].reshape(1, 299, 1, 1), (1, 1, 299, 3)))
    np.testing.assert_array_equal(preprocess(same, "adm"), (np.asarray(same, np.float32) - 128) / 128)
    np.testing.assert_allclose(preprocess(same, "pytorch-fid"), np.asarray(same, np.float32) / 127.5 - 1, atol=1e-6)
    floats = preprocess(image.astype(jnp.float32) / 255, "pytorch-fid")
    np.testing.assert_allclose(floats, torch, atol=1e-6)


@pytest.mark.parametrize(
    "shape,dtype,protocol,message",
    [
        ((1, 8, 8, 3), np.uint8, "tf", "protocol: unknown value 'tf'"),
        ((1, 8, 8, 3), np.float32, "adm", "images must be uint8, got float32"),
        ((1, 8, 8, 3), np.uint16, "pytorch-fid", "images must be uint8, got uint16"),
        ((1, 8, 8, 4), np.uint8, "adm", r"expected \(batch, height, width, 3\), got \(1, 8, 8, 4\)"),
    ],
)
def test_preprocess_refuses_wrong_images(shape, dtype, protocol, message):
    with pytest.raises(ValueError, match=message):
        preprocess(np.zeros(shape, dtype), protocol)


# ------------------------------------------------------------------------------------------------ batches and devices
def _colours(weights, images_bhwc):
    """A feature network in miniature, which counts its compilations."""
    _colours.traces += 1
    mean_bc = images_bhwc.astype(jnp.float32).mean(axis=(1, 2)) / 255
    return {"mean": mean_bc, "mixed": mean_bc @ weights}


def _photos(count, side=6):
    return np.random.default_rng(6).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def test_batched_apply_gives_equal_features_for_any_batches_and_compiles_once():
    weights, photos = np.random.default_rng(7).normal(size=(3, 5)).astype(np.float32), _photos(45)
    _colours.traces = 0
    extractor = BatchedApply(_colours, weights, batch_size=16)
    parts = list(extractor(np.split(photos, [3, 4, 30])))
    assert [len(part["mean"]) for part in parts] == [16, 16, 13]
    assert [len(part["mean"]) for part in extractor([photos[:5]])] == [5]
    assert list(extractor([])) == []
    assert _colours.traces == 1
    mean_nc = photos.astype(np.float32).mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(np.concatenate([part["mean"] for part in parts]), mean_nc, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([part["mixed"] for part in parts]), mean_nc @ weights, rtol=1e-5, atol=1e-6)


def test_batched_apply_splits_batches_over_all_devices():
    seen = []

    def spy(weights, images_bhwc):
        jax.debug.inspect_array_sharding(images_bhwc, callback=seen.append)
        return {"sum": images_bhwc.astype(jnp.float32).sum(axis=(1, 2, 3)) + weights}

    list(BatchedApply(spy, np.float32(0), batch_size=16)([_photos(16)]))
    assert len(jax.local_devices()) == 8 and seen[0].shard_shape((16, 6, 6, 3)) == (2, 6, 6, 3)


@pytest.mark.slow
def test_features_on_eight_devices_equal_those_on_one(network):
    photos, protocol = (
        _photos(8, 48),
        functools.partial(inception_features, protocol="adm", taps=("pool3", "spatial")),
    )
    one = jax.sharding.Mesh(local_mesh().devices[:1], local_mesh().axis_names)
    (many,) = BatchedApply(protocol, network, batch_size=8)([photos])
    (single,) = BatchedApply(protocol, network, batch_size=8, mesh=one)([photos])
    for tap, width in (("pool3", 2048), ("spatial", 2023)):
        assert many[tap].shape == (8, width)
        np.testing.assert_allclose(many[tap], single[tap], atol=2e-5, rtol=1e-5)  # as the reference's own float32 error


@pytest.mark.parametrize(
    "call,message",
    [
        (
            lambda: list(rebatch([_photos(3), _photos(2, 7)], 4)),
            "images from number 3 on are 7x7x3 uint8, the ones before 6x6x3",
        ),
        (lambda: list(rebatch([_photos(3), _photos(2).astype(np.float32)], 4)), "from number 3 on are 6x6x3 float32"),
        (lambda: list(rebatch([_photos(1)[0]], 4)), r"got shape \(6, 6, 3\)"),
        (lambda: BatchedApply(_colours, np.zeros((3, 2)), batch_size=12), "batch_size: 12 is not a multiple of 8 devices"),
        (
            lambda: inception_features(lambda x: {"pool3": x}, _photos(1), "adm", ("pool",)),
            "tap: unknown value 'pool'",
        ),
    ],
)
def test_batched_apply_refuses_bad_batches_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
