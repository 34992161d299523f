"""The files that teams check in: models, strict loader, JSON Schema."""
