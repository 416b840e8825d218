"""The verbs `fit`, `validate` and `test`."""
