"""Evaluation of tokenizers, the paper's tables, evaluation during training, and plots."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest
from helpers.tiny_world import CLASSIFIER, VQ, random_images, random_params, write_folder
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.config import ConfigError
from maskgil_jax.evaluation import metrics, plots
from maskgil_jax.evaluation.benchmarks import paper_tables
from maskgil_jax.evaluation.benchmarks.paper_tables import as_markdown, rows_of
from maskgil_jax.evaluation.images import array_set
from maskgil_jax.evaluation.reconstruction import SHEET_COLUMNS, evaluate_tokenizer, open_lpips
from maskgil_jax.evaluation.reference import reference_of
from maskgil_jax.evaluation.report import FORMAT
from maskgil_jax.pipelines.pipeline import Pipeline, load
from maskgil_jax.tokenizers.images import reconstruct, to_unit
from maskgil_jax.training.generator import keep_best

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TABLES = sorted(path.stem for path in CONFIGS.glob("eval_*.py"))


# ------------------------------------------------------------------------------------------------ tokenizers
@pytest.mark.slow
def test_evaluate_tokenizer_equals_the_formulas(pipeline_folder, extractor):
    weights, images = load_weights(pipeline_folder, "tokenizer"), random_images(19, 4)
    train = reference_of(array_set(random_images(20, 9)), extractor, moments=("features",), keep=False)
    distance = lambda first, second: abs(first - second).mean(axis=(1, 2, 3))  # noqa: E731  (a stand-in for LPIPS)
    result, sheet = evaluate_tokenizer(
        weights, array_set(images), extractor, train_reference=train, lpips=Mean(distance), batch_size=8
    )
    copies = np.asarray(reconstruct(weights.build(), images))
    codes = np.asarray(jax.jit(lambda network, x: network.encode(to_unit(x)))(weights.build(), images))
    counts = metrics.count_codes(codes, 16)
    found, theirs = result["figures"], [np.asarray(extractor.apply(extractor.network, x)["features"]) for x in (images, copies)]
    moments = [(rows.mean(axis=0), np.cov(rows, rowvar=False)) for rows in theirs]
    expected = {
        "rfid": metrics.frechet_distance(*moments[0], *moments[1]),
        "rfid_train": metrics.frechet_distance(*train.moments["features"], *moments[1]),
        "psnr": metrics.psnr(images, copies).mean(),
        "ssim": metrics.ssim(images, copies).mean(),
        "usage": metrics.codebook_usage(counts),
        "perplexity": metrics.codebook_perplexity(counts),
        "lpips": abs(to_unit(images) - to_unit(copies)).mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Pixels and codes of other batch shapes may round differently, by one level or one code.
        np.testing.assert_allclose(found[name], value, rtol=2e-3, err_msg=name)
    assert found["rfid"] > 0.01 and 0 < found["usage"] <= 1
    assert result["settings"]["usage"]["codes_seen"] == codes.size
    assert result["settings"]["ssim"]["by llamagen"] > result["settings"]["ssim"]["by skimage"]
    # Originals above reconstructions, gap of two pixels around each.
    cell = VQ.image_size + 2
    assert sheet.shape == (4 * cell + 2, SHEET_COLUMNS * cell + 2, 3)
    np.testing.assert_array_equal(sheet[2:18, 2:18], images[0])
    assert abs(sheet[2 + cell : 18 + cell, 2:18].astype(int) - copies[0]).max() <= 1
    np.testing.assert_array_equal(sheet[2 + 2 * cell : 18 + 2 * cell, 2:18], images[SHEET_COLUMNS])


class Mean:
    """A network of two images, to be moved to devices like one."""

    def __init__(self, call):
        self.call = call

    def __call__(self, first, second):
        return self.call(first, second)


jax.tree_util.register_pytree_node(Mean, lambda m: ((), m.call), lambda call, _: Mean(call))


def test_evaluate_tokenizer_refuses_unsupported_images_and_weights(pipeline_folder, extractor):
    tokenizer = load_weights(pipeline_folder, "tokenizer")
    with pytest.raises(ConfigError, match=r"18x17, but .*multiples of .*factor 2; give --image-size 16"):
        evaluate_tokenizer(tokenizer, array_set(np.zeros((3, 17, 18, 3), np.uint8)), extractor)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        evaluate_tokenizer(load_weights(pipeline_folder, "generator"), array_set(random_images(4)), extractor)
    with pytest.raises(ConfigError, match="--lpips: LPIPS needs its weights"):
        open_lpips(None)


# ------------------------------------------------------------------------------------------------ the paper's tables
def test_run_files_of_tables_hold_the_papers_figures():
    rows = {name: {row.name: row for row in rows_of(read_run_file(name, []))} for name in TABLES}
    assert {name: len(found) for name, found in rows.items()} == {
        "eval_a1": 36,
        "eval_a2": 72,
        "eval_a3": 72,
        "eval_a4": 25,
        "eval_table1": 4,
        "eval_table3": 4,
        "eval_table5": 5,
    }
    # One from each corner of what is typed in columns.
    assert rows["eval_a1"]["AR-Chameleon-VQ-200ep-cfg2.0"].paper == {"fid": 9.6992, "is": 133.8924}
    assert rows["eval_a2"]["Transformer-MaskGIT-VQ-50ep-cfg3.0"].paper == {"fid": 16.6349, "is": 98.2236}
    assert rows["eval_a2"]["LLaMA-Open-MAGVIT2-VQ-200ep-cfg2.0"].paper == {"fid": 9.3161, "is": 155.9095}
    assert rows["eval_a3"]["MaskGIL-XL-400ep-cfg1.5"].paper == {"fid": 4.7214, "is": 237.9921}
    assert rows["eval_a3"]["MaskGIL-XXL-300ep-cfg2.5"].paper == {"fid": 3.7199, "is": 282.4760}
    assert rows["eval_a4"]["arccos-8"].paper == {"fid": 5.9056, "is": 220.2331}
    assert rows["eval_table3"]["MaskGIL-XXL"].decode == {"guidance": 2.5}
    assert (rows["eval_table5"]["AR-50"].ar, rows["eval_table5"]["AR-50"].ar_ratio) == ("LlamaGen-L", 0.5)
    contradictions = ("eval_table3", "MaskGIL-B"), ("eval_a3", "MaskGIL-XXL-300ep-cfg2.5"), ("eval_a4", "arccos-8")
    assert all(rows[table][name].note for table, name in contradictions)


def test_rows_of_refuses_unknown_fields_and_figures():
    def rows(*found):
        return rows_of(types.SimpleNamespace(rows=found))

    with pytest.raises(ConfigError, match="no option 'papers'; did you mean 'paper'"):
        rows(dict(name="a", papers={}))
    with pytest.raises(ConfigError, match="no figure is called 'FID'"):
        rows(dict(name="a", paper={"FID": 1.0}))
    with pytest.raises(ConfigError, match="used twice"):
        rows(dict(name="a", paper={}), dict(name="a", paper={}))


@pytest.mark.slow
def test_table_evaluates_rows_with_weights_and_skips_others(tmp_path, classifier_folder, pipeline_folder, capsys):
    real, weights = write_folder(tmp_path / "real", random_images(12)), pipeline_folder.parent
    options = ["--config.count=16", "--config.decode.steps=2", "--config.protocol=", "--config.batch_size=8"]
    options += ["--config.metrics=('fid','is')", "--features", str(classifier_folder), "--reference", str(real)]
    command = [
        "evaluate",
        "--config",
        str(CONFIGS / "eval_table3.py"),
        "--weights",
        str(weights),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("skipped") == 3 and "skipped MaskGIL-XXL: there is no" in printed
    result = json.loads((tmp_path / "out" / "MaskGIL-B.json").read_text())
    assert result["samples"]["count"] == 16 and result["samples"]["sampler"]["guidance"] == 2.0
    assert result["row"]["paper"]["fid"] == 5.64
    table = (tmp_path / "out" / "table.md").read_text()
    ours = result["figures"]["fid"]
    assert f"| MaskGIL-B [1] | 5.64 | {ours:.4f} | {ours - 5.64:+.4f} |" in table
    assert "| MaskGIL-L | 4.01 |  |  |" in table and "[1] Table A.4 prints 5.9056" in table
    assert "the difference to the paper means nothing" in table and table.strip() in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["MaskGIL-B.json", "table.md"]
    assert cli.main([*command[:3], "--weights", str(tmp_path / "real"), *options]) == 2
    assert "no row has weights there; expected MaskGIL-B, MaskGIL-L" in capsys.readouterr().err


def test_hybrid_rows_pass_the_causal_network_and_its_fraction(tmp_path, classifier_folder, pipeline_folder, monkeypatch):
    seen = []

    class Hybrid(Pipeline):
        def tokens(self, label_b, key, *, ar_ratio=0.0, **options):
            seen.append(ar_ratio)
            return super().tokens(label_b, key, **options)

    def load_with(path, ar=None):
        pipeline = load(path)
        seen.append(ar)
        return Hybrid(pipeline.tokenizer, pipeline.generator, pipeline.class_names, pipeline.cfg, pipeline.name)

    monkeypatch.setattr(paper_tables, "load", load_with)
    real, weights = write_folder(tmp_path / "real", random_images(12)), tmp_path / "weights"
    weights.mkdir()
    for name in ("MaskGIL-B", "LlamaGen-L"):
        (weights / name).symlink_to(pipeline_folder)
    config = read_run_file("eval_table5", ["--config.count=8", "--config.protocol=", "--config.decode.steps=1"])
    assert [row["name"] for row in config.rows] == ["AR-100", "AR-75", "AR-50", "AR-25", "AR-0"]
    config.update(features=str(classifier_folder), reference=str(real), metrics=("fid",), batch_size=8)
    config.rows = config.rows[3:4]
    (entry,) = paper_tables.run_table(config, weights, tmp_path / "out")
    assert seen == [None, weights / "LlamaGen-L", 0.25] and entry["ours"]["fid"] > 0
    (weights / "LlamaGen-L").unlink()
    with pytest.raises(ConfigError, match="no row has weights"):
        paper_tables.run_table(config, weights, tmp_path / "out")


@pytest.mark.slow
def test_tokenizer_table_evaluates_rows_with_weights(tmp_path, classifier_folder, pipeline_folder):
    real, weights = write_folder(tmp_path / "real", random_images(12)), tmp_path / "weights"
    weights.mkdir()
    (weights / "LlamaGen-VQ").symlink_to(pipeline_folder)
    options = [f"--config.data={real}", "--config.image_size=16", "--config.protocol=", "--config.batch_size=8"]
    options += ["--features", str(classifier_folder), "--reference", str(real), "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", "--config", "eval_table1", "--weights", str(weights), *options]) == 0
    found = json.loads((tmp_path / "out" / "LlamaGen-VQ.json").read_text())["figures"]
    assert found["rfid"] == pytest.approx(found["rfid_train"])  # the reference is the set itself here
    assert Image.open(tmp_path / "out" / "LlamaGen-VQ.png").size[0] == 12 * 18 + 2


def test_table_without_results_leaves_cells_empty():
    entry = {"name": "a", "paper": {"fid": 3.0}, "note": "", "ours": {}, "skipped": "no weights"}
    about = types.SimpleNamespace(metadata=lambda: dict(name="n", family="f", hash="h", protocol="p"), is_inception=True)
    assert "| a | 3 |  |  |" in as_markdown("T", [entry], ["a footnote"], about)


# ------------------------------------------------------------------------------------------------ while training
@pytest.mark.slow
def test_training_evaluates_samples_and_keeps_the_best_weights(tmp_path, pipeline_folder, classifier_folder):
    images = tmp_path / "images"
    images.mkdir()
    for name in "abcd":
        write_folder(images / name, random_images(4, ord(name)))
    run = ["train", "--config", str(CONFIGS / "debug.py"), "--workdir", str(tmp_path / "run")]
    run += [f"--config.tokenizer={pipeline_folder}", f"--config.data.path={images}", "--config.data.image_size=16"]
    run += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32", "--config.sample_every=0"]
    run += ["--config.decode.steps=2", "--config.log_every=2", "--config.optimizer.ema_decay=0.5"]
    run += [f"--config.evaluate.features={classifier_folder}", f"--config.evaluate.reference={images}"]
    run += ["--config.evaluate.every=2", "--config.evaluate.count=12", "--config.evaluate.batch_size=8"]
    assert cli.main([*run, "--config.total_steps=4"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line for line in lines if "fid" in line}
    assert scores.keys() == {2, 4} and all(line["fid"] > 0 and 0 <= line["agreement"] <= 1 for line in scores.values())
    best = load_weights(tmp_path / "run" / "best", "generator")
    kept = max(scores, key=lambda step: scores[step]["agreement"])
    assert best.about["evaluated"] == {name: scores[kept][name] for name in ("fid", "agreement")}
    assert best.about["trained"]["steps"] == kept
    # The figures are those of the weights that were kept.
    out = tmp_path / "again.json"
    again = ["evaluate", "--weights", str(tmp_path / "run" / "best"), "--reference", str(images), "--count", "12"]
    assert cli.main([*again, "--features", str(classifier_folder), "--metrics", "fid,agreement", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["figures"]["agreement"] == pytest.approx(scores[kept]["agreement"], abs=1 / 12 + 1e-6)
    assert json.loads(out.read_text())["figures"]["fid"] == pytest.approx(scores[kept]["fid"], rel=0.05)
    with pytest.MonkeyPatch.context() as patch:  # a picture of the run, lines of figures among those of losses
        patch.chdir(tmp_path)
        assert cli.main(["plot", "run"]) == 0
    assert Image.open(tmp_path / "plots" / "curves.png").size[0] > 600


def test_keep_best_keeps_only_better_weights(tmp_path):
    evaluator = types.SimpleNamespace(best="fid", better=lambda figures, than: than is None or figures["fid"] < than)

    def save(folder, evaluated):
        save_weights(folder / "generator", CLASSIFIER, random_params(CLASSIFIER, 0), metadata={"evaluated": evaluated})

    for fid, kept in ((5.0, 5.0), (6.0, 5.0), (4.0, 4.0)):
        keep_best(tmp_path / "best", evaluator, {"fid": fid}, save)
        assert load_weights(tmp_path / "best", "generator").about["evaluated"] == {"fid": kept}


# ------------------------------------------------------------------------------------------------ plots
def result(fid, score, *, steps=8, schedule="arccos", guidance=2.0, extractor="e", path="weights/B"):
    sampler = {"steps": steps, "schedule": schedule, "guidance": guidance}
    return {
        "format": FORMAT,
        "figures": {"fid": fid, "is": score},
        "samples": {"sampler": sampler, "path": path},
        "extractor": {"family": "inception", "hash": extractor, "protocol": "adm"},
        "reference": {"hash": "r"},
    }


@pytest.mark.slow
def test_plot_results_draws_what_the_results_differ_in(tmp_path):
    steps = [result(5 + s / 10 + k, 200 - s, steps=s, schedule=n) for k, n in enumerate(("arccos", "root")) for s in (4, 8, 16)]
    guided = [result(6 - g, 100 + g, guidance=g, path=f"weights/{size}") for g in (1.0, 2.0) for size in "BL"]
    assert plots.plot_results(steps).keys() == {"steps", "schedule", "tradeoff"}
    assert plots.plot_results(guided).keys() == {"guidance", "tradeoff"}
    assert plots.plot_results(steps[:1]).keys() == {"fid"}
    for i, entry in enumerate(steps):
        (tmp_path / f"{i}.json").write_text(json.dumps(entry))
    assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "plots")]) == 0
    picture = np.asarray(Image.open(tmp_path / "plots" / "steps.png"))
    assert picture.shape[1] > 600 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    with pytest.raises(ValueError, match="2 different extractors"):
        plots.plot_results([*steps, result(1.0, 1.0, extractor="other")])
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.plot_results([{**steps[0], "samples": {}}])


def test_plot_runs_reads_incomplete_logs_and_refuses_empty_ones(tmp_path, capsys):
    for name, lines in (("a", ['{"step": 1, "loss": 2.0}', '{"step": 2, "fid": 9.0}', '{"step": 3, "lo']), ("b", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    assert plots.read_metrics(tmp_path / "a") == {"loss": ([1], [2.0]), "fid": ([2], [9.0])}
    assert plots.plot_runs([tmp_path / "a"]).shape[2] == 3
    assert plots.loss_curves({"a": tmp_path / "a", "again": tmp_path / "a"}).shape[1] > 900
    assert cli.main(["plot", str(tmp_path / "b")]) == 2
    assert cli.main(["plot", str(tmp_path / "c")]) == 2
    assert cli.main(["plot", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds no metrics yet" in said and "no such file or folder" in said and "holds no results" in said
