"""Checkpoints: restored arrays are right or an error is clear, whatever damaged the disk."""

import contextlib
import errno
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.damage import MODES, abstract_state, damage, made_up_state, restored_step, save_steps

from maskgil_jax import cli
from maskgil_jax.checkpoints import train_state as training
from maskgil_jax.checkpoints.fingerprints import fingerprints, host_fingerprint
from maskgil_jax.checkpoints.step_folders import delete, expired, listing, quarantine, read_record, steps_in
from maskgil_jax.checkpoints.train_state import CheckpointError, Checkpoints, CheckpointWriteError, NotFiniteError
from maskgil_jax.runtime.mesh import AXES, make_mesh

P, NamedSharding = jax.sharding.PartitionSpec, jax.sharding.NamedSharding


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(training, "PAUSES", (0.01, 0.01))


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_fingerprint_is_equal_on_host_and_any_mesh():
    rng = np.random.default_rng(0)
    kinds = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint8", "int8", "bool")
    arrays = {kind: jnp.asarray(100 * rng.standard_normal((8, 6, 5)), jnp.float32).astype(kind) for kind in kinds}
    arrays |= {"scalar": jnp.float32(3.5), "empty": jnp.zeros((0, 3)), "complex": jnp.asarray([1 + 2j, 3 - 1j], jnp.complex64)}
    found, bad = fingerprints(arrays)
    assert bad == [] and len(set(found.values())) == len(found)
    for name, array in arrays.items():
        whole = np.asarray(array)
        pieces = iter(whole[i : i + 3] for i in range(0, len(whole), 3)) if whole.ndim else iter([whole])
        assert host_fingerprint(pieces) == found[name], name
    for sizes, spec in [(dict(data=8), P("data")), (dict(data=2, fsdp=2, tensor=2), P(("fsdp", "data"), "tensor"))]:
        mesh = make_mesh(**sizes)
        assert mesh.axis_names == AXES
        spread = {kind: jax.device_put(arrays[kind], NamedSharding(mesh, spec)) for kind in kinds}
        assert fingerprints(spread)[0] == {kind: found[kind] for kind in kinds}


def test_fingerprint_changes_with_any_change_of_an_array():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    x[7] = 0.0
    swapped, flipped, negative = x.copy(), x.copy(), x.copy()
    swapped[[3, 4]] = x[[4, 3]]
    flipped.view(np.uint32)[999] ^= 1
    negative[7] = -0.0
    prints = fingerprints([jnp.asarray(v) for v in (x, swapped, flipped, negative, x[::-1])])[0]
    halves = [{value[:8] for value in prints.values()}, {value[8:] for value in prints.values()}]
    assert [len(half) for half in halves] == [5, 5]


@pytest.mark.parametrize("mode", MODES)
def test_restore_of_damaged_step_never_gives_wrong_weights(mode, tmp_path, caplog):
    save_steps(tmp_path / "good", (10, 20))
    newest = 0
    for trial in range(3):
        work = tmp_path / str(trial)
        shutil.copytree(tmp_path / "good", work)
        damage(work / "checkpoints" / "20", mode, np.random.default_rng(trial))
        step, wrong = restored_step(work, (10, 20))
        assert wrong == 0
        newest += step == 20
        assert (step == 20) != (work / "checkpoints" / "20.damaged").is_dir()
    assert caplog.text.count("checkpoint step 20 is damaged (") == 3 - newest


def test_flipped_bit_is_logged_and_next_step_is_saved(tmp_path, caplog):
    save_steps(tmp_path, (10, 20))
    for file in (tmp_path / "checkpoints" / "20" / "state" / "d").iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(bytes(data))
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(abstract_state(), {"seed": 0})[0] == 10
    assert "WARNING checkpoint step 20 is damaged (params." in caplog.text
    assert "using step 10; the damaged folder is kept as 20.damaged" in caplog.text
    checkpoints.save(20, made_up_state(20), {"seed": 0}, wait=True)
    checkpoints.close()
    assert steps_in(tmp_path / "checkpoints") == [20, 10] and restored_step(tmp_path, (10, 20)) == (20, 0)


def test_restore_without_usable_step_raises_and_changes_nothing(tmp_path):
    save_steps(tmp_path, (10, 20))
    for step in ("10", "20"):
        (tmp_path / "checkpoints" / step / "record" / "metadata").write_text("{}")
    before = files_of(tmp_path)
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint \(2 damaged: step 20: record.*Nothing was changed"):
        checkpoints.restore(abstract_state(), {"seed": 0})
    checkpoints.close()
    assert files_of(tmp_path) == before
    for step in (10, 20):
        quarantine(tmp_path / "checkpoints", step)
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(CheckpointError, match=r"2 damaged: 10.damaged; 20.damaged"):
        checkpoints.restore(abstract_state(), {"seed": 0})
    checkpoints.close()


def test_restore_takes_newest_step_undamaged_in_all_processes(tmp_path, monkeypatch, caplog):
    save_steps(tmp_path, (10, 20, 30, 40))
    folder, target = tmp_path / "checkpoints", abstract_state()

    def restored(*said):
        """What is restored where another process sees and says so, one after the other."""
        answers = iter(said)
        monkeypatch.setattr(training, "from_all", lambda own: [own, next(answers, own)])
        with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
            return checkpoints.restore(target, {"seed": 0})

    assert restored([30, 20, 10], "", "b: unreadable")[0] == 20
    assert "step 40 is passed over (process 1 of 2 does not see it); using step 20" in caplog.text
    assert (
        "step 30 is damaged (process 1: b: unreadable); using step 20; the damaged folder is kept as 30.damaged" in caplog.text
    )
    assert steps_in(folder) == [40, 20, 10]
    before = read_record(folder, 40)["arrays"]
    with contextlib.closing(Checkpoints(tmp_path, keep=9)) as checkpoints:  # it gets there again
        checkpoints.save(40, made_up_state(7), {"seed": 0}, wait=True)
    assert steps_in(folder) == [40, 20, 10] and read_record(folder, 40)["arrays"] != before
    for seen in ([], [50]):
        with pytest.raises(
            CheckpointError, match=r"no checkpoint that all processes see undamaged \(step .0: process . of 2 does not"
        ):
            restored(seen)
    assert steps_in(folder) == [40, 20, 10]
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"\(step 20: process 0 of 2 does not see it\)\. Nothing was changed\. All need"):
        restored([20])
    with pytest.raises(CheckpointError, match=r"1 damaged: 20\.damaged"):
        restored([], ["20.damaged"])
    assert restored([], []) is None


def test_checkpoint_of_another_model_raises_and_is_not_quarantined(tmp_path):
    save_steps(tmp_path, (10,))
    checkpoints = Checkpoints(tmp_path, keep=2)
    target = abstract_state()
    with pytest.raises(CheckpointError, match="made with seed = 0, this run has 1"):
        checkpoints.restore(target, {"seed": 1})
    assert checkpoints.restore(target, {"seed": 1}, allow=("seed",))[0] == 10
    target["ema"] = {"bias": target["params"]["bias"]}
    with pytest.raises(CheckpointError, match=r"holds nothing as ema.bias, this run has float32 \(96,\)"):
        checkpoints.restore(target, {"seed": 0})
    checkpoints.close()
    nested = Checkpoints(tmp_path / "nested", keep=1)
    nested.save(1, made_up_state(1), {"model": {"depth": 2, "width": 8}}, wait=True)
    with pytest.raises(CheckpointError, match=r"made with model.depth = 2, this run has 3"):
        nested.restore(abstract_state(), {"model": {"depth": 3, "width": 8}})
    nested.close()
    assert steps_in(tmp_path / "checkpoints") == [10]


def test_save_of_state_with_infinity_raises(tmp_path):
    checkpoints, state = Checkpoints(tmp_path, keep=1), made_up_state(1)
    checkpoints.save(1, state, {}, wait=True)
    state["params"]["bias"] = state["params"]["bias"].at[3].set(jnp.inf)
    with pytest.raises(NotFiniteError, match=r"step 2 was not saved: params.bias"):
        checkpoints.save(2, state, {})
    checkpoints.close()
    assert steps_in(tmp_path / "checkpoints") == [1]


def test_expired_counts_verified_steps_only():
    steps = [1, 2, 3, 4, 5, 6]
    assert expired(steps, {6}, {}, keep=2) == [], "one whole step is not enough to delete others"
    assert expired(steps, {2, 6}, {}, keep=2) == [1], "3, 4 and 5 may be damaged: 2 stays"
    assert expired(steps, {5, 6}, {}, keep=2, keep_every=3) == [1, 2, 4]
    assert expired(steps, {5, 6}, {1: 0.5, 2: 0.1, 3: 0.1, 4: None}, keep=2, keep_best=1) == [1, 2, 4]


def test_expired_steps_are_deleted_without_remains(tmp_path):
    save_steps(tmp_path, (1, 2, 3, 4), keep=2, keep_every=2)
    folder = tmp_path / "checkpoints"
    assert steps_in(folder) == [4, 3, 2]
    (folder / "3").rename(folder / ".trash-3")  # killed while deleting
    (folder / "5.orbax-checkpoint-tmp" / "state").mkdir(parents=True)  # killed while saving
    assert steps_in(folder) == [4, 2]
    assert restored_step(tmp_path, (4,)) == (4, 0)
    save_steps(tmp_path, (5,), keep=9)
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"5", "4", "2"}
    delete(folder, [2, 5])
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"4"}


def test_keep_best_keeps_steps_with_lowest_scores(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1)
    for step, score in enumerate((3.0, 1.0, 2.0, 2.5), 1):
        checkpoints.save(step, made_up_state(step), {}, score=score, wait=True)
    checkpoints.close()
    assert steps_in(tmp_path / "checkpoints") == [4, 2]


def test_failing_save_is_tried_three_times(tmp_path, caplog):
    """The limit on a file's size makes real writes fail in the background, as a full disk does."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, made_up_state(1), {"seed": 0}, wait=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        with pytest.raises(CheckpointWriteError, match=r"step 2 could not be written .*File too large.* are kept"):
            checkpoints.save(2, made_up_state(2), {"seed": 0}, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("trying again") == 2
    checkpoints.close()
    assert restored_step(tmp_path, (1,)) == (1, 0)
    save_steps(tmp_path, (2,), keep=3)  # which waits until what was left over is gone
    assert {p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()} == {"1", "2"}
    assert cli.exit_code(CheckpointWriteError("")) == 75 and cli.exit_code(CheckpointError("")) == 4


def test_failed_background_save_is_repeated(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=3)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(training, "sync_small_files", broken)
        checkpoints.save(1, made_up_state(1), {})
        checkpoints._finisher.join()
        assert not checkpoints.check()
    checkpoints.save(2, made_up_state(2), {}, wait=True)
    assert checkpoints.check() and checkpoints.failures == 0
    checkpoints.close()
    assert steps_in(tmp_path / "checkpoints")[0] == 2


def test_check_free_space_raises_or_warns_before_training(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.check_free_space(made_up_state(1))
    assert not caplog.text
    monkeypatch.setattr(training, "free_bytes", lambda folder: 2_500_000)
    checkpoints.check_free_space(made_up_state(1))
    assert "2.5 MB are free" in caplog.text
    monkeypatch.setattr(training, "free_bytes", lambda folder: 1000)
    with pytest.raises(CheckpointWriteError, match=r"No space left on device: it needs 1\.1 MB, 1\.0 kB are free"):
        checkpoints.check_free_space(made_up_state(1))
    checkpoints.close()


def test_checkpoints_command_lists_and_verifies(tmp_path, capsys):
    save_steps(tmp_path, (10, 20, 30))
    folder = tmp_path / "checkpoints"
    quarantine(folder, 10)
    assert cli.main(["checkpoints", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "20", "30", "10.damaged"]
    assert lines[1].endswith("committed") and lines[1].split()[2] == "kB" and float(lines[1].split()[1]) > 40
    record = json.loads((folder / "20" / "record" / "metadata").read_text())
    record["record"]["about"]["seed"] = 1
    (folder / "20" / "record" / "metadata").write_text(json.dumps(record))
    assert cli.main(["checkpoints", str(folder), "--verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("damaged: record: differs from what was written") and lines[2].endswith("verified")
    for file in (folder / "30" / "state" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert [bool(step.problem) for step in listing(folder, read=True)] == [True, True, True]
    assert cli.main(["checkpoints", str(folder), "--verify"]) == 4
    assert cli.main(["checkpoints", str(tmp_path / "none")]) == 2
