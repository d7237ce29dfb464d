"""The engine trains like a plain loop, divides batches without changing sums, and saves its exact state."""

import json

import numpy as np
import pytest
import torch

from scorers.errors import UserError
from tests.training.jobs import COMPARABLE
from tests.training.model.test_models import small_llama
from tests.training.ranks import no_room
from training import objectives
from training.config import ModelConfig, TrainingConfig
from training.data.batches import Batch
from training.distributed.world import World
from training.engine.deepspeed_config import deepspeed_config, warn_rounded_gradients
from training.engine.engine import Engine, choose_precision, parameter_groups
from training.model.language_model import build_model
from training.model.vocabulary import Vocabulary
from training.schedule import learning_rate, plan_horizon

LENGTH = 16


@pytest.fixture(scope="module")
def world():
    world = World.from_environment()
    world.start()
    return world


def make(world, objective="mle", *, name="nano", batch_size=4, seed=0, tied=True, **config):
    training = TrainingConfig(**{"batch_size": batch_size, "learning_rate": 1e-3, **config})
    loss = objectives.build(objective, **({"alpha": 0.5, "beta": 1.0} if objective == "awr" else {}))
    torch.manual_seed(seed)
    network = ModelConfig(name=name, overrides={"tie_word_embeddings": tied})
    model = build_model(network, Vocabulary(64, 0), value_head=loss.needs_values)
    precision = choose_precision(training, world.device)
    return Engine(model, training, plan_horizon(training, LENGTH, world.size), world, precision), loss


def batch(step, size=4):
    generator = np.random.default_rng(step)
    ids = generator.integers(0, 64, (size, LENGTH))
    return Batch(ids, generator.random((size, LENGTH), dtype=np.float32))


def steps(engine, loss, numbers, rate=1e-3):
    outcomes = [engine.train_step(batch(number), loss, rate) for number in numbers]
    return [float(each.loss) for each in outcomes], [float(each.gradient_norm) for each in outcomes]


@pytest.mark.parametrize("clipping", [0.0, 0.5])
def test_it_trains_like_a_plain_torch_loop(world, clipping):
    engine, loss = make(world, gradient_clipping=clipping, micro_batch_size=2)
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="nano"), Vocabulary(64, 0))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3)
    for number in range(5):
        found, norms = steps(engine, loss, [number])
        ids = torch.from_numpy(batch(number).input_ids)
        logits, _ = model(ids)
        expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clipping or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        assert found[0] == pytest.approx(expected.item(), abs=1e-5)
        assert norms[0] == pytest.approx(norm.item(), rel=1e-4)


def test_nothing_is_clipped_at_zero_although_deepspeed_would_clip_at_one(world):
    def weight_change(clipping):
        engine, loss = make(world, gradient_clipping=clipping, adam_epsilon=10.0, weight_decay=0.0)
        before = [parameter.detach().clone() for parameter in engine.model.parameters()]
        _, norms = steps(engine, loss, [0])
        return norms[0], sum(
            float((new - old).detach().abs().sum()) for new, old in zip(engine.model.parameters(), before, strict=True)
        )

    # With this epsilon, Adam's first update is proportional to the gradient.
    norm, free = weight_change(0.0)
    _, clipped = weight_change(norm / 4)
    assert clipped == pytest.approx(free / 4, rel=1e-2)


@pytest.mark.parametrize("objective", ["mle", "awr"])
def test_losses_do_not_depend_on_how_a_batch_is_cut(world, objective):
    whole, loss = make(world, objective, micro_batch_size=4)
    cut, _ = make(world, objective, micro_batch_size=1)
    expected, norms = steps(whole, loss, range(6))
    found, cut_norms = steps(cut, loss, range(6))
    assert found == pytest.approx(expected, abs=1e-5)
    assert cut_norms == pytest.approx(norms, rel=1e-4)


def test_metrics_add_up_over_micro_batches(world):
    whole, loss = make(world, "awr", micro_batch_size=4)
    cut, _ = make(world, "awr", micro_batch_size=1)
    expected = whole.train_step(batch(0), loss, 1e-3).metrics
    found = cut.train_step(batch(0), loss, 1e-3).metrics
    assert {name: float(each) for name, each in found.items()} == pytest.approx(
        {name: float(each) for name, each in expected.items()}, abs=1e-5
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loaded_engine_resumes_bit_for_bit(world, tmp_path, stage):
    def losses(engine, numbers):
        return [engine.train_step(batch(number), loss, 1e-3).loss.item() for number in numbers]

    engine, loss = make(world, "awr", zero_stage=stage, micro_batch_size=2)
    losses(engine, range(3))
    engine.save(tmp_path)
    expected, weights = losses(engine, range(3, 6)), engine.state_dict()
    engine.close()
    other, _ = make(world, "awr", zero_stage=stage, micro_batch_size=2, seed=99)
    other.load(tmp_path)
    assert losses(other, range(3, 6)) == expected
    assert all(torch.equal(weight, weights[name]) for name, weight in other.state_dict().items())
    other.close()


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_all_files_are_written_by_the_given_function(world, tmp_path, stage):
    engine, _ = make(world, zero_stage=stage, skip_sigmas=6.0 if stage else None)
    taken = []
    # A file written outside the given function would fail here, on rank 0 alone.
    with no_room(limit=1):
        assert engine.save(tmp_path, lambda _, path: taken.append(path)) == taken
    assert len(taken) == {0: 2}.get(stage, 4)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with no_room(), pytest.raises((OSError, RuntimeError)):
        engine.save(tmp_path)
    engine.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_nan_update_changes_nothing(world, stage, precision):
    def losses(numbers):
        engine, loss = make(world, "awr", zero_stage=stage, micro_batch_size=2, precision=precision)
        found = []
        for number in numbers:
            data = batch(0 if number is None else number)
            if number is None:
                data.scores[1, 3] = np.nan  # in the first of two micro-batches
            outcome = engine.train_step(data, loss, 1e-2)
            assert outcome.applied == (number is not None)
            if number is not None:
                found.append(outcome.loss.item())
        weights = engine.state_dict()
        engine.close()
        return found, weights

    expected, weights = losses([0, 1, 2, 3])
    found, same = losses([None, 0, 1, None, None, 2, 3])
    assert found == expected
    assert all(torch.equal(weight, weights[name]) for name, weight in same.items())


def spike(size):
    data = batch(500)
    data.scores[:] = size
    return data


def test_a_spike_is_skipped_and_the_memory_of_losses_is_saved(world, tmp_path):
    options = {"zero_stage": 1, "skip_sigmas": 6.0, "micro_batch_size": 2}
    engine, loss = make(world, "awr", **options)
    assert engine.train_step(spike(1000), loss, 1e-3).applied, "nothing is known of the losses yet"
    engine.close()
    engine, loss = make(world, "awr", **options)
    for number in range(70):
        assert engine.train_step(batch(number), loss, 1e-3).applied
    engine.save(tmp_path)
    for _ in range(3):
        outcome = engine.train_step(spike(1000), loss, 1e-3)
        assert outcome.harmful
        assert not outcome.applied
    outcome = engine.train_step(batch(70), loss, 1e-3)
    assert outcome.applied
    assert not outcome.harmful
    engine.forget_losses()
    assert engine.train_step(spike(1000), loss, 1e-3).applied
    engine.close()
    other, _ = make(world, "awr", **options, seed=7)
    other.load(tmp_path)
    assert not other.train_step(spike(1000), loss, 1e-3).applied
    other.close()


@pytest.mark.parametrize("objective", ["conditional", "awr"])
@pytest.mark.parametrize("tied", [True, False])
def test_partitioned_parameters_are_gathered_for_the_loss(world, tmp_path, objective, tied):
    # By default DeepSpeed does not partition parameters of a small model.
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')

    def losses(**config):
        engine, loss = make(world, objective, micro_batch_size=2, tied=tied, adam_epsilon=COMPARABLE, **config)
        found = [float(engine.train_step(batch(number), loss, 1e-2).loss) for number in range(4)]
        weights = engine.state_dict()
        engine.close()
        return found, weights

    expected, weights = losses(zero_stage=1)
    found, partitioned = losses(zero_stage=3, deepspeed=str(tmp_path / "ds.json"))
    assert found == pytest.approx(expected, rel=1e-5)
    for name, weight in partitioned.items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-5)


def test_dropout_resumes_with_the_saved_generator(world, tmp_path):
    def with_dropout(seed):
        engine, loss = make(world, seed=seed)
        for module in engine.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        return engine, loss

    engine, loss = with_dropout(0)
    engine.save(tmp_path)
    expected, _ = steps(engine, loss, range(3))
    other, _ = with_dropout(5)
    torch.manual_seed(123)
    other.load(tmp_path)
    assert steps(other, loss, range(3))[0] == expected


@pytest.mark.parametrize("stage", [1, 3])
def test_the_whole_model_computes_what_the_engine_does(world, stage):
    engine, loss = make(world, "awr", zero_stage=stage)
    engine.train_step(batch(0), loss, 1e-2)
    model = engine.whole_model().eval()
    ids = torch.from_numpy(batch(1).input_ids)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    ce = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(engine.train_step(batch(1), loss, 1e-2).metrics["ce"]) == pytest.approx(ce.item(), abs=1e-5)
    engine.close()


def test_a_whole_model_in_bf16_equals_the_trained_one_and_draws_no_random_numbers(world, tmp_path):
    # Rotary frequencies are buffers: in bf16, positions would be rotated by wrong angles.
    small_llama().save_pretrained(tmp_path)
    wholes, parts = [], []
    for stage in (1, 3):
        engine, _ = make(world, name=str(tmp_path), zero_stage=stage, precision="bf16")
        state = torch.get_rng_state()
        whole = engine.whole_model().eval()
        assert torch.equal(torch.get_rng_state(), state)
        wholes.append(whole(input_ids=torch.from_numpy(batch(0).input_ids)).logits)
        parts.append({name: each.dtype for name, each in (*whole.named_parameters(), *whole.named_buffers())})
        engine.close()
    assert set(parts[0].values()) == {torch.bfloat16, torch.float32}
    assert parts[1] == parts[0]
    assert torch.equal(*wholes)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_of_bf16_are_summed_without_rounding(world, tmp_path, stage):
    from deepspeed.utils import safe_get_full_grad

    def gradient(precision, micro, **changes):
        engine, loss = make(
            world, batch_size=64, precision=precision, micro_batch_size=micro, zero_stage=stage, **changes
        )
        found, step = [], engine._engine.step

        def stepped():
            if engine._engine.is_gradient_accumulation_boundary():
                found.extend(safe_get_full_grad(each).float().flatten() for each in engine.model.parameters())
            step()

        engine._engine.step = stepped
        engine.train_step(batch(0, 64), loss, 1e-3)
        engine.close()
        return torch.cat(found)

    exact = gradient("fp32", 32)
    (tmp_path / "ds.json").write_text('{"data_types": {"grad_accum_dtype": "bf16"}}')
    whole, cut, rounded = (
        float((each - exact).norm() / exact.norm())
        for each in (
            gradient("bf16", 64),
            gradient("bf16", 1),
            gradient("bf16", 1, deepspeed=str(tmp_path / "ds.json")),
        )
    )
    assert cut < 1.1 * whole < 0.01
    assert rounded > 1.4 * cut


def test_bf16_learns(world):
    engine, loss = make(world, precision="bf16", micro_batch_size=2, learning_rate=1e-2)
    losses = [float(engine.train_step(batch(0), loss, 1e-2).loss) for _ in range(12)]
    assert next(engine.model.parameters()).dtype == torch.bfloat16
    assert losses[-1] < losses[0] - 0.5


def test_biases_and_norms_do_not_decay():
    model = build_model(ModelConfig(name="nano"), Vocabulary(64, 0), value_head=True)
    decayed, others = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all("bias" in names[id(each)] or ".ln_" in names[id(each)] for each in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


class TestHorizon:
    def test_micro_batches_ranks_and_accumulation_make_the_batch(self):
        for size, ranks, micro, expected in [(64, 1, None, 8), (64, 16, None, 4), (6, 1, None, 6), (22, 2, None, 1)]:
            horizon = plan_horizon(TrainingConfig(batch_size=size, micro_batch_size=micro), 1024, ranks)
            assert horizon.micro_batch_size == expected
            assert horizon.micro_batch_size * horizon.accumulation * ranks == size

    def test_whole_batches_fit_into_the_tokens_and_at_least_one(self):
        assert plan_horizon(TrainingConfig(num_tokens=10_000, batch_size=4), 100, 1).steps == 25
        assert plan_horizon(TrainingConfig(num_tokens=1, batch_size=4), 100, 1).steps == 1

    def test_what_cannot_be_divided_is_refused(self):
        with pytest.raises(UserError, match=r"batch_size=6 cannot be divided among 4 ranks"):
            plan_horizon(TrainingConfig(batch_size=6), 100, 4)
        with pytest.raises(UserError, match=r"micro_batch_size=4 does not divide .* 6 blocks"):
            plan_horizon(TrainingConfig(batch_size=12, micro_batch_size=4), 100, 2)


class TestLearningRate:
    def test_linear_rises_to_the_peak_and_falls_to_nothing(self):
        config = TrainingConfig(learning_rate=1.0, warmup_ratio=0.1)
        rates = [learning_rate(config, step, 100) for step in range(100)]
        assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert rates[10] == 1.0
        assert rates[55] == pytest.approx(0.5)
        assert rates[99] == pytest.approx(1 / 90)

    def test_cosine_is_halfway_in_the_middle_and_ends_at_its_minimum(self):
        config = TrainingConfig(learning_rate=1.0, warmup_ratio=0, schedule="cosine", min_learning_rate_ratio=0.1)
        assert learning_rate(config, 0, 100) == 1.0
        assert learning_rate(config, 50, 100) == pytest.approx(0.55)
        assert learning_rate(config, 100, 100) == pytest.approx(0.1)

    def test_wsd_stays_and_then_decays_as_a_square_root(self):
        config = TrainingConfig(learning_rate=1.0, warmup_ratio=0.1, schedule="wsd", decay_ratio=0.25)
        rates = [learning_rate(config, step, 100) for step in range(101)]
        assert rates[4] == pytest.approx(0.5)
        assert set(rates[9:76]) == {1.0}
        assert rates[76] == pytest.approx(1 - 0.2)
        assert rates[84] == pytest.approx(1 - 0.6)
        assert rates[100] == 0.0
        # At most the steps after the warm-up, and at least one.
        assert learning_rate(config.model_copy(update={"decay_ratio": 1.0}), 10, 100) == 1.0
        assert learning_rate(config.model_copy(update={"decay_ratio": 1e-6}), 99, 100) == 1.0

    def test_constant_stays(self):
        config = TrainingConfig(learning_rate=1.0, warmup_ratio=0, schedule="constant")
        assert {learning_rate(config, step, 7) for step in range(7)} == {1.0}

    def test_a_run_of_one_step_has_the_peak(self):
        assert learning_rate(TrainingConfig(learning_rate=1.0), 0, 1) == 1.0


class TestDeepSpeedJson:
    def config(self, tmp_path, theirs, **training):
        path = tmp_path / "ds.json"
        path.write_text(theirs if isinstance(theirs, str) else json.dumps(theirs))
        training = TrainingConfig(deepspeed=str(path), batch_size=8, **training)
        return deepspeed_config(training, plan_horizon(training, 32, 1), "fp32", parameters=100, on_gpu=False)

    def test_buckets_have_an_even_number_of_elements(self):
        horizon = plan_horizon(TrainingConfig(batch_size=8), 32, 1)
        made = deepspeed_config(TrainingConfig(batch_size=8), horizon, "fp32", parameters=101, on_gpu=False)
        assert made["zero_optimization"]["allgather_bucket_size"] == 102

    def test_it_is_merged_under_the_settings(self, tmp_path):
        theirs = {
            "train_batch_size": "auto",
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": "auto", "reduce_bucket_size": 5, "round_robin_gradients": True},
            "wall_clock_breakdown": True,
            "managed_gradient_accumulation": True,
            "bf16": {"check_grad_overflow": "auto"},
        }
        merged = self.config(tmp_path, theirs)
        assert merged["train_batch_size"] == 8
        assert merged["wall_clock_breakdown"] is True
        assert merged["zero_optimization"]["reduce_bucket_size"] == 5
        assert merged["zero_optimization"]["round_robin_gradients"] is True
        assert merged["zero_optimization"]["stage"] == 1

    @pytest.mark.parametrize("device", ["none", "cpu", "nvme"])
    def test_the_file_sets_the_offload_device_if_the_setting_does_not(self, tmp_path, device):
        theirs = {"zero_optimization": {"offload_optimizer": {"device": device}}}
        assert self.config(tmp_path, theirs)["zero_optimization"]["offload_optimizer"]["device"] == device
        with pytest.raises(
            UserError, match=r"offload_optimizer\.device to 'nvme', but training\.offload makes it 'cpu'"
        ):
            self.config(tmp_path, {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, offload="optimizer")

    def test_clipping_is_always_set(self, tmp_path):
        assert self.config(tmp_path, {}, gradient_clipping=0)["gradient_clipping"] == 0.0

    @pytest.mark.parametrize(
        ("theirs", "message"),
        [
            ({"gradient_clipping": 0.3}, r"gradient_clipping to 0\.3, but training\.gradient_clipping makes it 1\.0"),
            (
                {"zero_optimization": {"stage": 3}},
                r"zero_optimization\.stage to 3, but training\.zero_stage makes it 1",
            ),
            ({"bf16": {"enabled": True}}, r"bf16\.enabled to True, but training\.precision makes it False"),
            ({"train_batch_size": 16}, r"train_batch_size to 16, but training\.batch_size makes it 8"),
            ({"optimizer": {"type": "Adam"}}, r"sets 'optimizer', but training\.learning_rate.* decides"),
            ({"checkpoint": {"writer": {"decoupled": True}}}, r"sets checkpoint\.writer, .* training\.save_async=true"),
            ({"scheduler": {"type": "WarmupLR"}}, r"sets 'scheduler', but training\.schedule"),
            ({"bf16": {"check_grad_overflow": False}}, r"bf16\.check_grad_overflow to False.* not finite.*Remove it"),
            (
                {"zero_optimization": {"compute_grad_norm": False}},
                r"zero_optimization\.compute_grad_norm to False.* not finite.*Remove it",
            ),
            ({"managed_gradient_accumulation": False}, r"managed_.* to False.* every micro-batch.*Remove it"),
            (
                {"zero_optimization": {"reduce_bucket_size": "abc"}},
                r"DeepSpeed cannot read it: .*reduce_bucket_size: Input should be a valid integer",
            ),
            ({"zero_optimization": {"reduce_buket_size": 5}}, r"reduce_buket_size: Extra inputs are not permitted"),
            ({"zero_optimization": 3}, r"zero_optimization to 3, where DeepSpeed has an object"),
            ({"wall_clock_breakdown": "abc"}, r"DeepSpeed cannot read it: unsupported operand"),
            ({"zero_optimisation": {"stage": 1}}, r"'zero_optimisation'.* did you mean 'zero_optimization'"),
            ({"gradient_cliping": 0.5}, r"'gradient_cliping'.* did you mean 'gradient_clipping'"),
            ("{", r"is not valid JSON"),
            ("[]", r"must hold a JSON object, not a list"),
        ],
    )
    def test_a_conflict_names_both(self, tmp_path, theirs, message):
        with pytest.raises(UserError, match=message):
            self.config(tmp_path, theirs)

    def test_sums_in_bf16_are_warned_about(self, tmp_path):
        (tmp_path / "ds.json").write_text('{"data_types": {"grad_accum_dtype": "bf16"}}')
        for file, dtype, warned in [(None, "fp32", False), (str(tmp_path / "ds.json"), "bf16", True)]:
            training = TrainingConfig(deepspeed=file, precision="bf16")
            found = deepspeed_config(training, plan_horizon(training, 32, 1), "bf16", parameters=100, on_gpu=False)
            assert found["data_types"]["grad_accum_dtype"] == dtype
            assert ("sums of gradients are rounded" in (warn_rounded_gradients(found, file) or "")) == warned
        training = TrainingConfig(deepspeed=str(tmp_path / "ds.json"))
        exact = deepspeed_config(training, plan_horizon(training, 32, 1), "fp32", parameters=100, on_gpu=False)
        assert warn_rounded_gradients(exact, training.deepspeed) is None

    def test_a_missing_file_is_named(self):
        training = TrainingConfig(deepspeed="/no/such.json")
        with pytest.raises(UserError, match=r"Cannot read training\.deepspeed=/no/such\.json: No such file"):
            deepspeed_config(training, plan_horizon(training, 32, 1), "fp32", parameters=100, on_gpu=False)

    def test_what_stage_0_cannot_do_is_refused(self):
        spikes = TrainingConfig(zero_stage=0, skip_sigmas=6)
        with pytest.raises(UserError, match=r"skip_sigmas needs ZeRO.*zero_stage=1"):
            deepspeed_config(spikes, plan_horizon(spikes, LENGTH, 1), "fp32", parameters=1, on_gpu=False)
        training = TrainingConfig(zero_stage=0)
        with pytest.raises(UserError, match=r"zero_stage=0 does not train correctly in bf16.*zero_stage=1"):
            deepspeed_config(training, plan_horizon(training, 32, 1), "bf16", parameters=100, on_gpu=False)


def test_a_cpu_computes_in_fp32_by_default():
    cpu = torch.device("cpu")
    assert choose_precision(TrainingConfig(), cpu) == "fp32"
    assert choose_precision(TrainingConfig(precision="bf16"), cpu) == "bf16"
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        choose_precision(TrainingConfig(precision="fp16"), cpu)
