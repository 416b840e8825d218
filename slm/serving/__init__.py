"""Stories on request: an OpenAI-compatible server and a demo page, on one engine."""
