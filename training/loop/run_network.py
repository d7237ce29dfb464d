"""The network of a run: checked against the machine before the data is prepared, built once the ranks have met."""

import torch

from training.config import ResolvedConfig
from training.data.prepare import PreparedData
from training.distributed.world import World
from training.engine.deepspeed_config import Precision
from training.engine.engine import check_compiler
from training.model.build_network import check_attention, use_attention
from training.model.kernels import check_kernels, use_liger
from training.model.language_model import LanguageModel, build_model, checkpoint_activations
from training.model.sizes import SIZES
from training.model.trial import Tokens, try_network
from training.model.vocabulary import Vocabulary, padding_id


def check_network(config: ResolvedConfig, world: World, precision: Precision) -> None:
    """Check that this machine can run the attention, the kernels and the compiler that the settings name.

    Raises:
        UserError: names the setting and what is missing.
    """
    check_attention(config.model, world.device, half_precision=precision != "fp32")
    if config.model.kernels == "liger":
        check_kernels(world.device)
    if config.training.compile:
        check_compiler(world.device)


def build_network(data: PreparedData, world: World) -> LanguageModel:
    """Build the model of a run, the same on every rank for the same seed. Called on every rank.

    With ZeRO 3 only rank 0 has the weights, and the others only the shapes: `training.engine.zero` distributes them.

    Raises:
        UserError: the model cannot be built, or cannot do what the settings ask for.
    """
    config, tokenizer = data.config, data.tokenizer
    vocabulary = Vocabulary(
        tokenizer.size(data.added_ids),
        tokenizer.eos_id,
        data.added_ids,
        tokenizer.base_size,
        tokenizer.bos_id,
        padding_id(tokenizer.fast),
    )
    made: list[LanguageModel] = []

    def build(*, skeleton: bool = False) -> bool:
        model = build_model(
            config.model,
            vocabulary,
            value_head=data.objective.needs_values,
            context_length=config.data.context_length,
            rows_multiple=config.model.pad_vocab_to or (None if world.device.type == "cuda" else 1),
            document_masking=config.data.document_masking,
            skeleton=skeleton,
        )
        made.append(model)
        return model.has_linear_head

    torch.manual_seed(config.training.seed)
    if config.training.zero_stage < 3 or world.size == 1:
        build()
    else:
        has_linear_head = world.on_main(build)
        if not world.is_main:
            build(skeleton=True)
            made[0].has_linear_head = has_linear_head
    model = made[0]
    if config.training.activation_checkpointing:
        checkpoint_activations(model)
    special = frozenset({tokenizer.eos_id, vocabulary.begins_with, *data.added_ids, *tokenizer.fast.all_special_ids})
    context_length = config.data.context_length
    tokens = Tokens(vocabulary.size, vocabulary.begins_with, tokenizer.eos_id, special, context_length)
    foreign = config.model.name not in SIZES
    world.on_main(lambda: try_network(model, data.objective, tokens, foreign=foreign))
    use_attention(model.causal, config.model)
    if config.model.kernels == "liger":
        use_liger(model.causal)
    return model
