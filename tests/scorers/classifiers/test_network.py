from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.classifiers import network
from scorers.classifiers.batches import GPU_LENGTHS, Shapes
from scorers.classifiers.network import Network
from scorers.contract import Execution
from scorers.errors import UserError
from tests.scorers.helpers import NAMES, tiny_classifier


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function from a family to a fresh tiny model, because a `Network` changes its model."""
    import transformers

    folders = {}

    def of(family):
        if family not in folders:
            folders[family] = tiny_classifier(family, tmp_path_factory.mktemp(family) / "model", labels=("a", "b", "c"))
        return transformers.AutoModelForSequenceClassification.from_pretrained(folders[family])

    return of


def _second(logits):
    return logits[:, 1].sigmoid()


def _network(model, shapes=None, **execution):
    return Network(model, _second, Execution(**execution), shapes)


def _sequences(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(5, 40, length, dtype=np.int32) for length in lengths]


def _alone(model, sequences):
    import torch

    with torch.no_grad():
        return [float(_second(model.eval()(torch.as_tensor(each[None].astype(np.int64))).logits)) for each in sequences]


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("shapes", [None, Shapes(512, 500), Shapes(256, lengths=GPU_LENGTHS)])
def test_scores_are_the_models_own_in_any_batch_and_shape(load, family, shapes):
    sequences = _sequences([7, 1, 30, 2, 30, 29, 90, 512, 3, 30])
    expected = _alone(load(family), sequences)
    found = _network(load(family), shapes).scores(sequences)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert np.ptp(found) > 1e-3


@settings(max_examples=25)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.randoms(), st.integers(16, 2000))
def test_on_a_cpu_scores_are_within_1e_6_in_any_batch_and_order(load, lengths, random, tokens):
    sequences = _sequences(lengths)
    order = random.sample(range(len(lengths)), len(lengths))
    model = load("roberta")
    together = _network(model).scores(sequences)
    shuffled = _network(load("roberta"), batch_tokens=tokens).scores([sequences[index] for index in order])
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("family", "cut"), [("bert", True), ("roberta", True), ("albert", False)])
def test_the_last_layer_is_computed_for_the_first_token_alone(load, family, cut):
    import torch

    model = load(family)
    widths = []
    kind = torch.nn.Linear
    for module in model.modules():
        if isinstance(module, kind) and module.out_features == 32:
            module.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].shape[1]))
    _network(model).scores(_sequences([9, 9]))
    assert widths == ([9, 1] if cut else [9, 9])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_lower_precisions_agree_roughly_and_keep_the_last_layer_in_float32(load, family, precision):
    import torch

    sequences = _sequences([5, 12, 40, 200] * 8)
    model = load(family)
    with torch.no_grad():
        for weight in model.parameters():
            # Scale activations to those of a trained model; the tiny models' weights amplify every rounding error.
            weight.mul_(0.3)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    exact = _network(model).scores(sequences)
    again = load(family)
    again.load_state_dict(state)
    lower = _network(again, precision=precision)
    assert lower.precision is {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    found = lower.scores(sequences)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=5e-3, rtol=0)
    # More distinct values than a logit of eight bits can have.
    assert len(set(np.diff(np.sort(found)).tolist()) - {0.0}) > 16


@pytest.mark.parametrize(
    ("wanted", "device", "bf16", "expected"),
    [
        ("auto", "cpu", True, "float32"),
        ("auto", "cuda", True, "bfloat16"),
        ("auto", "cuda", False, "float16"),
        ("fp32", "cuda", True, "float32"),
        ("bf16", "cpu", False, "bfloat16"),
    ],
)
def test_the_precision_goes_by_the_device(monkeypatch, wanted, device, bf16, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert network.precision(torch, SimpleNamespace(type=device), wanted) is getattr(torch, expected)


@pytest.mark.slow
def test_static_shapes_compile_once_and_to_one_graph(load):
    import torch
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    sequences = _sequences(range(2, 200, 19))
    expected = _alone(load("roberta"), sequences)
    compiled = _network(load("roberta"), Shapes(1024, lengths=GPU_LENGTHS))
    # As on a GPU, except for the compiler.
    compiled._forward = torch.compile(compiled._model, dynamic=True, backend=counter)
    np.testing.assert_allclose(compiled.scores(sequences), expected, atol=1e-6, rtol=0)
    assert counter.frame_count <= 2


def test_a_network_that_cannot_be_compiled_runs_uncompiled(load, caplog):
    def broken(**_inputs):
        raise RuntimeError("no compiler here")

    sequences = _sequences([5, 9])
    fallen = _network(load("bert"))
    fallen._forward = broken
    np.testing.assert_allclose(fallen.scores(sequences), _alone(load("bert"), sequences), atol=1e-6, rtol=0)
    assert "could not be compiled" in caplog.text


def test_outputs_may_be_overwritten_by_the_next_batch(load):
    import torch

    buffer = torch.zeros(8, 3)

    def graph(input_ids, **_mask):
        buffer[: len(input_ids)] = input_ids[:, :1]
        return SimpleNamespace(logits=buffer)

    sequences = _sequences([9, 30, 60, 90])
    replayed = Network(load("roberta"), lambda logits: logits[:, 0], Execution(batch_tokens=64))
    replayed._forward = graph
    assert replayed.scores(sequences).tolist() == [each[0] for each in sequences]


def test_the_network_waits_for_the_device_once_per_call(load, monkeypatch):
    import torch

    waits = []
    for name in ("cpu", "item", "tolist", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(tensor, *arguments, _name=name, _original=original):
            waits.append(_name)
            return _original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    _network(load("roberta"), Shapes(256, lengths=GPU_LENGTHS)).scores(_sequences(range(1, 200, 5)))
    assert waits == ["cpu"]


def test_unusable_devices_and_models_are_refused(load):
    with pytest.raises(UserError, match="There is no device 'gpu'"):
        _network(load("bert"), device="gpu")
    with pytest.raises(UserError, match=r"'cuda:99' is not there: torch \S+ sees \d+ GPUs"):
        _network(load("bert"), device="cuda:99")
    model = load("bert")
    model.config.pad_token_id = None
    with pytest.raises(UserError, match="no padding token"):
        _network(model)
