"""Language models: the engine that schedules their requests, and what it needs of a model."""
