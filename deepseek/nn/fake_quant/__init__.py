"""Layers that train with the rounding of their int8 or int4 form. Not here: putting them into a model (`prepare_qat`)."""
