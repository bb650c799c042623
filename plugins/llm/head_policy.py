"""What a quantization policy means for a decoder's head; imports nothing heavy, since memory is claimed before loading."""

from __future__ import annotations

from sixfold.core.runtime.quantization.policy import ComponentPolicy, QuantizationPolicy

LM_HEAD = "lm_head"
"""The component that turns the last hidden state into logits."""

LAYERS = "model"
"""The component that is all the rest."""


def with_better_head(policy: QuantizationPolicy) -> QuantizationPolicy:
    """With 4 bits, the head gets 8 unless the policy names it.

    It is where an error shows at once, and llama.cpp's files of 4 bits keep it in more for the same reason.
    """
    if LM_HEAD in policy.components or policy.scheme not in ("int4", "nvfp4"):
        return policy
    what = policy.what if policy.what != "kv_cache" else "weights"
    part = ComponentPolicy(scheme="int8", what=what)
    return policy.model_copy(update={"components": {**policy.components, LM_HEAD: part}})
