"""Replace an architecture's norms, rotary embeddings and gated layers by Liger's fused kernels (arXiv 2410.10989).

Liger's fused cross-entropy is not used: `training.linear_loss` works the same way and serves every objective.
"""

from typing import Any

import torch

from scorers.errors import UserError


def check_kernels(device: torch.device) -> None:
    """Refuse Liger's kernels where they cannot run.

    Raises:
        UserError: no GPU, or the package is missing.
    """
    if device.type != "cuda":
        raise UserError("model.kernels=liger needs a GPU, and there is none here. Set model.kernels=torch.")
    _liger()


def use_liger(causal: Any) -> None:
    """Replace every module that Liger has a kernel for, in a Hugging Face model.

    Raises:
        UserError: the package is missing, or it has no kernels for the architecture.
    """
    liger = _liger()
    kind = causal.config.model_type
    if kind not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"model.kernels=liger: Liger has no kernels for {kind!r}. Set model.kernels=torch.")
    liger._apply_liger_kernel_to_instance(causal, cross_entropy=False, fused_linear_cross_entropy=False)


def _liger() -> Any:
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError as error:
        raise UserError(
            f"model.kernels=liger: {error.name or 'liger_kernel'} is not installed. pip install 'phf[liger]', or set "
            "model.kernels=torch."
        ) from None
    return monkey_patch
