"""Mixtures of experts: the router loss is added, and only active experts count as FLOPs."""

import pytest
import torch

from scorers.errors import UserError
from tests.architectures.configs import tiny_config
from training.config import ModelConfig
from training.model import shape
from training.model.counting import count_parameters, describe_experts, flops_per_token, idle_parameters
from training.model.language_model import build_model
from training.model.router_loss import METRIC, describe_router
from training.model.shape import trace_shape
from training.model.vocabulary import Vocabulary
from training.objectives import build

MLE = build("mle")


def make(folder, kind="mixtral", *, skeleton=False, value_head=False, **changes):
    config = tiny_config(kind)
    for key, value in {"output_router_logits": True, "router_aux_loss_coef": 0.5, **changes}.items():
        setattr(config, key, value)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    return build_model(ModelConfig(name=str(folder)), Vocabulary(300, 0), skeleton=skeleton, value_head=value_head)


def batch(rows=4, length=32):
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(1))


def router_gradients(model):
    """Gradients of the router's matrices."""
    return {
        name: each.grad for name, each in model.causal.named_parameters() if "gate.weight" in name or "router" in name
    }


@pytest.mark.parametrize(
    "kind",
    [
        "mixtral",
        "qwen3_moe",
        "qwen2_moe",
        "gpt_oss",
        "granitemoe",
        "olmoe",
        "jetmoe",
        "phimoe",
        "ernie4_5_moe",
        "jamba",
    ],
)
@pytest.mark.parametrize("linear_head", [True, False])
def test_the_router_loss_equals_that_of_transformers(tmp_path, kind, linear_head):
    model = make(tmp_path, kind).eval()  # some choose experts randomly in training mode
    model.has_linear_head &= linear_head
    ids = batch()
    loss, metrics = model(ids, objective=MLE, scores=torch.zeros(ids.shape))
    loss.backward()
    ours = router_gradients(model)
    model.zero_grad()
    theirs = model.causal(input_ids=ids, labels=ids, use_cache=False)
    theirs.loss.backward()
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics[METRIC], theirs.aux_loss.detach(), rtol=1e-5, atol=1e-6)
    assert loss > metrics["ce"] + 1e-4
    assert ours
    for name, gradient in router_gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_disabled_router_loss_adds_nothing(tmp_path):
    model = make(tmp_path, output_router_logits=False)
    ids = batch()
    loss, metrics = model(ids, objective=MLE, scores=torch.zeros(ids.shape))
    assert METRIC not in metrics
    torch.testing.assert_close(loss, metrics["ce"])
    assert "model.overrides.output_router_logits=true adds it with weight 0.5" in describe_router(model)


@pytest.mark.parametrize("linear_head", [True, False])
def test_the_router_loss_of_micro_batches_is_their_mean(tmp_path, linear_head):
    model = make(tmp_path, value_head=True)
    model.has_linear_head = linear_head
    awr, ids = build("awr", alpha=0.5, beta=1.0), batch()
    scores, count = torch.rand(ids.shape), ids[:, 1:].numel()
    whole, _ = model(ids, objective=awr, scores=scores, count=count)
    parts = [model(ids[part], objective=awr, scores=scores[part], count=count) for part in (slice(0, 1), slice(1, 4))]
    alone = [model(ids[part], objective=awr, scores=scores[part])[1][METRIC] for part in (slice(0, 1), slice(1, 4))]
    added = sum(metrics[METRIC] for _, metrics in parts)
    torch.testing.assert_close(added, (alone[0] + 3 * alone[1]) / 4)
    objective = sum(loss - 0.5 * metrics[METRIC] for loss, metrics in parts)
    expected = whole - 0.5 * model(ids, objective=awr, scores=scores)[1][METRIC]
    torch.testing.assert_close(objective, expected)


def test_nothing_is_kept_after_a_pass(tmp_path):
    model = make(tmp_path, value_head=True)
    ids = batch()
    model(ids, objective=build("awr", alpha=0.5, beta=1.0), scores=torch.zeros(ids.shape))
    assert model._hidden is None
    assert model.router._hidden is None


def test_an_enabled_loss_that_does_not_exist_is_reported(tmp_path):
    model = make(tmp_path, "deepseek_v3")
    assert "none for this architecture, although its config enables one" in describe_router(model)
    dense = make(tmp_path, "doge", is_moe=False)
    with pytest.raises(UserError, match=r"Set model\.overrides\.output_router_logits=false"):
        dense(batch(), objective=MLE, scores=torch.zeros(4, 32))


def test_flops_of_mixtral_count_only_active_experts(tmp_path):
    model = make(tmp_path)
    total, tables = count_parameters(model)
    expert = 3 * 64 * 64
    assert idle_parameters(model) == 2 * 2 * expert  # two layers, two of four experts
    assert describe_experts(model) == "2 of 4"
    # The output embedding is not tied, and counts as a product.
    assert flops_per_token(model, 16) == 6 * (total - tables - 4 * expert) + 12 * 64 * 2 * 16


def test_shared_experts_and_dense_layers_count_fully(tmp_path):
    model = make(tmp_path, "deepseek_v3", first_k_dense_replace=1, n_shared_experts=1)
    expert = 3 * 64 * 32
    # One layer of experts with two of four active; the shared one is separate.
    assert idle_parameters(model) == 2 * expert


def test_layers_without_attention_count_only_parameters(tmp_path):
    model = make(tmp_path, "mamba")
    total, tables = count_parameters(model)
    shared = 300 * 64
    assert flops_per_token(model, 16) == flops_per_token(model, 1024) == 6 * (total - tables + shared)
    hybrid = make(tmp_path, "qwen3_next", layer_types=["linear_attention", "full_attention"])
    assert flops_per_token(hybrid, 32) - flops_per_token(hybrid, 16) == 12 * 64 * 16


def test_a_plan_of_experts_matches_saved_activations(tmp_path):
    planned = trace_shape(make(tmp_path, skeleton=True), "any", context_length=64, dtype=torch.float32)
    model = make(tmp_path)
    assert planned.parameters - planned.parameters_active == idle_parameters(model)
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    own = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model.causal.model(input_ids=torch.zeros(1, 64, dtype=torch.int64), use_cache=False)
    kept = sum(each.nbytes() for place, each in found.items() if place not in own)
    assert result is not None
    assert kept <= planned.kept <= 1.5 * kept


def test_tracing_a_token_by_token_model_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(shape, "_PATIENCE_S", 0.3)
    with pytest.raises(UserError, match="cannot be estimated: it processes tokens one by one"):
        trace_shape(make(tmp_path, "mamba", skeleton=True), "any", context_length=512, dtype=torch.float32)
