"""The verbs of the command line, in the words of its help."""

VERBS = {
    "fit": "train a model; prepares its data first if needed",
    "validate": "measure a checkpoint on the whole validation split",
    "test": "the same, reported as test_*: TinyStories has no third split",
    "predict": "tell stories with a trained model",
    "bench": "measure how fast stories are told, or models trained",
    "plot": "draw a run's curves, weights and attention, or compare runs",
    "report": "write a run's report: one HTML file with everything in it",
    "evaluate": "measure a model's stories: minimal pairs, generated stories, loss",
    "verify-resume": "prove that a killed and resumed run equals an uninterrupted one here",
    "prepare": "tokenise data without training",
    "info": "describe prepared data, or a checkpoint; --verify recomputes every checksum and count",
}
