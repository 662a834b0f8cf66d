"""Tasks: each binds a model, its heads, its objectives and its batch keys."""
