"""The loop of training: resumed after a kill, stopped by NaN, ended early; checkpoints of other runs."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_tts_jax.sharding import make_mesh
from qwen3_tts_jax.train.batches import Batches
from qwen3_tts_jax.train.checkpoints import Checkpoints
from qwen3_tts_jax.train.examples import Example
from qwen3_tts_jax.train.interrupts import Interrupted, Signals
from qwen3_tts_jax.train.lines import DataError, Line
from qwen3_tts_jax.train.loop import Stepped, run_steps
from qwen3_tts_jax.train.optimizer import OptimizerConfig
from qwen3_tts_jax.train.progress import DivergedError, Schedule
from qwen3_tts_jax.train.run import describe, fit
from qwen3_tts_jax.train.shards import spread
from qwen3_tts_jax.train.state_files import RunError, latest
from qwen3_tts_jax.train.step import Recipe, TrainState
from tests.command import of_devices
from tests.train_model import CUSTOM_VOICE, Letters, own_params, params, random_codes

STEPS = 6
RECIPE = Recipe(CUSTOM_VOICE, optimizer=OptimizerConfig(3e-3, STEPS, 1), remat=False)
TEXTS = ("One.", "Two and three.", "Four!", "What is five?", "Six")


def data(texts=TEXTS, seed=0, text_modes=("all_at_once",)):
    codes = random_codes(tuple(3 + len(text) % 5 for text in texts), seed)
    examples = [
        Example(Line(f"data.jsonl line {i + 1}", Path("a.wav"), text, speaker="ryan"), row[row[:, 0] >= 0])
        for i, (text, row) in enumerate(zip(texts, codes, strict=True))
    ]
    return Batches(examples, Letters(), CUSTOM_VOICE, batch_size=2, text_modes=text_modes, seed=4)


def train(folder, recipe=RECIPE, report=None, validation=None, **schedule):
    every = Schedule(**{"log": 1, "save": 2, "evaluate": 2} | schedule)
    return fit(own_params(), recipe, data(), folder, validation=validation, schedule=every, report=report)


def killed(folder):
    """Runs in a process of its own: dies while it works on the steps after a checkpoint."""
    train(folder, report=lambda numbers: numbers["step"] == 3 and os.kill(os.getpid(), signal.SIGKILL))


def sharded(folder):
    """Runs on 4 of 8 virtual devices, in a process of its own, and saves what was trained."""
    assert jax.device_count() == 8
    recipe = replace(RECIPE, optimizer=replace(RECIPE.optimizer, steps=2), average=0.5)
    mesh = make_mesh(4, devices=jax.devices()[:4])
    given = spread(own_params(), mesh)
    others = {id(array) for array in jax.live_arrays() if not array.committed}

    def check(numbers):
        """Neither weights, nor moments, nor averages lie whole on a device."""
        for array in jax.live_arrays():
            if id(array) not in others and array.size >= 2**12:
                assert not array.is_fully_replicated, (array.shape, numbers)

    with only_traced():
        result = fit(given, recipe, replace(data(), batch_size=4), folder, mesh=mesh, report=check)
    weight = result.state.trained["talker/codec_head/weight"]
    assert len({str(shard.index) for shard in weight.addressable_shards}) == 4, weight.sharding
    moments = [leaf for leaf in jax.tree.leaves(result.state.optimizer) if leaf.shape == weight.shape]
    assert len(moments) >= 2
    assert all(leaf.sharding == weight.sharding for leaf in moments)
    np.savez(Path(folder) / "trained.npz", **result.state.trained)


@contextmanager
def only_traced():
    """Refuses moments that are made outside of a compiled function, and so on one device."""
    make = OptimizerConfig.optimizer

    def traced(self, *arguments):
        optimizer = make(self, *arguments)

        def init(leaves):
            assert all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(leaves))
            return optimizer.init(leaves)

        return optimizer._replace(init=init)

    OptimizerConfig.optimizer = traced
    try:
        yield
    finally:
        OptimizerConfig.optimizer = make


def test_four_devices_train_as_one_does(tmp_path):
    script = f"from tests.test_train_run import sharded; sharded({str(tmp_path / 'four')!r})"
    process = subprocess.run([sys.executable, "-c", script], env=of_devices(8), capture_output=True, check=False)
    assert process.returncode == 0, process.stderr.decode()
    recipe = replace(RECIPE, optimizer=replace(RECIPE.optimizer, steps=2), average=0.5)
    one = fit(own_params(), recipe, replace(data(), batch_size=4), tmp_path / "one")
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("one", "four")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    four = np.load(tmp_path / "four" / "trained.npz")
    for path, leaf in one.state.trained.items():
        np.testing.assert_allclose(four[path], leaf, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_holds_its_weights_once(average, tmp_path):
    """And two moments, and an average if there is one; the state that a resumed run would have begun with is gone."""

    params()  # which stay

    def live():
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    before, held = live(), []
    given = own_params()
    table = given["talker"]["text_embedding"]
    # As a checkpoint has it.
    given["talker"] = given["talker"] | {"text_embedding": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), table)}
    del given["speaker_encoder"], table
    weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(given))
    recipe = replace(RECIPE, average=average)

    def measure(_):
        held.append((live() - before) / weights)
        if len(held) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(given, recipe, data(), tmp_path, report=measure, schedule=Schedule(1, save=2))
    given = {part: own_params()[part] for part in ("talker", "code_predictor")}
    fit(given, recipe, data(), tmp_path, report=measure, schedule=Schedule(1, save=2))
    assert len(held) == STEPS + 1
    assert max(held) < (4.1 if average else 3.1), held


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_to_the_same_parameters(tmp_path):
    script = f"from tests.test_train_run import killed; killed({str(tmp_path / 'killed')!r})"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert process.returncode == -9, process.stderr.decode()
    assert latest(tmp_path / "killed" / "checkpoints").name == "00000002"
    assert [line["step"] for line in log_of(tmp_path / "killed")] == [1, 2, 3]
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')

    steps = []
    resumed = train(tmp_path / "killed", report=lambda numbers: steps.append(numbers["step"]))
    assert steps == [3, 4, 5, 6]
    whole = train(tmp_path / "whole")
    assert sorted(resumed.state.trained) == sorted(whole.state.trained)
    for path, leaf in whole.state.trained.items():
        np.testing.assert_array_equal(resumed.state.trained[path], leaf, err_msg=path)
    for mine, other in zip(resumed.state.optimizer, whole.state.optimizer, strict=True):
        assert str(mine) == str(other)
    assert [line["loss"] for line in log_of(tmp_path / "killed")] == [
        line["loss"] for line in log_of(tmp_path / "whole")
    ]
    # One that was killed while its model was written.
    assert train(tmp_path / "whole").loss == whole.loss == log_of(tmp_path / "whole")[-1]["loss"]
    kept = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert kept == ["00000004", "00000006"]

    for other, match in (
        (
            replace(RECIPE, optimizer=OptimizerConfig(1e-3, STEPS, 1)),
            r": optimizer.learning_rate was 0\.003, is 0\.001;",
        ),
        (replace(RECIPE, model=replace(CUSTOM_VOICE, max_new_tokens=7)), "model's max_new_tokens was .*300.*, is .*7"),
    ):
        with pytest.raises(RunError, match=match):
            train(tmp_path / "whole", other)


def test_a_signal_ends_the_run_after_its_step(tmp_path, caplog):
    """Between two checkpoints; what goes on comes to the parameters of a run that was never stopped."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("another handles SIGTERM")

    def stop(numbers):
        if numbers["step"] == 3:
            signal.raise_signal(signal.SIGTERM)
            # A second one ends the process.
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with caplog.at_level("INFO", "qwen3_tts_jax.train"), pytest.raises(Interrupted, match="stopped after step 3") as e:
        train(tmp_path / "stopped", report=stop)
    assert e.value.number == signal.SIGTERM
    assert latest(tmp_path / "stopped" / "checkpoints").name == "00000003"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    steps = []
    with caplog.at_level("INFO", "qwen3_tts_jax.train"):
        resumed = train(tmp_path / "stopped", report=lambda numbers: steps.append(numbers["step"]))
    assert steps == [4, 5, 6]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("qwen3_tts_jax.train")] == [
        "compiling step 1 of 6",
        f"going on after step 3 of {tmp_path / 'stopped'}",
        "compiling step 4 of 6",
    ]
    whole = train(tmp_path / "whole")
    for path, leaf in whole.state.trained.items():
        np.testing.assert_array_equal(resumed.state.trained[path], leaf, err_msg=path)
    rates = [line["learning_rate"] for line in log_of(tmp_path / "stopped")]
    np.testing.assert_allclose(rates, [RECIPE.optimizer.schedule()(step) for step in range(STEPS)], rtol=1e-6)
    assert rates[0] == pytest.approx(3e-3) != pytest.approx(rates[-1])


def test_a_signal_before_the_steps(tmp_path, monkeypatch):
    """While what comes before them is computed: it is kept for them, and nothing is compiled any more."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("another handles SIGTERM")
    with Signals() as signals:
        signals.stop("too soon")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped before step 1"):
            take_steps(tmp_path, str)
        with pytest.raises(Interrupted, match="stopped here"):
            signals.stop("here")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert Signals().number is None
    take_steps(tmp_path, "batch {}".format)


def take_steps(folder, batch_of, loss=lambda step: np.float32(2.0)):
    """Three steps that learn nothing."""

    def advance(state, step, batch):
        assert batch == f"batch {step}"
        metrics = {"loss": loss(step), "learning_rate": jnp.float32(0.1 * step), "finite": True}
        return Stepped(state.replace(step=state.step + 1), metrics, 3)

    state = TrainState(jnp.zeros((), jnp.int32), {"weight": jnp.ones(3)}, ())
    schedule = Schedule(1, save=1)
    run_steps(state, batch_of, advance, folder, {}, 3, names=str, unit="frames", schedule=schedule, report=None)


def test_the_log_has_what_a_step_tells(tmp_path):
    take_steps(tmp_path, "batch {}".format)
    assert [line["learning_rate"] for line in log_of(tmp_path)] == pytest.approx([0.0, 0.1, 0.2])


def test_the_next_batch_is_made_while_a_step_is_computed(tmp_path):
    made = [threading.Event() for _ in range(3)]

    def batch_of(step):
        made[step].set()
        return f"batch {step}"

    class Loss:
        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            """Is there only once the next batch is."""
            assert made[min(self.step + 1, 2)].wait(30)
            return np.array(2.0, np.float32)

    take_steps(tmp_path, batch_of, Loss)
    assert len(log_of(tmp_path)) == 3


def test_a_batch_that_cannot_be_made_ends_the_run_after_the_step_before(tmp_path):
    def batch_of(step):
        if step == 2:
            raise DataError("data.jsonl line 7: no such speaker")
        return f"batch {step}"

    with pytest.raises(DataError, match="line 7"):
        take_steps(tmp_path, batch_of)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2]
    assert latest(tmp_path / "checkpoints").name == "00000002"


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    recipe = replace(RECIPE, optimizer=OptimizerConfig(1e30, STEPS, 0, clip=1e9))
    with pytest.raises(
        DivergedError, match=r"step 2: the loss is .* the batch was data.jsonl line \d, data.jsonl line"
    ) as e:
        train(tmp_path, recipe, save=0)
    assert latest(tmp_path / "checkpoints").name == "00000001"
    assert str(tmp_path / "checkpoints" / "00000001") in str(e.value)
    assert [line["step"] for line in log_of(tmp_path)] == [1]


def test_an_early_end_keeps_the_best(tmp_path):
    """Held-out codes of pure chance get worse as the others are learnt by heart."""
    spoken = []
    recipe = replace(RECIPE, optimizer=OptimizerConfig(1e-2, 60, 1))
    every = Schedule(log=0, save=0, evaluate=4, patience=2, sample=8)
    result = fit(
        own_params(), recipe, data(), tmp_path, validation=data(TEXTS[:3], seed=9), schedule=every,
        speak=lambda tree, step: spoken.append((step, sorted(tree))),
    )  # fmt: skip
    losses = {line["step"]: line["validation_loss"] for line in log_of(tmp_path)}
    best = min(losses, key=losses.get)
    assert result.ended_early
    assert result.step == best == max(losses) - 8
    assert result.loss == losses[best]
    assert spoken[0] == (8, ["code_predictor", "talker"])
    assert len(log_of(tmp_path)[0]["validation_codes"]) == CUSTOM_VOICE.talker.num_codebooks
    # Killed before its model was written.
    before = (tmp_path / "log.jsonl").read_text()
    again = fit(own_params(), recipe, data(), tmp_path, validation=data(TEXTS[:3], seed=9), schedule=every)
    assert (again.ended_early, again.step, again.loss) == (True, result.step, result.loss)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_run_that_was_killed_with_a_best_checkpoint_alone(tmp_path):
    """It goes on from there; another run does not leave it behind as its own best."""
    held_out = data(TEXTS[:3], seed=9)

    def kill(numbers):
        if numbers["step"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path / "killed", report=kill, validation=held_out, save=0)
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["best"]
    other = replace(RECIPE, optimizer=replace(RECIPE.optimizer, steps=2))
    with pytest.raises(RunError, match=r"best is of another run: optimizer.steps was 6, is 2"):
        Checkpoints(tmp_path / "killed", describe(other)).check()
    with pytest.raises(RunError, match=r"best is of another run: optimizer.steps was 6, is 2"):
        train(tmp_path / "killed", other)
    steps = []
    resumed = train(tmp_path / "killed", report=lambda line: steps.append(line["step"]), validation=held_out)
    assert steps == [3, 4, 4, 5, 6, 6]
    whole = train(tmp_path / "whole", validation=held_out)
    assert (resumed.step, resumed.loss) == (whole.step, whole.loss)
    for path, leaf in whole.state.trained.items():
        np.testing.assert_array_equal(resumed.state.trained[path], leaf, err_msg=path)


def test_a_single_held_out_clip_has_no_other_text(tmp_path):
    recipe = replace(RECIPE, optimizer=OptimizerConfig(3e-3, 1, 0))
    for count in (1, 2):
        folder, held_out = tmp_path / str(count), data(TEXTS[:2], seed=9)
        held_out = replace(held_out, examples=held_out.examples[:count])
        fit(own_params(), recipe, data(), folder, validation=held_out, text_gap=True)
        assert [("text_gap" in line) for line in log_of(folder)] == [False, count > 1]


def test_a_judgement_that_is_no_number_is_not_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    waited = []
    for step, value in enumerate([float("nan"), 3.0, float("nan"), 1.0, 2.0]):
        checkpoints.judge({"step": np.array([step])}, value)
        waited.append(checkpoints.waited)
    assert waited == [1, 0, 1, 0, 1]
    assert checkpoints.best == 1.0
    assert checkpoints.best_state({"step": np.array([0])})["step"] == 3


def test_batches_follow_from_the_step_alone():
    batches = data(text_modes=("all_at_once", "as_it_comes"))
    seen = [each.line.text for step in range(5) for each in batches.of_step(step)[1]]
    assert sorted(seen[:5]) == sorted(seen[5:]) == sorted(TEXTS)
    assert seen[:5] != seen[5:]
    first, again = batches.of_step(3)[0], replace(batches).of_step(3)[0]
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.prompts.text_ids, again.prompts.text_ids)
    # The two text modes by turns: only as it comes, text is left for the frames.
    trailing = [batches.of_step(step)[0].prompts.trailing_text_ids for step in range(5)]
    assert {ids.shape[-1] for ids in trailing} == {0, 32}
    held_out = batches.in_order()
    assert [int((batch.codes[..., 0] >= 0).any(axis=1).sum()) for batch in held_out] == [2, 2, 1]
