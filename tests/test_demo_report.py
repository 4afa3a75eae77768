"""The demo's report on toy pipelines with known figures, and the training of its classifier."""

import dataclasses
import functools
import json
import math
import pathlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax import networks as network
from maskgil_jax.checkpoints.weights import Weights, load_weights
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.config import ClassifierConfig, ConfigError, DecodeConfig, LlamaConfig, VQConfig
from maskgil_jax.data.images import open_images
from maskgil_jax.evaluation.benchmarks.demo_report import as_markdown, figures, nearest
from maskgil_jax.pipelines.pipeline import Pipeline
from maskgil_jax.training.classifier import (
    Augment,
    accuracy,
    augment,
    held_out_metrics,
    jitted_step,
    pixels_and_labels,
    predict,
    train,
)
from maskgil_jax.training.optimizer import learning_rate, make_optimizer
from maskgil_jax.training.state import init_state

# ---------------------------------------------------------------------------------------------- a world of four colours
NAMES = ("red", "green", "blue", "grey")
COLOURS = np.asarray([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]], np.float32)
NOISE = 8.0  # grey levels, added in one half of every patch and taken away in the other


@flax.struct.dataclass
class ToyTokenizer:
    """The code of an 8x8 patch is the colour nearest to its mean."""

    colours: jax.Array
    cfg: VQConfig = flax.struct.field(pytree_node=False)

    def encode(self, images_bhwc):
        b, h, w, _ = images_bhwc.shape
        means = images_bhwc.reshape(b, h // 8, 8, w // 8, 8, 3).mean(axis=(2, 4))
        return jnp.argmin(jnp.square(means[..., None, :] - self.colours[None, None, None]).sum(axis=-1), axis=-1)

    def decode(self, codes_bhw):
        return jnp.repeat(jnp.repeat(self.colours[codes_bhw], 8, axis=1), 8, axis=2)


@flax.struct.dataclass
class ToyGenerator:
    """Logits by class, the same at every position and whatever the other codes are."""

    logits_cv: jax.Array
    cfg: LlamaConfig = flax.struct.field(pytree_node=False)

    def null_condition(self, condition):
        return condition

    def __call__(self, tokens_bl, condition, *, grid):
        return jnp.repeat(self.logits_cv[condition.label_b][:, None], tokens_bl.shape[1], axis=1)


@flax.struct.dataclass
class ToyClassifier:
    """Predicts the class whose colour the first patch has."""

    tokenizer: ToyTokenizer

    def __call__(self, images_bhwc):
        return jax.nn.one_hot(self.tokenizer.encode(images_bhwc)[:, 0, 0], len(NAMES))


class ToyWeights(Weights):
    def build(self):
        return ToyClassifier(tokenizer())


class ToySource:
    """Images of one colour each; `wrong` of them carry the label of the next colour."""

    class_names = NAMES

    def __init__(self, name, colours, wrong=0, noise=NOISE):
        self.name, self.colours, self.wrong, self.noise = name, list(colours), wrong, noise

    def __len__(self):
        return len(self.colours)

    def __getitem__(self, i):
        image = np.broadcast_to(COLOURS[self.colours[i]], (16, 16, 3)).copy()
        image[:, ::2] += self.noise
        image[:, 1::2] -= self.noise
        return {"image": image.astype(np.uint8), "label": (self.colours[i] + (i < self.wrong)) % 4, "id": str(i)}


def tokenizer():
    cfg = VQConfig(channels=8, multipliers=(1, 1, 1, 1), codebook_size=4, codebook_dim=3, image_size=16)
    return ToyTokenizer(jnp.asarray(COLOURS / 127.5 - 1.0), cfg)


def toy_pipeline(logits_cv, kind=Pipeline):
    cfg = LlamaConfig(codebook_size=4, num_classes=4, grid=(2, 2), width=64, depth=1, heads=1)
    return kind(tokenizer(), ToyGenerator(jnp.asarray(logits_cv, jnp.float32), cfg), NAMES, DecodeConfig())


def toy_classifier():
    return ToyWeights(ClassifierConfig(num_classes=4, image_size=16), {}, {"class_names": list(NAMES)}, pathlib.Path("toy"))


TRAIN = ToySource("train", [0] * 20 + [1] * 10 + [2] * 6 + [3] * 4)
HELD_OUT = ToySource("held out", [0, 0, 0, 1, 1, 2, 2, 3], wrong=2)
toy_figures = functools.partial(figures, classifier=toy_classifier(), count=40, batch_size=16)


def test_figures_of_a_perfect_generator_equal_their_known_values():
    found = toy_figures(toy_pipeline(50.0 * np.eye(4)), TRAIN, HELD_OUT)
    assert found["agreement"]["generated"] == {"top1": 1.0, "top5": 1.0}
    assert found["agreement"]["held_out"]["top1"] == found["agreement"]["held_out_copies"]["top1"] == 6 / 8
    assert found["agreement"]["label_ignored"]["top1"] == pytest.approx(0.5**2 + 0.25**2 + 0.15**2 + 0.1**2)
    assert found["agreement"]["chance"] == {"top1": 0.25, "top5": 1.0}
    assert found["masked_accuracy"]["train"] == 1.0
    assert 0 < found["masked_accuracy"]["held_out"] < 1.0  # two of its labels are wrong
    assert found["tokenizer"]["usage"] == {"held_out": 1.0, "train": 1.0}
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.15, 0.1))
    assert found["tokenizer"]["perplexity"]["train"] == pytest.approx(math.exp(entropy))
    assert found["tokenizer"]["psnr"]["held_out"] == pytest.approx(20 * math.log10(255 / NOISE), abs=1e-6)
    assert json.loads(json.dumps(found)) == found
    table = as_markdown(found).splitlines()
    assert len({line.count("|") for line in table}) == 1 and "100.0% (100.0%)" in as_markdown(found)


def test_figures_of_a_class_blind_generator_equal_the_baselines():
    always_red = np.tile([50.0, 0.0, 0.0, 0.0], (4, 1))
    found = toy_figures(toy_pipeline(always_red), TRAIN, TRAIN)
    hits = found["masked_accuracy"]
    assert hits["train"] == hits["held_out"] == hits["most_frequent_code"] == hits["most_frequent_code_of_position"]
    assert 0.3 < hits["train"] < 0.7  # half of the images are red
    assert found["agreement"]["generated"]["top1"] == found["agreement"]["label_ignored"]["top1"] == 0.5


class Copies(Pipeline):
    """Hands out training images of the requested classes."""

    def batches(self, labels, *, seed, batch_size):
        images, label_n = pixels_and_labels(SOME_WRONG)
        yield images[np.argsort(label_n, kind="stable")]


SOME_WRONG = ToySource("train", [0] * 20 + [1] * 10 + [2] * 6 + [3] * 4, wrong=7)


def test_copied_training_images_have_their_agreement_and_no_distance():
    found = toy_figures(toy_pipeline(np.zeros((4, 4)), Copies), SOME_WRONG, SOME_WRONG)
    assert found["agreement"]["generated"] == found["agreement"]["train"]
    assert found["agreement"]["generated"]["top1"] == 33 / 40
    near = found["nearest_training_image"]
    assert near["generated"] < 0.1 < near["train_copies"]  # what it would be for copied images, and for reconstructed ones


def test_random_generator_is_near_chance_and_depends_on_the_seed_alone():
    pipeline = toy_pipeline(np.zeros((4, 4)))  # draws every code alike
    found = toy_figures(pipeline, TRAIN, HELD_OUT, count=400, seed=1)
    assert 0.18 < found["agreement"]["random_codes"]["top1"] < 0.32
    assert 0.18 < found["agreement"]["generated"]["top1"] < 0.32
    assert found == toy_figures(pipeline, TRAIN, HELD_OUT, count=400, seed=1)
    assert found != toy_figures(pipeline, TRAIN, HELD_OUT, count=400, seed=2)


def test_most_frequent_code_is_counted_by_position():
    class Halves(ToySource):
        def __getitem__(self, i):
            record = super().__getitem__(i)
            record["image"][:8] = COLOURS[3]
            return record

    source = Halves("halves", [0] * 8)
    hits = toy_figures(toy_pipeline(np.zeros((4, 4))), source, source)["masked_accuracy"]
    assert hits["most_frequent_code_of_position"] == 1.0 and hits["most_frequent_code"] < 1.0


def test_nearest_distance_is_in_grey_levels():
    images, _ = pixels_and_labels(ToySource("flat", [0, 1, 2, 3], noise=0))
    assert nearest(images, images) < 0.1
    assert nearest(images[:1] + np.uint8(10), images) == pytest.approx(10.0, abs=0.1)


def test_figures_refuse_networks_and_sets_that_do_not_match():
    pipeline = toy_pipeline(np.zeros((4, 4)))
    other = dataclasses.replace(toy_classifier(), metadata={"class_names": ["red", "green", "blue", "pink"]})
    with pytest.raises(ConfigError, match=r"toy: its 4 classes.*'grey', 'pink'"):
        toy_figures(pipeline, TRAIN, HELD_OUT, classifier=other)
    turned = dataclasses.replace(toy_classifier(), metadata={"class_names": list(NAMES[::-1])})
    with pytest.raises(ConfigError, match="order differs"):
        toy_figures(pipeline, TRAIN, HELD_OUT, classifier=turned)
    large = dataclasses.replace(toy_classifier(), cfg=ClassifierConfig(num_classes=4, image_size=64))
    with pytest.raises(ConfigError, match="side 64"):
        toy_figures(pipeline, TRAIN, HELD_OUT, classifier=large)
    with pytest.raises(ConfigError, match="holds no classifier"):
        toy_figures(pipeline, TRAIN, HELD_OUT, classifier=dataclasses.replace(toy_classifier(), cfg=VQConfig()))
    with pytest.raises(ConfigError, match="count"):
        toy_figures(pipeline, TRAIN, HELD_OUT, count=0)


# ------------------------------------------------------------------------------------------------ the classifier
TINY = ClassifierConfig(num_classes=98, channels=(8, 16), feature_dim=32)


@pytest.mark.slow
def test_augment_transforms_images_by_their_own_keys():
    images = jnp.asarray(pixels_and_labels(open_images("emoji"), range(4))[0] / 127.5 - 1.0, jnp.float32)

    def keys():
        return jax.random.split(jax.random.key(0), 4)

    still = Augment(scale=0.0, shift=0.0, flip=0.0, colour=0.0)
    np.testing.assert_allclose(augment(keys(), images, still), images, atol=1e-5)
    mirrored = augment(keys(), images, dataclasses.replace(still, flip=1.0))
    np.testing.assert_allclose(mirrored, images[:, :, ::-1], atol=1e-5)
    changed = augment(keys(), images, Augment())
    assert float(jnp.abs(changed - images).mean()) > 0.02 and float(jnp.abs(changed).max()) <= 1.0
    np.testing.assert_array_equal(augment(keys(), jnp.ones((4, 8, 8, 3)), Augment()), 1.0)  # white stays white
    np.testing.assert_allclose(augment(keys()[2:3], images[2:3], Augment()), changed[2:3], atol=1e-5)  # each by its own key


@pytest.mark.slow
def test_classifier_overfits_sixteen_images():
    config = read_run_file("demo_classifier", ["--config.optimizer.warmup_steps=5", "--config.optimizer.learning_rate=0.02"])
    source = open_images("emoji")
    images, label_n = pixels_and_labels(source, range(0, len(source), len(source) // 16)[:16])
    tx, schedule = make_optimizer(config.optimizer, 60), learning_rate(config.optimizer, 60)
    state = init_state(lambda key: network.params_of(network.create(TINY, key)), tx, ema=False)(jax.random.key(0))
    still = Augment(scale=0.0, shift=0.0, flip=0.0, colour=0.0)
    step = jitted_step(TINY, config, still, tx, schedule, None)
    before = accuracy(predict(network.build(TINY, state.params), images, batch_size=16), label_n)
    for _ in range(60):
        state, _ = step(state, {"image": jnp.asarray(images), "label": jnp.asarray(label_n)}, jax.random.key(1))
    assert before < 0.3
    assert accuracy(predict(network.build(TINY, state.params), images, batch_size=16), label_n) == 1.0


@pytest.mark.slow
def test_classifier_output_is_linear_in_its_features():
    model = network.create(TINY, jax.random.key(0))
    model.output.kernel[...] = jax.random.normal(jax.random.key(1), (32, 98))
    images = jax.random.uniform(jax.random.key(2), (3, 64, 64, 3), minval=-1.0)
    features_bd = model.features(images)
    assert features_bd.shape == (3, 32) and features_bd.dtype == jnp.float32
    np.testing.assert_allclose(features_bd @ model.output.kernel[...], model(images), atol=1e-4)
    np.testing.assert_allclose(model.features(images[1:2]), features_bd[1:2], atol=1e-5)  # its neighbours do not matter


def test_predict_does_not_depend_on_the_batch_size():
    images, _ = pixels_and_labels(open_images("emoji", split="test"), range(7))
    model = network.create(TINY, jax.random.key(0))
    model.output.kernel[...] = jax.random.normal(jax.random.key(1), (32, 98))
    np.testing.assert_allclose(predict(model, images, batch_size=3), predict(model, images, batch_size=7), atol=1e-4)


def test_accuracy_counts_the_first_k_classes():
    logits = np.asarray([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    assert accuracy(logits, [0, 0, 1]) == pytest.approx(1 / 3)
    assert accuracy(logits, [0, 0, 1], 2) == pytest.approx(2 / 3)
    assert accuracy(logits, [0, 0, 1], 5) == 1.0


@pytest.mark.slow
def test_classifier_training_writes_half_precision_weights_with_accuracy(tmp_path):
    config = read_run_file(
        "demo_classifier", ["--config.total_steps=2", "--config.batch_size=8", "--config.model.channels=(8,)"]
    )
    config.model.feature_dim = 16
    weights = load_weights(train(config, tmp_path))
    source = open_images("emoji", split="test")
    assert weights.cfg == ClassifierConfig(channels=(8,), feature_dim=16)
    assert weights.about["class_names"] == list(source.class_names)
    assert weights.about["held_out"] == held_out_metrics(weights.cfg, weights.params, source, open_images("emoji"))
    assert (weights.path / "model.safetensors").stat().st_size < 2 * network.count_params(weights.cfg) + 4096


def test_shipped_classifier_accuracy_is_far_above_chance():
    weights, source = load_weights("demo", "classifier"), open_images("emoji", split="test")
    found = held_out_metrics(weights.cfg, weights.params, source, open_images("emoji"))
    assert found["images"] == 543
    for name in ("top1", "top5", "group_top1"):  # another machine may round a close call the other way
        assert found[name] == pytest.approx(weights.about["held_out"][name], abs=0.005)
    assert found["top1"] > 0.25 and found["top5"] > 0.5 and found["group_top1"] > 0.5
    assert (weights.path / "model.safetensors").stat().st_size < 500_000
