"""Several processes train as one: the same losses, exact resuming, and clear errors when they do not find each
other."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import optax
import pytest
from helpers.two_processes import both, free_port

from maskgil_jax import cli
from maskgil_jax.checkpoints.train_state import Checkpoints, abstract_like
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.config import ConfigError, LlamaConfig, VQConfig
from maskgil_jax.networks import create, params_of
from maskgil_jax.runtime import distributed
from maskgil_jax.runtime.mesh import global_batch, local_rows, make_mesh, process_shards, shardings, to_host
from maskgil_jax.training.state import init_state

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "debug.py"
VQ = VQConfig(channels=4, multipliers=(1, 1, 1), res_blocks=1, latent_dim=4, codebook_size=32, codebook_dim=4, image_size=16)
OPTIONS = ["--config.total_steps=6", "--config.log_every=1", "--config.checkpoint.every=3", "--config.sample_every=6"]
OPTIONS += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32", "--config.sample_count=8"]
OPTIONS += ["--config.data.image_size=16", "--config.data.crop=center", "--config.decode.steps=2"]


def command(workdir, tokenizer, *more):
    return ["train", "--config", str(CONFIG), "--workdir", str(workdir), f"--config.tokenizer={tokenizer}", *OPTIONS, *more]


def two_processes(workdir, tokenizer, *more):
    """The command run by two processes of four devices; returns what each printed on stderr."""
    printed = both(*command(workdir, tokenizer, *more), devices=4)
    assert [stdout.count("weights:") for stdout, _ in printed] == [1, 0]
    return [stderr for _, stderr in printed]


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.asarray([[line["step"], line["masked_loss"], line["grad_norm"]] for line in lines])


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_exactly(tmp_path):
    save_weights(tmp_path / "tokenizer", VQ, params_of(create(VQ, jax.random.key(0))))
    # Two "slices" joined by a slow network, each with its parameters split over fsdp and tensor.
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in dict(dcn_data=2, data=1, fsdp=2, tensor=2).items()]
    first = two_processes(tmp_path / "two", tmp_path / "tokenizer", *mesh)
    assert "process 0 of 2" in first[0] and "step 6/6" in first[0] and "step 6/6" not in first[1]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        *("checkpoints", "events.jsonl", "images", "metrics.jsonl", "parameters.txt", "tensorboard", "weights")
    ]
    straight, weights = losses(tmp_path / "two"), load_weights(tmp_path / "two" / "weights", "generator").hash

    # one process with eight devices: only sums are taken in another order
    assert cli.main(command(tmp_path / "one", tmp_path / "tokenizer", "--config.sample_every=0")) == 0
    np.testing.assert_allclose(losses(tmp_path / "one"), straight, atol=1e-5)

    # both stopped after step 3
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "two" / "weights")
    again = two_processes(tmp_path / "two", tmp_path / "tokenizer", *mesh, "--config.sample_every=0")
    assert "continuing from step 3" in again[0]
    np.testing.assert_array_equal(losses(tmp_path / "two"), straight)
    assert load_weights(tmp_path / "two" / "weights", "generator").hash == weights


def test_process_loads_rows_of_its_devices():
    contiguous = np.repeat(np.arange(4), 4).reshape(8, 2, 1)
    np.testing.assert_array_equal(process_shards(contiguous, 1), [4, 5, 6, 7])
    # A 4 x 4 torus of four machines with 2 x 2 chips each, laid out as one data axis: neighbours come from two
    # machines.
    torus = np.asarray([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]).reshape(16, 1, 1)
    np.testing.assert_array_equal(process_shards(torus, 0), [0, 1, 4, 5])
    np.testing.assert_array_equal(process_shards(torus, 3), [10, 11, 14, 15])
    # A tensor axis over two machines: both need every row.
    np.testing.assert_array_equal(process_shards(np.asarray([0, 0, 1, 1]).reshape(1, 1, 4), 1), [0])
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert local_rows(mesh, 8) == tuple(range(8))
    rows = {"codes": np.arange(24).reshape(8, 3)}
    placed = global_batch(rows, mesh)
    np.testing.assert_array_equal(to_host(placed)["codes"], rows["codes"])
    assert placed["codes"].sharding.shard_shape((8, 3)) == (2, 3)


MESHES = [dict(data=8), dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2), dict(data=1, tensor=8)]


@pytest.mark.slow
def test_a_checkpoint_of_any_mesh_is_restored_bit_for_bit_on_any_other(tmp_path):
    cfg = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=48)
    init = init_state(lambda key: params_of(create(cfg, key)), optax.sgd(1.0, momentum=0.9), ema=False)
    key = jax.random.key(0)
    layouts = [shardings(jax.eval_shape(init, key), make_mesh(**sizes)) for sizes in MESHES]
    draw, shapes = np.random.default_rng(0).normal, jax.eval_shape(init, key)
    whole = jax.tree.map(lambda leaf: np.asarray(draw(size=leaf.shape), leaf.dtype), shapes)
    for i, layout in enumerate(layouts):
        with contextlib.closing(Checkpoints(tmp_path / str(i), keep=1)) as checkpoints:
            checkpoints.save(1, jax.device_put(whole, layout), {}, wait=True)
            restored = checkpoints.restore(abstract_like(init, key, layouts[i - 1]), {})[1]
            chex.assert_trees_all_equal(restored, whole)
            assert jax.tree.map(lambda leaf: leaf.sharding, restored) == layouts[i - 1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(dcn_data=3), "dcn_data=3 slices cannot share 8 devices"),
        (dict(dcn_data=0), "dcn_data=0"),
        (dict(dcn_data=2), r"dcn_data=2, but there are 1 slice\(s\) and 1 process"),
        (dict(data=3), "data=3 x fsdp=1 x tensor=1 does not make 8 devices"),
        (dict(data=-1, fsdp=3), "does not make 8 devices"),
        (dict(data=-1, fsdp=-1), "only one axis may be -1"),
        (dict(tensor=0), "sizes must be positive"),
    ],
)
def test_impossible_mesh_raises_naming_the_axis(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(**sizes)


def test_mesh_axis_of_minus_one_takes_remaining_devices():
    assert dict(make_mesh(data=-1, fsdp=2, tensor=2).shape) == dict(data=2, fsdp=2, tensor=2)
    assert dict(make_mesh(data=1, fsdp=-1).shape) == dict(data=1, fsdp=8, tensor=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(coordinator="a:1"), "--num-processes, --process-id: missing"),
        (dict(num_processes=4), "--coordinator, --process-id: missing"),
        (dict(coordinator="a", num_processes=2, process_id=0), "--coordinator: expected HOST:PORT, got 'a'"),
        (dict(coordinator="a:1", num_processes=2, process_id=2), r"--process-id: must be in 0\.\.1, got 2"),
        (dict(coordinator="a:1", num_processes=0, process_id=0), "--num-processes: must be at least 1"),
    ],
)
def test_incomplete_flags_raise_naming_them(options, message):
    with pytest.raises(ConfigError, match=message):
        distributed.initialize(**options)


def test_environment_variables_replace_flags(monkeypatch):
    monkeypatch.setenv("MASKGIL_NUM_PROCESSES", "two")
    with pytest.raises(ConfigError, match="MASKGIL_NUM_PROCESSES: must be a whole number, got 'two'"):
        distributed.initialize()
    monkeypatch.setenv("MASKGIL_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match="--coordinator, --process-id: missing"):
        distributed.initialize()


def test_single_process_does_not_initialize(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("not needed"))
    distributed.initialize()
    distributed.initialize(num_processes=1)
    distributed.initialize("host:1", 1, 0)


STEP = dict(SLURM_JOB_ID="5000", SLURM_NTASKS="4", SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_STEP_NUM_NODES="2")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu7", "gpu7"), ("a1,b2", "a1"), ("n[003-010,12],x", "n003"), ("n[5,7-9]", "n5"), ("n[1-2]-ib", "n1-ib")],
)
def test_slurm_variables_give_coordinator_and_id(nodes, host):
    found = distributed.slurm({**STEP, "SLURM_STEP_NODELIST": nodes})
    assert found == (f"{host}:{61440 + 5000 % 4096}", 4, 3, [1])


def test_slurm_task_alone_on_its_node_gets_all_devices():
    env = {**STEP, "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_NUM_NODES": "4"}
    assert distributed.slurm(env)[3] is None
    assert distributed.slurm({**env, "SLURM_NTASKS": "1"}) is None
    assert distributed.slurm({"SLURM_JOB_ID": "1"}) is None  # in a batch script, outside of srun


def test_silent_coordinator_is_a_timeout_with_code_75(capsys, monkeypatch):
    with pytest.raises(distributed.CoordinatorTimeout, match=r"127\.0\.0\.1:\d+: the coordinator did not answer within 0.5 s"):
        distributed.initialize(f"127.0.0.1:{free_port()}", 2, 1, timeout=0.5)
    monkeypatch.setattr(distributed, "_wait_for", lambda *_: (_ for _ in ()).throw(distributed.CoordinatorTimeout("nobody")))
    argv = command("runs/none", "none", "--coordinator", "h:1", "--num-processes", "2", "--process-id", "1")
    assert cli.main(argv) == 75
    assert capsys.readouterr().err == "error: nobody\n"


@pytest.mark.slow
def test_missing_processes_end_the_program_with_code_75():
    script = f"from maskgil_jax.runtime import distributed as d\nd.initialize('127.0.0.1:{free_port()}', 2, 0, timeout=2)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 75 and "not all of 2 processes joined within 2 s" in done.stderr, done.stderr
