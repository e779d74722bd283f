"""Layers that train with the rounding of their int8 or int4 form. Putting them into a model: `prepare_qat`."""
