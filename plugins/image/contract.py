"""What a family of images takes and gives, for families that other packages bring: public, as `sixfold.core` is.

``generate``, ``edit`` and ``vary`` get an `ImageInput`. Where ``partial_images`` are asked for, `PartialImage` come on the way,
and `StepProgress` for each step; all end with an `ImageResult`, whose usage counts ``text_tokens``, ``image_tokens`` and
``output_tokens``. What a model can't honour it must refuse, see `sixfold.core.refuse_others`.
"""

from __future__ import annotations

from sixfold.plugins.image.schema import ImageInput, ImageOutput, ImageResult, PartialImage, Picture, StepProgress

__all__ = ["ImageInput", "ImageOutput", "ImageResult", "PartialImage", "Picture", "StepProgress"]
